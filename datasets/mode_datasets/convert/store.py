"""Our own stores as a source, and foreign zarr stores that a task's recipe describes."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

from mode_datasets.convert.source import Source, SourceOptions
from mode_datasets.schema import ReplayBufferLayout
from mode_datasets.store import DemonstrationStore, open_store
from mode_policy.errors import ConfigError, DataError
from mode_policy.types import Episode

LOOKS_FOR = "store of this package: a folder with zarr.json whose attributes have 'schema_version'"


def recognise(path: Path) -> str | None:
    """Return why this is one of our stores, or None."""
    try:
        attributes = json.loads((path / "zarr.json").read_text())["attributes"]
        return f"zarr.json says schema version {attributes['schema_version']}"
    except (OSError, ValueError, KeyError, TypeError):
        return None


@dataclass(frozen=True, kw_only=True)
class StoreSource(Source):
    """Episodes of an opened store."""

    store: DemonstrationStore

    @property
    def num_episodes(self) -> int:
        """Number of episodes."""
        return self.store.num_episodes

    def episode(self, index: int) -> Episode:
        """Read one episode."""
        return self.store.episode(index)


def open_own(path: Path, options: SourceOptions, layout: ReplayBufferLayout | None = None) -> StoreSource:
    """Open a store.

    Args:
        path: Its folder.
        options: What the user says; a store describes itself, so only the convention can be corrected.
        layout: Description of a foreign one.

    Raises:
        ConfigError: if the user says what a store says itself.
        DataError: if it is damaged.
    """
    for name in ("keys", "instruction", "orientation"):
        if getattr(options, name) is not None:
            raise ConfigError(f"a store describes itself, so its {name} cannot be given")
    store = open_store(path, layout)
    provenance = replace(store.provenance, licence=options.licence or store.provenance.licence)
    source = StoreSource(
        path=path,
        features=store.features,
        convention=options.convention(store.convention),
        provenance=provenance,
        tasks=store.tasks,
        notes=store.notes,
        store=store,
    )
    if not source.num_episodes:
        raise DataError(f"{path} has no episodes; there is nothing to convert")
    return source
