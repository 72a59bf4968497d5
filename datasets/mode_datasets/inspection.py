"""What `mode-data info` shows, and where stores are found."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table

from mode_datasets import schema
from mode_datasets.location import LocalFolder
from mode_datasets.store import DemonstrationStore
from mode_policy.errors import DataError


def find_stores(root: Path | str) -> list[Path]:
    """Find the stores below a folder, itself included, by their metadata alone.

    These are the groups that `StoreWriter` made, and foreign ones with ``meta/episode_ends``. Hidden folders,
    such as stores that are still being written, are passed over.

    Returns:
        Their paths, sorted.

    Raises:
        DataError: if ``root`` is not a folder.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"{root} is not a folder; give one that holds demonstration stores")
    found, seen = [], set()
    for folder, below, _ in os.walk(root, followlinks=True):
        if _is_store(Path(folder)):
            found.append(Path(folder))
            below.clear()
        below[:] = [name for name in below if not name.startswith(".")]
        # Links may lead in circles.
        real = os.path.realpath(folder)
        if real in seen:
            below.clear()
        seen.add(real)
    return sorted(found)


def disk_usage(path: Path | str) -> int:
    """Return the size of all files below a folder, in bytes."""
    return sum(file.stat().st_size for file in Path(path).rglob("*") if file.is_file())


def episode_digests(store: DemonstrationStore) -> list[bytes]:
    """Return a SHA-256 of each episode's instruction and vectors: equal ones are the same demonstration."""
    vectors = store.vectors()
    digests = []
    for a, b, task in zip(store.episode_starts, store.episode_ends, store.episode_tasks, strict=True):
        digest = hashlib.sha256(store.tasks[task].instruction.encode())
        for key in sorted(vectors):
            digest.update(vectors[key][a:b].tobytes())
        digests.append(digest.digest())
    return digests


def describe(store: DemonstrationStore) -> RenderableType:
    """Return tables of key figures, features, tasks and statistics, for a `rich.console.Console`."""
    return Group(_overview(store), _features(store), _tasks(store), _statistics(store))


def _is_store(folder: Path) -> bool:
    ends = folder / schema.EPISODE_ENDS
    if not (ends / "zarr.json").is_file() and not (ends / ".zarray").is_file():
        return False
    metadata = folder / "zarr.json"
    if not metadata.is_file():
        return (folder / ".zgroup").is_file()
    try:
        return bool(json.loads(metadata.read_text()).get("node_type") == "group")
    except ValueError:
        return False


def _overview(store: DemonstrationStore) -> Table:
    table = Table(title=store.location.name, show_header=False)
    minutes = store.num_steps / store.fps / 60
    table.add_row("path", str(store.location))
    table.add_row("episodes", str(store.num_episodes))
    table.add_row("steps", f"{store.num_steps} at {store.fps:g} Hz, {minutes:.1f} min")
    table.add_row("episode lengths", _lengths(store.episode_lengths))
    if isinstance(store.location, LocalFolder):
        table.add_row("size on disk", f"{disk_usage(store.location.path) / 2**20:.1f} MiB")
    if store.profile is not None and schema.image_keys(store.features):
        table.add_row("images", f"profile {store.profile}, {store.image_orientation}")
    for name, value in store.convention.to_json().items():
        if name != "fps" and value not in ("unknown", []):
            table.add_row(name.replace("_", " "), str(value))
    known = store.instruction_table
    table.add_row("instructions", f"{len(known.instructions)}, {known.encoder}" if known else "not embedded")
    for name, value in store.provenance.to_json().items():
        if value:
            table.add_row(name, str(value))
    for note in store.notes:
        table.add_row("note", note)
    return table


def _features(store: DemonstrationStore) -> Table:
    table = Table("feature", "shape", "dtype", "unit", "angles", title="features")
    for key, feature in store.features.items():
        angles = ", ".join(map(str, feature.angles))
        table.add_row(key, str(feature.shape), feature.dtype, feature.unit, angles)
    return table


def _tasks(store: DemonstrationStore) -> Table:
    table = Table("task", "instruction", "episodes", "lengths", title="tasks")
    for row, task in enumerate(store.tasks):
        lengths = store.episode_lengths[store.episode_tasks == row]
        table.add_row(task.name, task.instruction, str(len(lengths)), _lengths(lengths))
    return table


def _statistics(store: DemonstrationStore) -> Table:
    names = ("min", "max", "mean", "std")
    table = Table("", "dimension", *names, title="statistics")
    table.columns[1].overflow = "fold"  # names may differ at their ends alone
    for key, values in store.statistics.items():
        table.add_section()
        table.add_row(key.removeprefix("observation."), style="bold")
        labels = store.features[key].names
        for dim in range(len(values["min"])):
            label = labels[dim] if dim < len(labels) else ""
            table.add_row(str(dim), label, *(f"{values[name][dim]:.4g}" for name in names))
    return table


def _lengths(lengths: np.ndarray) -> str:
    if len(lengths) == 0:
        return "none"
    return f"{lengths.min()} / {np.median(lengths):g} / {lengths.max()} (min / median / max)"
