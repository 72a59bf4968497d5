"""Demonstrations on disk: a zarr group that is validated when it is opened, and read in place."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any, cast, get_args

import numpy as np
import torch
import zarr

from mode_datasets import reading, schema
from mode_datasets.frames import FrameReader, frame_reader
from mode_datasets.location import Location, locate
from mode_datasets.profiles import ProfileName
from mode_datasets.resize import resized
from mode_datasets.schema import Provenance, ReplayBufferLayout
from mode_policy.convention import Convention, Orientation
from mode_policy.errors import DataError, did_you_mean
from mode_policy.normalization import Statistics, compute_statistics, statistics_from_json
from mode_policy.types import Episode, Feature, Features, InstructionTable, Task

#: Rows that are converted at once when a whole image array is loaded.
_BLOCK = 1000


@dataclass(frozen=True, kw_only=True, eq=False)
class DemonstrationStore:
    """Demonstrations, opened by `open_store`. ``N`` episodes, ``T`` steps in all.

    Attributes:
        location: Where the store is.
        features: What each step holds; images may be stored in another size.
        convention: What the numbers mean, the control rate included.
        episode_ends: int64 ``(N,)``, one past the last step of each episode.
        episode_tasks: int64 ``(N,)``, row of ``tasks``.
        episode_seeds: int64 ``(N,)``, seed of the environment's reset, or -1.
        tasks: The task table.
        instruction_table: Embedded instructions, or None where the store knows none.
        statistics: Statistics of each low-dimensional feature over all episodes, raw units.
        provenance: Where the data come from.
        profile: How images are written, see `mode_datasets.profiles`; None in a store of another layout.
        image_orientation: How images are stored; they are delivered upright.
        notes: What was found and set right when the store was opened, for a person to read.
    """

    location: Location
    features: Features
    convention: Convention
    episode_ends: np.ndarray
    episode_tasks: np.ndarray
    episode_seeds: np.ndarray
    tasks: tuple[Task, ...]
    instruction_table: InstructionTable | None
    statistics: Statistics
    provenance: Provenance
    profile: ProfileName | None = None
    image_orientation: Orientation = "upright"
    notes: tuple[str, ...] = ()
    _arrays: Mapping[str, reading.ZarrArray]
    _readers: Mapping[str, FrameReader | None]
    _vectors: Mapping[str, np.ndarray]
    _rows: np.ndarray | None = None  # where each step's image is, in a store that leaves steps out

    @property
    def fps(self) -> float:
        """Control rate in Hz."""
        assert self.convention.fps is not None  # held by the writer and by `ReplayBufferLayout`
        return self.convention.fps

    @property
    def num_episodes(self) -> int:
        """Number of episodes N."""
        return len(self.episode_ends)

    @property
    def num_steps(self) -> int:
        """Number of time steps T of all episodes together."""
        return int(self.episode_ends[-1])

    @property
    def episode_starts(self) -> np.ndarray:
        """First step of each episode, int64 ``(N,)``."""
        return np.concatenate([[0], self.episode_ends[:-1]])

    @property
    def episode_lengths(self) -> np.ndarray:
        """Number of steps of each episode, int64 ``(N,)``."""
        return np.diff(self.episode_ends, prepend=0)

    def array(self, key: str) -> reading.ZarrArray:
        """Return the zarr array behind a feature, ``(T, ...)`` as it is stored.

        Raises:
            DataError: if there is no such feature.
        """
        self._feature(key)
        return self._arrays[key]

    def vectors(self) -> dict[str, np.ndarray]:
        """Return all low-dimensional features, float32 ``(T, D)``; the store's own, not to be changed."""
        return dict(self._vectors)

    def frames(self, key: str, steps: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """Read images at chosen steps (any order, repetitions allowed), upright.

        Args:
            key: Of the camera.
            steps: int ``(n,)`` in ``[0, T)``.
            out: Where to put them, contiguous uint8 ``(n, H, W, 3)``; a new array by default.

        Raises:
            DataError: if there is no such feature, or a file is missing or damaged.
        """
        shape = (len(steps), *self._feature(key).shape)
        out = np.empty(shape, np.uint8) if out is None else out
        steps = steps if self._rows is None else self._rows[steps]
        stored = (len(steps), *self._arrays[key].shape[1:])
        images = out if stored == shape else np.empty(stored, np.uint8)
        reader = self._readers[key]
        if reader is None:
            images[:] = reading.read_images(self.location, self._arrays[key], steps)
        else:
            reader.read(steps, images)
        if (turned := schema.upright(images, self.image_orientation)) is not images:
            images[:] = turned.copy()
        if images is not out:
            out[:] = resized(torch.from_numpy(images), *shape[1:3]).numpy()
        return out

    def all_frames(self, key: str, out: np.ndarray | None = None) -> np.ndarray:
        """Read all images of a feature into memory, uint8 ``(T, H, W, 3)``; raises as `frames` does."""
        shape = (self.num_steps, *self._feature(key).shape)
        images = np.empty(shape, np.uint8) if out is None else out
        for start in range(0, self.num_steps, _BLOCK):
            steps = np.arange(start, min(start + _BLOCK, self.num_steps))
            self.frames(key, steps, images[steps[0] : steps[-1] + 1])
        return images

    def episode(self, index: int) -> Episode:
        """Return one episode with all its features, images included.

        Raises:
            DataError: if ``index`` is not in ``[0, N)``, or a chunk file cannot be decoded.
        """
        if not 0 <= index < self.num_episodes:
            raise DataError(f"episode {index} of {self.location} does not exist; it has {self.num_episodes}")
        steps = np.arange(self.episode_starts[index], self.episode_ends[index])
        arrays = {
            key: self._vectors[key][steps] if key in self._vectors else self.frames(key, steps)
            for key in self.features
        }
        task = self.tasks[self.episode_tasks[index]]
        return Episode(arrays=arrays, task=task, seed=int(self.episode_seeds[index]))

    def with_instructions(self, table: InstructionTable) -> DemonstrationStore:
        """Return this store carrying another instruction table; nothing is written.

        Raises:
            UnknownInstructionError: if the table lacks the instruction of a task.
        """
        table.index([task.instruction for task in self.tasks])
        return dataclasses.replace(self, instruction_table=table)

    def summary(self) -> dict[str, Any]:
        """Return the store's key figures as a JSON-ready mapping."""
        lengths = self.episode_lengths
        counts = np.bincount(self.episode_tasks, minlength=len(self.tasks))
        return {
            "path": str(self.location),
            "episodes": self.num_episodes,
            "steps": self.num_steps,
            "fps": self.fps,
            "lengths": [int(lengths.min()), float(np.median(lengths)), int(lengths.max())],
            "features": {key: feature.to_json() for key, feature in self.features.items()},
            "tasks": {task.name: int(n) for task, n in zip(self.tasks, counts, strict=True)},
            "encoder": self.instruction_table.encoder if self.instruction_table else None,
            "provenance": self.provenance.to_json(),
        }

    def _feature(self, key: str) -> Feature:
        if key not in self.features:
            raise DataError(f"{self.location} has no feature {key!r}.{did_you_mean(key, self.features)}")
        return self.features[key]


def open_store(
    path: Path | str | Location,
    layout: ReplayBufferLayout | None = None,
    *,
    check_statistics: bool = True,
    lenient: bool = False,
) -> DemonstrationStore:
    """Open a store and check all that can be checked without reading every image.

    Args:
        path: Folder or address (``s3://…``, ``https://…``) of a store that `StoreWriter` made, or of a
            foreign ``ReplayBuffer``.
        layout: Description of a foreign store, which is read in place and never written to.
        check_statistics: Refuse a store whose statistics were computed from other data; if False, they are
            computed anew and a note says so.
        lenient: Open a damaged store as far as possible, to find out what is wrong with it: vectors are NaN
            where they cannot be read, images are looked at when they are read, statistics are those that are
            stored.

    Raises:
        DataError: naming what is wrong: a missing or foreign store, a newer schema, arrays whose lengths or
            shapes disagree, missing or corrupt files, objects, values that are not finite, or statistics that
            do not belong to the data.
    """
    location = locate(path)
    group = reading.open_group(location)
    if "schema_version" in group.attrs:
        if layout is not None:
            raise DataError(f"{location} describes itself; open it without a layout")
        return _open_native(location, group, check_statistics, lenient)
    if layout is None:
        raise DataError(
            f"{location} was not written by this package and does not say what its arrays mean: "
            f"{', '.join(reading.array_names(location)) or 'it has none'}. Describe it with a "
            "`ReplayBufferLayout` (in a task's configuration: `dataset.keys`, such as "
            "`observation.state: state`)"
        )
    return _open_foreign(location, group, layout, lenient)


def _open_native(
    location: Location, group: zarr.Group, check_statistics: bool, lenient: bool
) -> DemonstrationStore:
    try:
        attributes = schema.migrate(dict(group.attrs))
    except DataError as error:
        raise DataError(f"{location}: {error}") from None
    try:
        features = {key: Feature.from_json(value) for key, value in attributes["features"].items()}
        convention = Convention(**attributes["convention"])
        tasks = tuple(Task(**row) for row in attributes["tasks"])
        provenance = Provenance(**attributes["provenance"])
        orientation, profile = attributes["image_orientation"], attributes["profile"]
        if orientation not in get_args(Orientation) or convention.fps is None:
            raise ValueError(f"image_orientation {orientation!r}, fps {convention.fps}")
        episodes = attributes["episodes"]
        kept = attributes["statistics"]
        statistics = {} if kept is None else statistics_from_json(kept["values"])
        instructions = attributes["instructions"]
        encoder, texts = (instructions["encoder"], tuple(instructions["texts"])) if instructions else ("", ())
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"the attributes of {location} are damaged ({type(error).__name__}: {error}); "
            "make the store again"
        ) from error
    schema.check_features(features)
    ends, arrays, vectors, notes = _read_data(
        location, group, {k: k for k in features}, features, episodes, lenient
    )
    episode_tasks, episode_seeds = (
        reading.read_array(location, reading.open_array(group, location, name), episodes)
        for name in (schema.EPISODE_TASK, schema.EPISODE_SEED)
    )
    if not len(episode_tasks) == len(episode_seeds) == len(ends):
        raise DataError(
            f"{location} has {len(ends)} episodes, but tasks for {len(episode_tasks)} and seeds for "
            f"{len(episode_seeds)}; make the store again"
        )
    unknown = np.flatnonzero((episode_tasks < 0) | (episode_tasks >= len(tasks)))
    if len(unknown):
        raise DataError(
            f"episode {unknown[0]} of {location} has task {episode_tasks[unknown[0]]}, the table has "
            f"{len(tasks)}; make the store again"
        )
    unfinished = kept is None or (kept["episodes"] is not None and kept["episodes"] != len(ends))
    if unfinished:
        notes.append("its last writer did not finish: statistics were computed from what is there")
    elif not lenient and schema.fingerprint(vectors) != kept["computed_from"]:
        if check_statistics:
            raise DataError(
                f"statistics of {location} were computed from other data than it holds. If the data are "
                f"right, renew them with: mode-data stats {quote(str(location))} --write"
            )
        notes.append("its statistics were computed from other data, and were computed anew")
        unfinished = True
    table = None
    if texts:
        embeddings = reading.read_array(
            location, reading.open_array(group, location, schema.INSTRUCTION_EMBEDDINGS)
        )
        table = InstructionTable(
            encoder=encoder, instructions=texts, embeddings=torch.as_tensor(embeddings, dtype=torch.float32)
        )
        if not {task.instruction for task in tasks} <= set(texts):
            notes.append("its instruction embeddings do not cover all tasks, and were left out")
            table = None
    return DemonstrationStore(
        location=location,
        features=features,
        convention=convention,
        episode_ends=ends,
        episode_tasks=episode_tasks,
        episode_seeds=episode_seeds,
        tasks=tasks,
        instruction_table=table,
        statistics=_statistics(vectors, lenient) if unfinished else statistics,
        provenance=provenance,
        profile=cast("ProfileName", profile),
        image_orientation=cast("Orientation", orientation),
        notes=tuple(notes),
        _arrays=arrays,
        _readers=_readers(location, arrays, features),
        _vectors=vectors,
    )


