"""Reading every file of a store, and going on after one that is damaged."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mode_datasets import reading, schema
from mode_datasets.check.findings import Finding, plural, shortened
from mode_datasets.location import LocalFolder, Location
from mode_datasets.schema import ReplayBufferLayout
from mode_policy.errors import DataError

_FIX = "copy the files again from where the store came from, or convert its source again"


@dataclass(frozen=True, kw_only=True)
class Damage:
    """Files of one array that are missing or cannot be decoded.

    Attributes:
        array: Path of the array, such as ``data/action``.
        files: File, relative to the store → what is wrong with it.
        rows: Which rows cannot be read, bool ``(rows of the array,)``.
        total: Number of files of the array.
    """

    array: str
    files: Mapping[str, str]
    rows: np.ndarray
    total: int

    def finding(self, feature: str, episodes: tuple[int, ...] = (), step: int | None = None) -> Finding:
        """Return what to tell about it."""
        return Finding(
            check="corrupt_file",
            severity="error",
            what=f"{len(self.files)} of {plural(self.total, 'file')}: "
            + shortened(self.files.values(), most=3),
            fix=_FIX,
            feature=feature,
            episodes=episodes,
            step=step,
            files=tuple(self.files),
        )


def read_files(location: Location, array: reading.ZarrArray) -> Damage:
    """Read all files of an array, one after another."""
    files, rows, total = {}, np.zeros(array.shape[0], bool), 0
    for file, region in reading.blocks(array):
        total += 1
        try:
            reading.read_block(location, array, file, region)
        except DataError as error:
            files[file] = str(error).removeprefix(f"{location}/")
            rows[region[0]] = True
    return Damage(array=array.path, files=files, rows=rows, total=total)


def wanted_arrays(location: Location, layout: ReplayBufferLayout | None) -> list[str]:
    """Return the names of a store's arrays: those that are described, and others that can be listed."""
    if layout is not None:
        return [f"data/{name}" for name in layout.keys.values()] + [schema.EPISODE_ENDS]
    features: Any = reading.open_group(location).attrs.get("features") or {}
    described = [f"data/{key}" for key in features]
    known = [*described, schema.EPISODE_ENDS, schema.EPISODE_TASK, schema.EPISODE_SEED]
    return [*known, *(name for name in reading.array_names(location) if name not in known)]


def unread_arrays(location: Location, layout: ReplayBufferLayout | None) -> Iterator[Finding]:
    """Note the arrays of a store of another layout that its description leaves out."""
    if layout is None or not isinstance(location, LocalFolder):
        return
    spare = sorted(set(reading.array_names(location)) - set(wanted_arrays(location, layout)))
    if spare:
        yield Finding(
            check="leftover",
            severity="info",
            what=f"arrays that the description leaves out, and that were not read: {', '.join(spare)}",
            fix="to use them, map them to features in dataset.keys and dataset.features",
        )


def damaged_metadata(location: Location, names: Iterable[str]) -> Iterator[Finding]:
    """Find arrays that cannot even be opened."""
    group = reading.open_group(location)
    for name in names:
        try:
            reading.open_array(group, location, name)
        except DataError as error:
            yield Finding(check="corrupt_file", severity="error", what=str(error), fix=_FIX, files=(name,))
