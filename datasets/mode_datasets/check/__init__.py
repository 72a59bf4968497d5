"""Finding out what is wrong with demonstrations, before a policy learns it."""

from mode_datasets.check.findings import CHECKS, Finding, Report, bad_episodes
from mode_datasets.check.run import Checked, check_store

__all__ = ["CHECKS", "Checked", "Finding", "Report", "bad_episodes", "check_store"]
