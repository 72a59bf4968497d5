"""Random access to frames: the fast path beside zarr's own reading, and equal to it bit for bit.

Reading one small chunk through zarr costs about a millisecond, whatever its codec; most of that is
bookkeeping that never changes. Here a shard's index is read once, and a frame is then one ``pread``, one
checksum and one decompression straight into the batch.

Legend: T frames of the array, n frames asked for.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import google_crc32c
import numcodecs
import numpy as np
import zarr
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, ShardingCodec, ZstdCodec

from mode_datasets.location import Handle, Location
from mode_policy.errors import DataError

#: Files that one reader keeps open.
MAX_OPEN_FILES = 64

# Chunks are small: handing one to Blosc's threads costs more than decoding it, and they do not survive a
# fork.
numcodecs.blosc.use_threads = False

#: Marks a chunk that was never written, in a shard's index.
_ABSENT = 2**64 - 1


class FrameReader:
    """Reads frames of one array that is chunked along time only.

    Build it with `frame_reader`. It can be pickled and forked: each process opens files of its own.

    Args:
        location: Of the store.
        name: Of the array, such as ``data/observation.images.front``.
        shape: ``(T, *frame)``.
        dtype: Of its values.
        chunk_frames: Frames of a chunk.
        shard_frames: Frames of a file; equal to ``chunk_frames`` where there are no shards.
        files: Names of the files, in the order of their frames.
        codecs: Names of a chunk's codecs, in the order of decoding.
        sharded: Whether a file is a shard, with an index at its end.
    """

    def __init__(
        self,
        location: Location,
        name: str,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        chunk_frames: int,
        shard_frames: int,
        files: Sequence[str],
        codecs: Sequence[str],
        sharded: bool,
    ) -> None:
        self.location = location
        self.name = name
        self.shape = shape
        self.dtype = dtype
        self.chunk_frames = chunk_frames
        self.shard_frames = shard_frames
        self._files = files
        self._codecs = tuple(codecs)
        self._sharded = sharded
        self._open: OrderedDict[int, tuple[Handle, list[list[int]]]] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        """Leave the open files behind."""
        return self.__dict__ | {"_open": OrderedDict()}

    def read(self, steps: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """Read frames in any order, repetitions allowed.

        Args:
            steps: int ``(n,)`` in ``[0, T)``.
            out: where to put them, contiguous ``(n, *frame)``; a new array by default.

        Raises:
            DataError: if a file is missing, cut short or damaged; it is named.
        """
        frame = self.shape[1:]
        out = np.empty((len(steps), *frame), self.dtype) if out is None else out
        chunk_of, offset_of = np.divmod(steps, self.chunk_frames)
        chunks, first, inverse = np.unique(chunk_of, return_index=True, return_inverse=True)
        wanted = [self._range(int(chunk)) for chunk in chunks]
        stored = self.location.read([w for w in wanted if w is not None])
        scratch = np.empty((self.chunk_frames, *frame), self.dtype) if self.chunk_frames > 1 else None
        for i, chunk in enumerate(chunks):
            target = out[first[i]] if scratch is None else scratch
            if wanted[i] is None:
                target.fill(0)
            else:
                self._decode(int(chunk), next(stored), target)
            if scratch is not None:
                rows = np.flatnonzero(inverse == i)
                out[rows] = scratch[offset_of[rows]]
        if scratch is None and len(chunks) < len(steps):
            out[:] = out[first[inverse]]
        while len(self._open) > MAX_OPEN_FILES:
            _, (oldest, _) = self._open.popitem(last=False)
            oldest.close()
        return out

    def close(self) -> None:
        """Close all files; they are opened again when needed."""
        for handle, _ in self._open.values():
            handle.close()
        self._open.clear()

    def _range(self, chunk: int) -> tuple[Handle, int, int] | None:
        """Where a chunk's bytes are, or None if it was never written."""
        number, within = divmod(chunk * self.chunk_frames, self.shard_frames)
        handle, index = self._file(number)
        start, length = index[within // self.chunk_frames]
        return None if start == _ABSENT else (handle, start, length)

    def _file(self, number: int) -> tuple[Handle, list[list[int]]]:
        """Return an open file and its index, both from the same moment."""
        if number in self._open:
            self._open.move_to_end(number)
            return self._open[number]
        try:
            handle = self.location.open(self._files[number])
        except FileNotFoundError:
            raise DataError(
                f"array {self.name!r} of {self.location} lacks its chunk file {self._files[number]}; copy or "
                "make the store again"
            ) from None
        entry = handle, self._index(number, handle) if self._sharded else [[0, handle.size]]
        self._open[number] = entry
        return entry

    def _index(self, number: int, handle: Handle) -> list[list[int]]:
        """Read a shard's index: offset and length of each chunk, then a CRC-32C (zarr 3, sharding)."""
        size = 16 * (self.shard_frames // self.chunk_frames)
        start = handle.size - size - 4
        raw = next(self.location.read([(handle, start, size + 4)])) if start >= 0 else b""
        if len(raw) != size + 4 or not intact(raw):
            raise self._damaged(number, "its index is cut short or damaged")
        index = np.frombuffer(raw, "<u8", size // 8).reshape(-1, 2)
        inside = (index[:, 0] == _ABSENT) | (index.sum(1) <= start)
        if not inside.all():
            raise self._damaged(number, "its index points outside the file")
        entries: list[list[int]] = index.tolist()
        return entries

    def _decode(self, chunk: int, data: bytes, target: np.ndarray) -> None:
        try:
            decode(self._codecs, data, target)
        except Exception as error:
            number = chunk * self.chunk_frames // self.shard_frames
            raise self._damaged(number, str(error)) from error

    def _damaged(self, number: int, why: str) -> DataError:
        return DataError(
            f"array {self.name!r}: {self.location}/{self._files[number]} is corrupt or cut short ({why}); "
            "copy or make the store again"
        )


def decode(codecs: Sequence[str], data: bytes | memoryview, target: np.ndarray) -> None:
    """Undo a chunk's codecs and put its values into ``target``, a contiguous array.

    Raises:
        ValueError: if the checksum or the size is wrong (other errors come from the codecs themselves).
    """
    for codec in codecs:
        if codec == "crc32c":
            if not intact(data):
                raise ValueError("wrong checksum")
            data = memoryview(data)[:-4]
        elif codec == "blosc":
            size = int.from_bytes(data[4:8], "little")  # of the decompressed data, see Blosc's chunk format
            if size != target.nbytes:
                raise ValueError(f"{size} bytes instead of {target.nbytes}")
            numcodecs.blosc.decompress(data, target)
            return
        elif codec == "zstd":
            declared = _zstd_size(data)
            if declared not in (None, target.nbytes):
                raise ValueError(f"{declared} bytes instead of {target.nbytes}")
            numcodecs.zstd.decompress(data, target)
            return
        elif codec == "imagecodecs_jpeg":
            from imagecodecs import jpeg8_decode

            jpeg8_decode(data, out=target.reshape(target.shape[-3:]))
            return
    if len(data) != target.nbytes:
        raise ValueError(f"{len(data)} bytes instead of {target.nbytes}")
    target.reshape(-1).view(np.uint8)[:] = np.frombuffer(data, np.uint8)


def _zstd_size(data: bytes | memoryview) -> int | None:
    """Return the decompressed size that a frame declares (RFC 8878, 3.1.1.1), or None if it does not."""
    descriptor = data[4]
    single_segment = descriptor >> 5 & 1
    length = (single_segment, 2, 4, 8)[descriptor >> 6]
    start = 5 + (1 - single_segment) + (0, 1, 2, 4)[descriptor & 3]
    size = int.from_bytes(data[start : start + length], "little")
    return None if not length else size + 256 * (length == 2)


def intact(data: bytes | memoryview) -> bool:
    """Whether the last four bytes are the CRC-32C of those before.

    The checksum of data followed by its own checksum is always the same number, so nothing has to be cut off.
    """
    return int(google_crc32c.value(bytes(data))) == 0x48674BC7


def frame_reader(location: Location, array: zarr.Array[Any]) -> FrameReader | None:
    """Return the fast reader of an array, or None if its layout is one that only zarr itself reads."""
    metadata = array.metadata
    if metadata.zarr_format != 3 or not array.ndim or array.dtype.byteorder == ">":
        return None
    if array.chunks[1:] != array.shape[1:] or np.any(array.fill_value != 0):
        return None
    outer = list(metadata.codecs)
    sharding = outer[0] if isinstance(outer[0], ShardingCodec) else None
    if sharding is not None:
        if len(outer) > 1 or sharding.index_location != "end":
            return None
        if [type(c) for c in sharding.index_codecs] != [BytesCodec, Crc32cCodec]:
            return None
    names = _decoding_order(sharding.codecs if sharding is not None else outer)
    if names is None:
        return None
    shard_frames = (array.shards or array.chunks)[0]
    rest = (0,) * (array.ndim - 1)
    files = [
        f"{array.path}/{metadata.encode_chunk_key((i, *rest))}"
        for i in range(-(-array.shape[0] // shard_frames))
    ]
    return FrameReader(
        location,
        array.path,
        array.shape,
        array.dtype,
        array.chunks[0],
        shard_frames,
        files,
        names,
        sharding is not None,
    )


def _decoding_order(codecs: Sequence[Any]) -> list[str] | None:
    """Return the names of codecs from last to first, or None if one (or the order) is not known here."""
    serializer, *compressors = codecs
    names = []
    for codec in reversed(compressors):
        if isinstance(codec, Crc32cCodec):
            names.append("crc32c")
        elif isinstance(codec, BloscCodec):
            names.append("blosc")
        elif isinstance(codec, ZstdCodec):
            names.append("zstd")
        else:
            return None
    serial = serializer.to_dict()["name"]
    if serial == "imagecodecs_jpeg":
        names.append(serial)
    elif serial != "bytes":
        return None
    # What decompresses writes into the batch, so nothing may follow it.
    ends = [i for i, name in enumerate(names) if name != "crc32c"]
    return names if not ends or ends == [len(names) - 1] else None