def _open_foreign(
    location: Location, group: zarr.Group, layout: ReplayBufferLayout, lenient: bool
) -> DemonstrationStore:
    ends, arrays, vectors, _ = _read_data(location, group, layout.keys, layout.features, None, lenient)
    return DemonstrationStore(
        location=location,
        features=dict(layout.features),
        convention=layout.convention,
        episode_ends=ends,
        episode_tasks=np.zeros(len(ends), dtype=np.int64),
        episode_seeds=np.full(len(ends), -1, dtype=np.int64),
        tasks=(layout.task,),
        instruction_table=None,
        statistics=_statistics(vectors, lenient),
        # When and by which version this description was made says nothing about the data.
        provenance=dataclasses.replace(layout.provenance, version="", created=""),
        image_orientation=layout.image_orientation,
        _arrays=arrays,
        _readers=_readers(location, arrays, layout.features),
        _vectors=vectors,
    )


def _statistics(vectors: Mapping[str, np.ndarray], lenient: bool) -> Statistics:
    if lenient:
        vectors = {key: x[np.isfinite(x).all(axis=1)] for key, x in vectors.items()}
    return compute_statistics(vectors)


def _readers(
    location: Location, arrays: Mapping[str, reading.ZarrArray], features: Features
) -> dict[str, FrameReader | None]:
    return {
        key: frame_reader(location, arrays[key]) if arrays[key].dtype == np.uint8 else None
        for key in schema.image_keys(features)
    }


