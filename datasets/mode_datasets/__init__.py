"""Demonstrations: zarr stores, windows over them, the order in which they are seen, and their inspection."""

from mode_datasets.inspection import describe, disk_usage, find_stores
from mode_datasets.sampler import BatchSampler
from mode_datasets.schema import SCHEMA_VERSION, Provenance, ReplayBufferLayout
from mode_datasets.split import split_episodes
from mode_datasets.store import DemonstrationStore, open_store
from mode_datasets.windows import Windows, WindowSpec
from mode_datasets.writer import StoreWriter

__all__ = [
    "SCHEMA_VERSION",
    "BatchSampler",
    "DemonstrationStore",
    "Provenance",
    "ReplayBufferLayout",
    "StoreWriter",
    "WindowSpec",
    "Windows",
    "describe",
    "disk_usage",
    "find_stores",
    "open_store",
    "split_episodes",
]
