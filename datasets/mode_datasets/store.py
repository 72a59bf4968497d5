"""Demonstrations on disk: a zarr group that is validated when it is opened, and read in place."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr

from mode_datasets import reading, schema
from mode_datasets.schema import Provenance, ReplayBufferLayout
from mode_policy.errors import DataError, did_you_mean
from mode_policy.normalization import Statistics, compute_statistics, statistics_from_json
from mode_policy.types import Episode, Feature, Features, InstructionTable, Task

#: Rows that are converted at once when a whole image array is loaded.
_BLOCK = 1000


@dataclass(frozen=True, kw_only=True, eq=False)
class DemonstrationStore:
    """Demonstrations, opened by `open_store`. ``N`` episodes, ``T`` steps in all.

    Attributes:
        path: The store's folder.
        features: What each step holds.
        fps: Control rate in Hz.
        episode_ends: int64 ``(N,)``, one past the last step of each episode.
        episode_tasks: int64 ``(N,)``, row of ``tasks``.
        episode_seeds: int64 ``(N,)``, seed of the environment's reset, or -1.
        tasks: The task table.
        instruction_table: Embedded instructions, or None where the store knows none.
        statistics: Statistics of each low-dimensional feature over all episodes, raw units.
        provenance: Where the data come from.
    """

    path: Path
    features: Features
    fps: float
    episode_ends: np.ndarray
    episode_tasks: np.ndarray
    episode_seeds: np.ndarray
    tasks: tuple[Task, ...]
    instruction_table: InstructionTable | None
    statistics: Statistics
    provenance: Provenance
    _arrays: Mapping[str, reading.ZarrArray]
    _vectors: Mapping[str, np.ndarray]

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

    def frames(self, key: str, steps: np.ndarray) -> np.ndarray:
        """Read images at chosen steps (any order, repetitions allowed), uint8 ``(len(steps), H, W, 3)``.

        Raises:
            DataError: if there is no such feature, or a chunk file cannot be decoded.
        """
        return reading.read_images(self.path, self.array(key), steps)

    def all_frames(self, key: str) -> np.ndarray:
        """Read all images of a feature into memory, uint8 ``(T, H, W, 3)``; raises as `frames` does."""
        images = np.empty((self.num_steps, *self._feature(key).shape), dtype=np.uint8)
        for start in range(0, self.num_steps, _BLOCK):
            steps = np.arange(start, min(start + _BLOCK, self.num_steps))
            images[steps] = self.frames(key, steps)
        return images

    def episode(self, index: int) -> Episode:
        """Return one episode with all its features, images included.

        Raises:
            DataError: if ``index`` is not in ``[0, N)``, or a chunk file cannot be decoded.
        """
        if not 0 <= index < self.num_episodes:
            raise DataError(f"episode {index} of {self.path} does not exist; it has {self.num_episodes}")
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
            "path": str(self.path),
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
            raise DataError(f"{self.path} has no feature {key!r}.{did_you_mean(key, self.features)}")
        return self.features[key]


def open_store(path: Path | str, layout: ReplayBufferLayout | None = None) -> DemonstrationStore:
    """Open a store and check all that can be checked without reading every image.

    Args:
        path: Folder of a store that `StoreWriter` made, or of a foreign ``ReplayBuffer``.
        layout: Description of a foreign store, which is read in place and never written to.

    Raises:
        DataError: naming what is wrong: a missing or foreign store, a newer schema, arrays whose lengths or
            shapes disagree, missing or corrupt files, objects, values that are not finite, or statistics that
            do not belong to the data.
    """
    path = Path(path)
    group = reading.open_group(path)
    if "schema_version" in group.attrs:
        if layout is not None:
            raise DataError(f"{path} describes itself; open it without a layout")
        return _open_native(path, group)
    if layout is None:
        raise DataError(
            f"{path} was not written by this package and does not say what its arrays mean: "
            f"{', '.join(reading.array_names(path)) or 'it has none'}. Describe it with a "
            "`ReplayBufferLayout` (in a task's configuration: `dataset.keys`, such as "
            "`observation.state: state`)"
        )
    return _open_foreign(path, group, layout)


def _open_native(path: Path, group: zarr.Group) -> DemonstrationStore:
    attributes: dict[str, Any] = dict(group.attrs)
    version = attributes["schema_version"]
    if not isinstance(version, int) or version > schema.SCHEMA_VERSION:
        raise DataError(
            f"{path} has schema version {version!r}, this package reads up to {schema.SCHEMA_VERSION}; "
            "upgrade the package"
        )
    try:
        features = {key: Feature.from_json(value) for key, value in attributes["features"].items()}
        tasks = tuple(Task(**row) for row in attributes["tasks"])
        provenance = Provenance(**attributes["provenance"])
        fps = float(attributes["fps"])
        statistics = statistics_from_json(attributes["statistics"]["values"])
        computed_from = attributes["statistics"]["computed_from"]
        instructions = attributes["instructions"]
        encoder, texts = (instructions["encoder"], tuple(instructions["texts"])) if instructions else ("", ())
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"the attributes of {path} are damaged ({type(error).__name__}: {error}); make the store again"
        ) from error
    schema.check_features(features)
    ends, arrays, vectors = _read_data(path, group, {key: key for key in features}, features)
    if schema.fingerprint(vectors) != computed_from:
        raise DataError(
            f"statistics of {path} were computed from other data than it holds; make the store again"
        )
    episode_tasks, episode_seeds = (
        reading.read_array(path, reading.open_array(group, path, name))
        for name in (schema.EPISODE_TASK, schema.EPISODE_SEED)
    )
    if not len(episode_tasks) == len(episode_seeds) == len(ends):
        raise DataError(
            f"{path} has {len(ends)} episodes, but tasks for {len(episode_tasks)} and seeds for "
            f"{len(episode_seeds)}; make the store again"
        )
    unknown = np.flatnonzero((episode_tasks < 0) | (episode_tasks >= len(tasks)))
    if len(unknown):
        raise DataError(
            f"episode {unknown[0]} of {path} has task {episode_tasks[unknown[0]]}, the table has "
            f"{len(tasks)}; make the store again"
        )
    table = None
    if texts:
        embeddings = reading.read_array(path, reading.open_array(group, path, schema.INSTRUCTION_EMBEDDINGS))
        table = InstructionTable(
            encoder=encoder, instructions=texts, embeddings=torch.as_tensor(embeddings, dtype=torch.float32)
        )
    return DemonstrationStore(
        path=path,
        features=features,
        fps=fps,
        episode_ends=ends,
        episode_tasks=episode_tasks,
        episode_seeds=episode_seeds,
        tasks=tasks,
        instruction_table=table,
        statistics=statistics,
        provenance=provenance,
        _arrays=arrays,
        _vectors=vectors,
    )


def _open_foreign(path: Path, group: zarr.Group, layout: ReplayBufferLayout) -> DemonstrationStore:
    ends, arrays, vectors = _read_data(path, group, layout.keys, layout.features)
    return DemonstrationStore(
        path=path,
        features=dict(layout.features),
        fps=layout.fps,
        episode_ends=ends,
        episode_tasks=np.zeros(len(ends), dtype=np.int64),
        episode_seeds=np.full(len(ends), -1, dtype=np.int64),
        tasks=(layout.task,),
        instruction_table=None,
        statistics=compute_statistics(vectors),
        provenance=layout.provenance,
        _arrays=arrays,
        _vectors=vectors,
    )


def _read_data(
    path: Path, group: zarr.Group, keys: Mapping[str, str], features: Features
) -> tuple[np.ndarray, dict[str, reading.ZarrArray], dict[str, np.ndarray]]:
    """Open and check all arrays, cheapest checks first; return episode ends, arrays and loaded vectors."""
    ends = reading.read_array(path, reading.open_array(group, path, schema.EPISODE_ENDS))
    reading.check_episode_ends(path, ends)
    ends = ends.astype(np.int64)
    arrays = {key: reading.open_array(group, path, f"data/{keys[key]}") for key in features}
    for key, array in arrays.items():
        reading.check_shape(key, array, features[key])
    reading.check_lengths(path, arrays.values(), int(ends[-1]))
    for key in schema.image_keys(features):
        reading.check_images(path, arrays[key])
    vectors = {
        key: reading.read_array(path, arrays[key]).astype(np.float32, copy=False).reshape(ends[-1], -1)
        for key in schema.vector_keys(features)
    }
    reading.check_finite(vectors, ends)
    return ends, arrays, vectors
