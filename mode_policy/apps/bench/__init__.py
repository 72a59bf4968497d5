"""``mode-bench``: measurements of this package on this machine, as a table and a dated record."""

from mode_policy.apps.bench.main import main

__all__ = ["main"]
