"""Writing Diffusion Policy's ``ReplayBuffer``: zarr format 2, codec and chunks as its own preset ``disk``.

Episodes count from the moment that ``meta/episode_ends`` names them, so an interrupted conversion goes on
where it stopped.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import zarr

from mode_datasets import schema
from mode_datasets.convert.description import NAME, Description
from mode_datasets.convert.sink import PartialSink, SinkOptions, remove
from mode_policy.errors import DataError
from mode_policy.types import ACTION, IMAGE_PREFIX, Episode

#: Bytes of a chunk, at most, as in Diffusion Policy.
CHUNK_BYTES = 2 * 10**6

_META = (schema.EPISODE_TASK, schema.EPISODE_SEED, schema.EPISODE_ENDS)


class ReplayBufferSink(PartialSink):
    """Write a replay buffer; arrays carry the last part of their feature's name.

    Raises:
        DataError: if two features would share an array.
    """

    resumable = True

    def __init__(self, path: Path, options: SinkOptions) -> None:
        super().__init__(path, options, "replay_buffer")
        self.keys = {key: (_name(key),) for key in options.features}
        names = [names[0] for names in self.keys.values()]
        if twice := {name for name in names if names.count(name) > 1}:
            raise DataError(f"two features would both be written as {sorted(twice)[0]!r}; rename one of them")

    def _begin(self) -> None:
        if (self.partial / ".zgroup").is_file():
            self._group = zarr.open_group(str(self.partial), mode="r+", zarr_format=2)
            self._take_up()
            return
        remove(self.partial)
        self._group = zarr.create_group(str(self.partial), zarr_format=2)
        codec = numcodecs.Blosc(cname="zstd", clevel=5, shuffle=numcodecs.Blosc.BITSHUFFLE)
        for key, feature in self.options.features.items():
            self._create(f"data/{self.keys[key][0]}", feature.shape, feature.dtype, codec)
        for name in _META:
            self._create(name, (), "int64", codec)
        self._describe()

    def _create(self, name: str, shape: tuple[int, ...], dtype: str, codec: Any) -> None:
        row = max(1, int(np.prod(shape)) * np.dtype(dtype).itemsize)
        self._group.create_array(
            name,
            shape=(0, *shape),
            dtype=dtype,
            chunks=(max(1, CHUNK_BYTES // row), *shape),
            compressors=codec,
            config={"write_empty_chunks": True},
        )

    def _array(self, name: str) -> Any:
        # As when they were created: this setting is not kept in the files.
        array: Any = self._group[name]
        return array.with_config({"write_empty_chunks": True})

    def _take_up(self) -> None:
        """Go on after the last episode whose end is known, and drop what was written beyond it."""
        described = Description.loads(self._group.attrs.get(NAME))
        if described is None or described.features != self.options.features:
            raise DataError(
                f"{self.partial} was left by an interrupted conversion of something else; delete it, or "
                "choose another destination"
            )
        ends = np.asarray(self._array(schema.EPISODE_ENDS)[:])
        rows = np.asarray(self._array(schema.EPISODE_TASK)[: len(ends)])
        # A kill between growing an array and writing its last value leaves a zero.
        good = np.flatnonzero(np.diff(ends, prepend=0) <= 0)
        episodes = int(good[0]) if len(good) else len(ends)
        steps = int(ends[episodes - 1]) if episodes else 0
        for name in [f"data/{names[0]}" for names in self.keys.values()] + list(_META):
            array = self._array(name)
            array.resize((episodes if name in _META else steps, *array.shape[1:]))
        count = int(rows[:episodes].max()) + 1 if episodes else 0
        self._tasks = {task.name: task for task in described.tasks[:count]}
        self._episodes = episodes

    def _write(self, episode: Episode) -> None:
        steps = len(episode)
        for key in self.options.features:
            self._array(f"data/{self.keys[key][0]}").append(episode.arrays[key])
        row = list(self._tasks).index(episode.task.name)
        self._describe()  # the task must be known before an episode refers to it
        ends = self._array(schema.EPISODE_ENDS)
        before = int(ends[-1]) if ends.shape[0] else 0
        for name, value in zip(_META, (row, episode.seed, before + steps), strict=True):
            self._array(name).append(np.array([value], dtype=np.int64))

    def _describe(self) -> None:
        text = self.describe(self.keys)
        if self._group.attrs.get(NAME) != text:
            self._group.attrs[NAME] = text

    def _complete(self) -> None:
        # Stores of Diffusion Policy carry no consolidated metadata; the group's own suffices.
        assert json.loads((self.partial / ".zgroup").read_text())["zarr_format"] == 2


def _name(key: str) -> str:
    if key == ACTION:
        return "action"
    if key.startswith(IMAGE_PREFIX):
        return key.removeprefix(IMAGE_PREFIX)
    return key.removeprefix("observation.")
