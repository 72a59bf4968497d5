"""Diffusion Policy's ``ReplayBuffer`` (Chi et al. 2023, arXiv 2303.04137): zarr format 2, in a folder or a
zip.

::

    data/<name>          (T, ...), the episodes one after another
    meta/episode_ends    int64 (N,)

It says neither the control rate nor what the demonstrations do; the user does.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mode_datasets import reading, schema
from mode_datasets.convert.archives import ZipLocation
from mode_datasets.convert.assemble import Slot, assemble, check_declared, features_of
from mode_datasets.convert.description import NAME, Description, provenance_of, refine
from mode_datasets.convert.source import KeyMap, Source, SourceOptions, arrays_of
from mode_datasets.location import LocalFolder, Location
from mode_policy.convention import Convention, Orientation
from mode_policy.errors import DataError
from mode_policy.types import ACTION, IMAGE_PREFIX, Episode, Task

LOOKS_FOR = (
    "diffusion_policy zarr: a folder or .zarr.zip with meta/episode_ends and no schema of this package"
)


def location_of(path: Path) -> Location:
    """Return the files of a folder, or of a zip that holds a store at its top."""
    return ZipLocation(path) if path.suffix == ".zip" else LocalFolder(path)


def recognise(path: Path) -> str | None:
    """Return why this is a replay buffer, or None."""
    if not path.is_dir() and not path.name.endswith(".zarr.zip"):
        return None
    location = location_of(path)
    for name in (".zarray", "zarr.json"):
        if location.exists(f"{schema.EPISODE_ENDS}/{name}"):
            return f"zarr with {schema.EPISODE_ENDS} and no description by this package"
    return None


@dataclass(frozen=True, kw_only=True)
class ReplayBufferSource(Source):
    """Episodes of a replay buffer, read in place.

    Attributes:
        keys: Which arrays below ``data`` become which feature.
        ends: int64 ``(N,)``: one past the last step of each episode.
        episode_tasks: Row of ``tasks`` of each episode.
        seeds: Of each episode, or -1.
        orientation: How images are stored.
    """

    keys: KeyMap
    ends: tuple[int, ...]
    episode_tasks: tuple[int, ...]
    seeds: tuple[int, ...]
    orientation: Orientation
    episode_bytes: int

    @property
    def num_episodes(self) -> int:
        """Number of episodes."""
        return len(self.ends)

    @cached_property
    def _arrays(self) -> dict[str, Any]:
        location = location_of(self.path)
        group = reading.open_group(location)
        return {name: reading.open_array(group, location, f"data/{name}") for name in arrays_of(self.keys)}

    def episode(self, index: int) -> Episode:
        """Read one episode."""
        rows = slice(self.ends[index - 1] if index else 0, self.ends[index])
        arrays = self._arrays
        declared = sum(_slot(x).bytes for x in arrays.values()) * (rows.stop - rows.start)
        chunk = max(int(np.prod(x.chunks)) * x.dtype.itemsize for x in arrays.values())
        check_declared(self.name(index), max(declared, chunk), self.episode_bytes)

        def read(name: str) -> np.ndarray:
            try:
                return np.asarray(arrays[name][rows])
            except Exception as error:  # codecs raise whatever they like
                raise DataError(
                    f"array data/{name} is damaged there ({error}); copy the store again"
                ) from error

        return assemble(
            self.keys, read, self.tasks[self.episode_tasks[index]], self.orientation, self.seeds[index]
        )


def open_replay_buffer(path: Path, options: SourceOptions) -> ReplayBufferSource:
    """Open a replay buffer.

    Raises:
        DataError: if it is damaged, or neither it nor the user says its control rate and its task.
    """
    with contextlib.suppress(ImportError):
        # UMI's stores hold JPEG XL.
        from imagecodecs.numcodecs import register_codecs

        register_codecs(verbose=False)
    location = location_of(path)
    group = reading.open_group(location)
    ends = reading.read_array(location, reading.open_array(group, location, schema.EPISODE_ENDS))
    reading.check_episode_ends(location, ends)
    available = _available(group, location)
    described = Description.loads(group.attrs.get(NAME))
    keys = options.keys or (described.keys if described else default_keys(available))
    features = refine(features_of(keys, available, {}, str(path)), described)
    arrays = [reading.open_array(group, location, f"data/{name}") for name in arrays_of(keys)]
    reading.check_lengths(location, arrays, int(ends[-1]))
    for array in arrays:
        reading.check_chunk_files(location, array)
    tasks, rows, seeds = _tasks(path, group, location, options.instruction, described, len(ends))
    return ReplayBufferSource(
        path=path,
        features=features,
        convention=options.convention(described.convention if described else Convention()),
        provenance=provenance_of(path, "replay buffer", options.licence, described),
        tasks=tasks,
        keys=keys,
        ends=tuple(ends.tolist()),
        episode_tasks=rows,
        seeds=seeds,
        orientation=options.orientation or "upright",
        episode_bytes=options.episode_bytes,
    )


def default_keys(available: dict[str, Slot]) -> KeyMap:
    """Return each array under its own name: ``action``, images as cameras, everything else as a state."""
    keys: dict[str, tuple[str, ...]] = {}
    for name, slot in available.items():
        if name != "action":
            keys[(IMAGE_PREFIX if slot.is_image else "observation.") + name] = (name,)
    return keys | {ACTION: ("action",)}


def _available(group: Any, location: Location) -> dict[str, Slot]:
    names = location.arrays() if isinstance(location, ZipLocation) else reading.array_names(location)
    found = {}
    for name in names:
        if name.startswith("data/"):
            try:
                found[name[5:]] = _slot(reading.open_array(group, location, name))
            except DataError:
                found[name[5:]] = Slot((), "object")  # refused when a feature needs it
    return found


def _slot(array: Any) -> Slot:
    return Slot(array.shape[1:], array.dtype.name)


def _tasks(
    path: Path,
    group: Any,
    location: Location,
    instruction: str | None,
    described: Description | None,
    episodes: int,
) -> tuple[tuple[Task, ...], tuple[int, ...], tuple[int, ...]]:
    if instruction is None and described is not None:
        rows, seeds = (
            reading.read_array(location, reading.open_array(group, location, name))
            for name in (schema.EPISODE_TASK, schema.EPISODE_SEED)
        )
        if len(rows) == len(seeds) == episodes and ((rows >= 0) & (rows < len(described.tasks))).all():
            return described.tasks, tuple(rows.tolist()), tuple(seeds.tolist())
    if instruction is None:
        raise DataError(f"{path} does not say what its demonstrations do; give it with --instruction")
    name = path.name.removesuffix(".zip").removesuffix(".zarr")
    return (Task(name=name, instruction=instruction),), (0,) * episodes, (-1,) * episodes