def _read_data(
    location: Location,
    group: zarr.Group,
    keys: Mapping[str, str],
    features: Features,
    episodes: int | None,
    lenient: bool,
) -> tuple[np.ndarray, dict[str, reading.ZarrArray], dict[str, np.ndarray], list[str]]:
    """Open and check all arrays, cheapest checks first; return episode ends, arrays, vectors and notes."""
    ends = reading.read_array(location, reading.open_array(group, location, schema.EPISODE_ENDS), episodes)
    reading.check_episode_ends(location, ends)
    if episodes is not None and len(ends) < episodes:
        raise DataError(
            f"{location} has {episodes} episodes, but ends for {len(ends)}; copy or make the store again"
        )
    ends = ends.astype(np.int64)
    steps = int(ends[-1])
    arrays = {key: reading.open_array(group, location, f"data/{keys[key]}") for key in features}
    for key, array in arrays.items():
        reading.check_shape(key, array, features[key])
    reading.check_lengths(location, arrays.values(), steps, spare=episodes is not None)
    notes = []
    if spare := max(array.shape[0] for array in arrays.values()) - steps:
        notes.append(f"{spare} steps of an episode that was never acknowledged were dropped")
    if not lenient:
        for key in schema.image_keys(features):
            reading.check_images(location, arrays[key], steps)
    read = reading.read_readable if lenient else reading.read_array
    vectors = {
        key: read(location, arrays[key], steps).astype(np.float32, copy=False).reshape(steps, -1)
        for key in schema.vector_keys(features)
    }
    if not lenient:
        reading.check_finite(vectors, ends)
    return ends, arrays, vectors, notes
