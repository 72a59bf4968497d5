"""Writing a demonstration store: all of it appears at its path at once, or nothing does."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec

from mode_datasets import schema
from mode_datasets.schema import Provenance
from mode_policy.errors import DataError
from mode_policy.normalization import compute_statistics, statistics_to_json
from mode_policy.types import Episode, Features, InstructionTable, Task

#: Images per shard, which is one file: few files, and a bounded buffer while writing.
SHARD_FRAMES = 1000

#: Bytes per chunk of a vector, which is read as a whole.
VECTOR_CHUNK_BYTES = 8 * 2**20


class StoreWriter:
    """Write episodes to a new store; use it as a context manager.

    The store grows in a hidden sibling, ``.<name>.partial-<pid>``, and is renamed to ``path`` when the
    ``with`` block ends well. After an exception the sibling is removed; a killed process leaves it behind, to
    be deleted by hand. Images go to disk shard by shard; vectors wait in memory, as they do in training.

    Args:
        path: Folder of the new store.
        features: Feature key → its description; each episode brings exactly these.
        fps: Control rate in Hz.
        provenance: Where the demonstrations come from.
        overwrite: Replace a store that is already at ``path``, once the new one is complete.

    Raises:
        DataError: if the features are malformed, or something is at ``path`` that may not be replaced.
    """

    def __init__(
        self,
        path: Path | str,
        features: Features,
        fps: float,
        provenance: Provenance,
        overwrite: bool = False,
    ) -> None:
        schema.check_features(features)
        if not fps > 0:
            raise DataError(f"fps is {fps}; it must be the control rate in Hz, above 0")
        self.path = Path(path).absolute()
        self.features = dict(features)
        self.fps = fps
        self.provenance = provenance
        self.overwrite = overwrite
        self._check_free_path()
        self._partial = self._sibling("partial")
        self._group: zarr.Group | None = None
        self._tasks: dict[str, Task] = {}
        self._lengths: list[int] = []
        self._episode_tasks: list[int] = []
        self._episode_seeds: list[int] = []
        self._vectors: dict[str, list[np.ndarray]] = {key: [] for key in schema.vector_keys(features)}
        self._images: dict[str, _ImageColumn] = {}
        self._instructions: InstructionTable | None = None

    def __enter__(self) -> Self:
        with self._writing():
            # In containers, a process that was killed often had the same number as this one.
            shutil.rmtree(self._partial, ignore_errors=True)
            self._partial.mkdir(parents=True)
            self._group = zarr.create_group(str(self._partial), zarr_format=3)
            for key in schema.image_keys(self.features):
                self._images[key] = _ImageColumn(self._group, key, self.features[key].shape)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None and self._group is not None:
                self.finish()
        finally:
            self._abandon()

    def append(self, episode: Episode) -> None:
        """Append one episode.

        Raises:
            DataError: if its keys, lengths, shapes, types or values do not fit (nothing is appended then, and
                the writer can go on), or if writing fails (the writer is closed then).
        """
        self._open_group()
        self._check(episode)
        self._tasks.setdefault(episode.task.name, episode.task)
        with self._writing():
            for key, column in self._images.items():
                column.append(episode.arrays[key])
        for key, parts in self._vectors.items():
            parts.append(np.array(episode.arrays[key]))
        self._lengths.append(len(episode))
        self._episode_tasks.append(list(self._tasks).index(episode.task.name))
        self._episode_seeds.append(episode.seed)

    def set_instructions(self, table: InstructionTable) -> None:
        """Store an instruction table; by the end it must know the instruction of each task."""
        self._instructions = table

    def finish(self) -> None:
        """Complete the store and let it appear at its path; the ``with`` block calls this at its end.

        Raises:
            DataError: if there are no episodes, the instruction table lacks a task, or writing fails.
        """
        group = self._open_group()
        if not self._lengths:
            raise DataError(f"no episodes were written to {self.path}; there is nothing to store")
        tasks = list(self._tasks.values())
        if self._instructions is not None:
            self._instructions.index([task.instruction for task in tasks])
        vectors = {key: np.concatenate(parts) for key, parts in self._vectors.items()}
        self._vectors.clear()
        attributes = {
            "schema_version": schema.SCHEMA_VERSION,
            "features": {key: feature.to_json() for key, feature in self.features.items()},
            "fps": self.fps,
            "tasks": [{"name": task.name, "instruction": task.instruction} for task in tasks],
            "instructions": self._instruction_attributes(),
            "statistics": {
                "values": statistics_to_json(compute_statistics(vectors)),
                "computed_from": schema.fingerprint(vectors),
            },
            "provenance": self.provenance.to_json(),
        }
        with self._writing():
            for column in self._images.values():
                column.flush()
            for key, x in vectors.items():
                _write_array(group, f"data/{key}", x)
            _write_array(group, schema.EPISODE_ENDS, np.cumsum(self._lengths, dtype=np.int64))
            _write_array(group, schema.EPISODE_TASK, np.array(self._episode_tasks, dtype=np.int64))
            _write_array(group, schema.EPISODE_SEED, np.array(self._episode_seeds, dtype=np.int64))
            if self._instructions is not None:
                embeddings = self._instructions.embeddings.detach().cpu().float().numpy()
                _write_array(group, schema.INSTRUCTION_EMBEDDINGS, embeddings)
            group.update_attributes(attributes)
            _sync_tree(self._partial)
            self._publish()
        self._group = None

    def _instruction_attributes(self) -> dict[str, object] | None:
        table = self._instructions
        return None if table is None else {"encoder": table.encoder, "texts": list(table.instructions)}

    def _check(self, episode: Episode) -> None:
        where = f"episode {len(self._lengths)}"
        schema.check_episode(episode, self.features, where)
        known = self._tasks.get(episode.task.name, episode.task)
        if known != episode.task:
            raise DataError(
                f"{where}: task {known.name!r} has the instruction {known.instruction!r} in earlier "
                f"episodes and {episode.task.instruction!r} here; give tasks distinct names"
            )

    def _open_group(self) -> zarr.Group:
        if self._group is None:
            raise DataError(f"the writer of {self.path} is not open; use `with StoreWriter(...) as writer`")
        return self._group

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Turn failures of the file system into an error that says what to do, and give the space back."""
        try:
            yield
        except OSError as error:
            folder = next(p for p in self._partial.parents if p.exists())
            free = shutil.disk_usage(folder).free
            self._abandon()
            raise DataError(
                f"cannot write {self.path}: {error.strerror or error} ({free / 2**20:.1f} MiB were free). "
                "Nothing was stored; free space there or write to another folder"
            ) from error

    def _abandon(self) -> None:
        """Close the writer and remove what it has written so far; does nothing after success."""
        self._group = None
        self._vectors.clear()
        self._images.clear()
        shutil.rmtree(self._partial, ignore_errors=True)

    def _check_free_path(self) -> None:
        if not os.path.lexists(self.path):
            return
        if not self.overwrite:
            raise DataError(f"{self.path} exists; choose another name, or replace it with overwrite=True")
        # Replacing means deleting a folder: never one that was not a store.
        if not ((self.path / "zarr.json").is_file() or (self.path / ".zgroup").is_file()):
            raise DataError(
                f"{self.path} exists and is no zarr store, so it is not replaced; choose another name"
            )

    def _sibling(self, role: str) -> Path:
        return self.path.with_name(f".{self.path.name}.{role}-{os.getpid()}")

    def _publish(self) -> None:
        self._check_free_path()
        replaced = self._sibling("replaced")
        if self.path.exists():
            os.rename(self.path, replaced)
        try:
            os.rename(self._partial, self.path)
        except OSError:
            if replaced.exists():
                os.rename(replaced, self.path)
            raise
        _sync(self.path.parent)
        shutil.rmtree(replaced, ignore_errors=True)


