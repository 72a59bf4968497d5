"""Growing one array of a store, a whole file at a time, so that a kill at any moment harms nothing.

Rows that have been committed are only ever rewritten together with those that follow them in the same file,
with the same values, and zarr replaces a file in one step.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec

from mode_datasets.profiles import Profile

#: Bytes per file of vectors: the last one is written again with each commit.
VECTOR_BYTES = 2**20


class Column:
    """Appends rows to a zarr array.

    Args:
        root: The store's folder.
        array: The array; what it holds beyond ``rows`` is given up.
        rows: Rows that are committed.
    """

    def __init__(self, root: Path, array: zarr.Array[Any], rows: int) -> None:
        self._root = root
        self._array = array
        self._block = (array.shards or array.chunks)[0]
        self._start = rows - rows % self._block  # first row of the file that is being filled
        self._filled = rows - self._start
        self._buffer = np.empty((self._block, *array.shape[1:]), array.dtype)
        self._buffer[: self._filled] = array[self._start : rows]
        self._written = self._filled  # rows of the buffer that are on disk

    @property
    def rows(self) -> int:
        """Rows appended so far, on disk or not."""
        return self._start + self._filled

    def append(self, x: np.ndarray) -> None:
        """Take rows ``(n, ...)``; write each file that fills up."""
        while len(x):
            head, x = np.split(x, [self._block - self._filled])
            self._buffer[self._filled : self._filled + len(head)] = head
            self._filled += len(head)
            if self._filled == self._block:
                self.flush()
                self._start += self._block
                self._filled = self._written = 0

    def flush(self) -> None:
        """Put all rows on disk, and wait until they are there."""
        if self._filled == self._written:
            return
        self._array.resize((self.rows, *self._array.shape[1:]))
        self._array[self._start :] = self._buffer[: self._filled]
        self._written = self._filled
        key = self._array.metadata.encode_chunk_key(
            (self._start // self._block, *(0,) * (self._array.ndim - 1))
        )
        sync(self._root / self._array.path / key)
        sync(self._root / self._array.path / "zarr.json")


def create_vectors(group: zarr.Group, name: str, shape: tuple[int, ...], dtype: str) -> zarr.Array[Any]:
    """Create an empty array of vectors or numbers, ``(0, *shape)``."""
    rows = max(1, VECTOR_BYTES // max(1, int(np.prod(shape)) * np.dtype(dtype).itemsize))
    return group.create_array(
        name,
        shape=(0, *shape),
        dtype=dtype,
        chunks=(rows, *shape),
        # A checksum each, so that a damaged file is found and named.
        compressors=[BloscCodec(cname="lz4", clevel=5, shuffle="shuffle"), Crc32cCodec()],
        # Readers take a missing file for damage, so chunks of zeros are written too.
        config={"write_empty_chunks": True},
    )


def create_images(
    group: zarr.Group, name: str, shape: tuple[int, int, int], profile: Profile
) -> zarr.Array[Any]:
    """Create an empty array of images, uint8 ``(0, H, W, 3)``."""
    return group.create_array(
        name,
        shape=(0, *shape),
        dtype="uint8",
        chunks=(profile.chunk_frames, *shape),
        shards=(profile.shard_frames(shape), *shape),
        config={"write_empty_chunks": True},
        **profile.codecs,
    )


def sync(path: Path) -> None:
    """Wait until a file or folder is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
