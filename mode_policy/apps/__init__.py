"""The programs: they compose configuration, data, environments and policy, and talk to the person."""