class _ImageColumn:
    """One image feature on its way to disk, a whole shard at a time."""

    def __init__(self, group: zarr.Group, key: str, shape: tuple[int, ...]) -> None:
        self._array = group.create_array(
            f"data/{key}",
            shape=(0, *shape),
            dtype="uint8",
            chunks=(1, *shape),
            shards=(SHARD_FRAMES, *shape),
            # Shuffling bytes does nothing for single bytes.
            compressors=[BloscCodec(cname="lz4", clevel=5, shuffle="noshuffle"), Crc32cCodec()],
            config={"write_empty_chunks": True},
        )
        self._buffer = np.empty((SHARD_FRAMES, *shape), dtype=np.uint8)
        self._filled = 0

    def append(self, images: np.ndarray) -> None:
        """Take images ``(T, H, W, 3)``; write each shard that fills up."""
        while len(images):
            head, images = np.split(images, [SHARD_FRAMES - self._filled])
            self._buffer[self._filled : self._filled + len(head)] = head
            self._filled += len(head)
            if self._filled == SHARD_FRAMES:
                self.flush()

    def flush(self) -> None:
        """Write what is buffered; only the last shard may be partly filled."""
        start = self._array.shape[0]
        if self._filled:
            self._array.resize((start + self._filled, *self._array.shape[1:]))
            self._array[start:] = self._buffer[: self._filled]
        self._filled = 0


def _write_array(group: zarr.Group, name: str, x: np.ndarray) -> None:
    """Write an array in chunks with a checksum each, so that a damaged file is found and named."""
    rows = max(1, VECTOR_CHUNK_BYTES // max(1, x[:1].nbytes))
    group.create_array(
        name,
        data=x,
        chunks=(min(rows, len(x)), *x.shape[1:]),
        compressors=[BloscCodec(cname="lz4", clevel=5, shuffle="shuffle"), Crc32cCodec()],
        # Readers take a missing file for damage, so chunks of zeros are written too.
        config={"write_empty_chunks": True},
    )


def _sync_tree(folder: Path) -> None:
    for root, _, files in os.walk(folder):
        for name in files:
            _sync(Path(root) / name)
        _sync(Path(root))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
