"""Hydra configuration, shipped inside the package as ``mode_policy.conf``."""
