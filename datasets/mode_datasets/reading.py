"""Reading zarr arrays with suspicion: whatever is wrong with the files on disk becomes a `DataError`."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from mode_datasets.frames import frame_reader
from mode_datasets.location import LocalFolder, Location
from mode_policy.errors import DataError, did_you_mean
from mode_policy.types import Feature

ZarrArray = zarr.Array[Any]

#: Images that are held at once when a store is checked.
_CHECKED = 16


def open_group(location: Location) -> zarr.Group:
    """Open a zarr group (format 2 or 3) for reading.

    Raises:
        DataError: if it is missing or is no zarr group.
    """
    if not location.exists():
        names = []
        if isinstance(location, LocalFolder) and location.path.parent.is_dir():
            names = [p.name for p in location.path.parent.iterdir() if not p.name.startswith(".")]
        raise DataError(
            f"no demonstration store at {location}.{did_you_mean(location.name, names) if names else ''}"
        )
    try:
        # Consolidated metadata is a copy, and copies can be stale: each array's own file is what counts.
        return zarr.open_group(location.zarr_store(), mode="r", use_consolidated=False)
    except Exception as error:
        raise DataError(
            f"{location} is not a zarr group ({error}); give the folder that holds `data` and `meta`"
        ) from error


def array_names(location: Location) -> list[str]:
    """List the arrays of a store, such as ``data/action``, without opening any; none if it cannot list."""
    if not isinstance(location, LocalFolder):
        return []

    def is_array(folder: Path) -> bool:
        metadata = folder / "zarr.json"
        if not metadata.is_file():
            return (folder / ".zarray").is_file()
        try:
            return bool(json.loads(metadata.read_text())["node_type"] == "array")
        except (ValueError, KeyError, TypeError):
            return True  # opening it says what is wrong

    root = location.path
    return sorted(folder.relative_to(root).as_posix() for folder in root.glob("*/*") if is_array(folder))


def open_array(group: zarr.Group, location: Location, name: str) -> ZarrArray:
    """Open one array of the group at ``location`` without reading its values.

    Raises:
        DataError: if it is missing, its metadata is broken, or its values are not plain numbers.
    """
    way_out = (
        "only plain numbers are read, because objects and pickles can run code; write it again as numbers"
    )
    try:
        array = group[name]
    except KeyError:
        hint = did_you_mean(name, array_names(location))
        raise DataError(f"{location} has no array {name!r}.{hint}") from None
    except Exception as error:
        raise DataError(
            f"array {name!r} of {location} cannot be opened ({error}): its metadata is damaged, or "
            f"it does not hold numbers; {way_out}"
        ) from error
    if not isinstance(array, zarr.Array):
        raise DataError(
            f"{name!r} of {location} is a group of arrays; name one of {', '.join(array_names(location))}"
        )
    codecs = {getattr(codec, "codec_id", "") for codec in (*array.filters, *array.compressors)}
    if array.dtype.kind not in "fiub" or "pickle" in codecs:
        packed = " in pickles" if "pickle" in codecs else ""
        raise DataError(f"array {name!r} of {location} holds {array.dtype}{packed}; {way_out}")
    return array


def read_array(location: Location, array: ZarrArray, rows: int | None = None) -> np.ndarray:
    """Read a whole array of the store at ``location``, or its first ``rows`` (all, if there are fewer).

    Raises:
        DataError: if a chunk file is missing or cannot be decoded; the file is named.
    """
    rows = None if rows is None else min(rows, array.shape[0])
    declared = max(math.prod(array.shape), math.prod(array.chunks)) * array.dtype.itemsize
    if declared > (memory := os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")):
        raise DataError(
            f"array {array.path!r} of {location} declares {declared / 2**30:.3g} GiB, more than the "
            f"{memory / 2**30:.3g} GiB of this machine; its metadata are damaged, or it is not to be trusted"
        )
    check_chunk_files(location, array, rows)
    try:
        return np.asarray(array[...] if rows is None else array[:rows])
    except Exception as error:
        raise _unreadable(location, array, itertools.product(*_grid(array, rows)), error) from error


def blocks(array: ZarrArray, rows: int | None = None) -> Iterator[tuple[str, tuple[slice, ...]]]:
    """Yield each file of an array (of its first ``rows``), relative to the store, and the region it holds."""
    limits = array.shape if rows is None else (rows, *array.shape[1:])
    for block in itertools.product(*_grid(array, rows)):
        sizes = zip(block, _file_shape(array), limits, strict=True)
        yield _chunk_file(array, block), tuple(slice(i * n, min((i + 1) * n, end)) for i, n, end in sizes)


def read_block(location: Location, array: ZarrArray, file: str, region: tuple[slice, ...]) -> np.ndarray:
    """Read what one file of `blocks` holds.

    Raises:
        DataError: if it is missing, or cannot be decoded.
    """
    if not location.exists(file):
        raise DataError(f"{location}/{file} is missing")
    try:
        return np.asarray(array[region])
    except Exception as error:
        raise DataError(f"{location}/{file} is corrupt or cut short ({error})") from error


def read_readable(location: Location, array: ZarrArray, rows: int) -> np.ndarray:
    """Read the first ``rows`` of an array as float32, NaN where a file is missing or cannot be decoded."""
    values = np.full((rows, *array.shape[1:]), np.nan, np.float32)
    for file, region in blocks(array, rows):
        with contextlib.suppress(DataError):
            values[region] = read_block(location, array, file, region)
    return values


def read_rows(location: Location, array: ZarrArray, rows: np.ndarray) -> np.ndarray:
    """Read chosen rows (axis 0, any order, repetitions allowed) of an array.

    Raises:
        DataError: if a chunk file that holds one of them cannot be decoded; the file is named.
    """
    unique, inverse = np.unique(rows, return_inverse=True)
    try:
        return np.asarray(array.oindex[unique])[inverse]
    except Exception as error:
        blocks = sorted(set((unique // _file_shape(array)[0]).tolist()))
        raise _unreadable(location, array, itertools.product(blocks, *_grid(array)[1:]), error) from error


def check_chunk_files(location: Location, array: ZarrArray, rows: int | None = None) -> None:
    """Check that each chunk (of the first ``rows``) has its file: zarr itself would fill the gap in silence.

    Raises:
        DataError: naming the first missing file.
    """
    for block in itertools.product(*_grid(array, rows)):
        file = _chunk_file(array, block)
        if not location.exists(file):
            raise DataError(
                f"array {array.path!r} lacks its chunk file {location}/{file}, and would silently read as "
                f"{array.fill_value!r} there; copy or make the store again (with zarr's `write_empty_chunks`)"
            )


def read_images(location: Location, array: ZarrArray, rows: np.ndarray) -> np.ndarray:
    """Read chosen images as uint8 ``(len(rows), H, W, 3)``, whatever number type holds their 0…255.

    Raises:
        DataError: as `read_rows`, or if a value is outside 0…255.
    """
    images = read_rows(location, array, rows)
    if images.dtype == np.uint8 or not images.size:
        return images.astype(np.uint8, copy=False)
    low, high = images.min(), images.max()
    if not (low >= 0 and high <= 255):
        raise DataError(
            f"images {array.path!r} of {location} have values {low} … {high}; convert them to 0…255"
        )
    return np.rint(images).astype(np.uint8)


def check_images(location: Location, array: ZarrArray, num_rows: int) -> None:
    """Check the first ``num_rows`` of an image array without reading them all.

    One image of each shard is read: a shard's index is at its end, so this finds files that were cut short.
    Of a store far away, only the first and the last are; what is wrong with the others shows when they are
    read.

    Raises:
        DataError: if a chunk file is missing, a shard cannot be decoded, or the first image is scaled to 0…1.
    """
    reader = frame_reader(location, array)
    near = isinstance(location, LocalFolder)
    if near or reader is None:
        check_chunk_files(location, array, num_rows)
    rows = np.arange(0, num_rows, array.shards[0]) if array.shards else np.zeros(1, dtype=np.int64)
    looked_at = rows if near else np.unique(rows[[0, -1]])
    highest = []
    for part in np.array_split(looked_at, -(-len(looked_at) // _CHECKED)):
        images = read_rows(location, array, part) if reader is None else reader.read(part)
        highest.append(images.max(initial=0))
    if array.dtype.kind == "f" and 0 < (high := max(highest)) <= 1:
        raise DataError(f"images {array.path!r} of {location} are scaled to 0…{high}; convert them to 0…255")


def check_shape(name: str, array: ZarrArray, feature: Feature) -> None:
    """Check that an array ``(T, ...)`` holds the values of a feature.

    Raises:
        DataError: if images have another shape, or vectors another number of values.
    """
    shape = array.shape[1:]
    fits = shape == feature.shape if len(feature.shape) > 1 else np.prod(shape, dtype=int) == feature.shape[0]
    if array.ndim < 1 or not fits:
        raise DataError(
            f"array {array.path!r} has {shape} per step but feature {name!r} says {feature.shape}; "
            "correct the feature's shape or map another array to it"
        )


def check_episode_ends(location: Location, ends: np.ndarray) -> None:
    """Check that episode ends are int, one-dimensional, positive and strictly increasing.

    Raises:
        DataError: naming the first episode that breaks the rule.
    """
    if ends.ndim != 1 or ends.dtype.kind not in "iu" or len(ends) == 0:
        raise DataError(
            f"episode_ends of {location} is {ends.dtype} {ends.shape}; it must be int64 (episodes,)"
        )
    lengths = np.diff(ends.astype(np.int64), prepend=0)
    bad = np.flatnonzero(lengths <= 0)
    if len(bad):
        raise DataError(
            f"episode_ends of {location} is not strictly increasing: episode {bad[0]} would have "
            f"{lengths[bad[0]]} steps; make the store again"
        )


def check_lengths(
    location: Location, arrays: Iterable[ZarrArray], num_steps: int, spare: bool = False
) -> None:
    """Check that all arrays have as many rows as the episodes have steps, or more if ``spare``.

    Raises:
        DataError: if their lengths differ from each other or from ``num_steps``.
    """
    lengths = {array.path: array.shape[0] for array in arrays}
    if spare and min(lengths.values()) >= num_steps:
        return
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{name}: {n}" for name, n in lengths.items())
        raise DataError(
            f"arrays of {location} differ in length ({listed}); the store is incomplete, make it again"
        )
    length = next(iter(lengths.values()))
    if length != num_steps:
        what = "end beyond the data" if num_steps > length else "leave data over"
        raise DataError(
            f"episode_ends of {location} {what}: the last is {num_steps}, the arrays have {length} steps; "
            "copy or make the store again"
        )


def check_finite(vectors: dict[str, np.ndarray], ends: np.ndarray) -> None:
    """Check that no value is NaN or infinite.

    Raises:
        DataError: naming feature, episode, step in the episode and dimension of the first.
    """
    for key, x in vectors.items():
        bad = np.flatnonzero(~np.isfinite(x).all(axis=1))
        if len(bad):
            episode = int(np.searchsorted(ends, bad[0], side="right"))
            step = bad[0] - (ends[episode - 1] if episode else 0)
            dim = np.flatnonzero(~np.isfinite(x[bad[0]]))[0]
            raise DataError(
                f"{key!r} is {x[bad[0], dim]} in episode {episode}, step {step}, dimension {dim} "
                f"({len(bad)} such steps in all); remove or repair that episode"
            )


def _file_shape(array: ZarrArray) -> tuple[int, ...]:
    """Shape of what one file holds: a shard, or a chunk where there are no shards."""
    return array.shards or array.chunks


def _grid(array: ZarrArray, rows: int | None = None) -> list[range]:
    shape = array.shape if rows is None else (rows, *array.shape[1:])
    return [range(-(-n // size)) for n, size in zip(shape, _file_shape(array), strict=True)]


def _chunk_file(array: ZarrArray, block: tuple[int, ...]) -> str:
    return f"{array.path}/{array.metadata.encode_chunk_key(block)}"


def _unreadable(
    location: Location, array: ZarrArray, blocks: Iterator[tuple[int, ...]], error: Exception
) -> DataError:
    """Find the first of ``blocks`` that fails on its own, and say so."""
    culprit = "one of its files"
    for block in blocks:
        try:
            array[tuple(slice(i * n, (i + 1) * n) for i, n in zip(block, _file_shape(array), strict=True))]
        except Exception:
            culprit = f"{location}/{_chunk_file(array, block)}"
            break
    return DataError(
        f"array {array.path!r}: {culprit} is corrupt or cut short ({error}); copy or make the store again"
    )
