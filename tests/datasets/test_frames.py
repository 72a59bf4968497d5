"""The fast reader returns what zarr returns, bit for bit, or names the file that is damaged."""

from __future__ import annotations

import os
import pickle
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from zarr.codecs import BloscCodec, Crc32cCodec, GzipCodec, ZstdCodec

import mode_datasets.frames
from mode_datasets import DemonstrationStore, open_store
from mode_datasets.frames import frame_reader
from mode_datasets.location import LocalFolder, locate
from mode_policy.errors import DataError

from .conftest import CAMERA, WITH_IMAGES

CODECS: dict[str, list[Any]] = {
    "raw": [],
    "crc": [Crc32cCodec()],
    "lz4": [BloscCodec(cname="lz4", shuffle="noshuffle")],
    "lz4+crc": [BloscCodec(cname="lz4", shuffle="noshuffle"), Crc32cCodec()],
    "blosc-zstd-bitshuffle": [BloscCodec(cname="zstd", shuffle="bitshuffle")],
    "zstd": [ZstdCodec(level=1)],
    "zstd+crc": [ZstdCodec(level=1), Crc32cCodec()],
    "crc+crc": [Crc32cCodec(), Crc32cCodec()],
}


def make(
    path: Path, images: np.ndarray, chunk: int, shard: int | None, codec: str, **options: Any
) -> zarr.Array[Any]:
    group = zarr.create_group(str(path), overwrite=True)
    options = {"compressors": CODECS[codec] or None} | options
    return group.create_array(
        "images",
        data=images,
        chunks=(chunk, *images.shape[1:]),
        shards=None if shard is None else (shard * chunk, *images.shape[1:]),
        config={"write_empty_chunks": bool(options.pop("full", True))},
        **options,
    )


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_it_equals_zarr(tmp_path: Path, data: st.DataObject) -> None:
    """Over layouts, codecs, lengths, shapes and the steps that are asked for."""
    draw = data.draw
    length, chunk = draw(st.integers(1, 40)), draw(st.integers(1, 6))
    shard = draw(st.none() | st.integers(1, 5))
    shape = (draw(st.integers(1, 5)), draw(st.integers(1, 4)), 3)
    codec = draw(st.sampled_from(sorted(CODECS)))
    rng = np.random.default_rng(draw(st.integers(0, 100)))
    # Some frames are black: zarr leaves chunks of zeros out if it may.
    images = rng.integers(0, 256, (length, *shape), dtype=np.uint8) * (rng.random((length, 1, 1, 1)) < 0.5)
    images[:: chunk * (shard or 1)] |= 1  # a whole file that is absent counts as lost
    array = make(
        tmp_path, images.astype(np.uint8), chunk, shard, codec, full=draw(st.booleans()) or shard is None
    )
    steps = np.array(draw(st.lists(st.integers(0, length - 1), min_size=0, max_size=30)), dtype=np.int64)
    reader = frame_reader(LocalFolder(tmp_path), array)
    assert reader is not None
    expected = np.asarray(array.oindex[np.unique(steps)])[np.searchsorted(np.unique(steps), steps)]
    np.testing.assert_array_equal(reader.read(steps), expected.reshape(len(steps), *shape))


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32"])
def test_other_numbers_too(tmp_path: Path, dtype: str) -> None:
    values = np.arange(60, dtype=dtype).reshape(10, 2, 3)
    reader = frame_reader(LocalFolder(tmp_path), make(tmp_path, values, 2, 2, "lz4+crc"))
    assert reader is not None
    np.testing.assert_array_equal(reader.read(np.array([9, 0, 3])), values[[9, 0, 3]])


@pytest.mark.parametrize(
    "options",
    [
        {"compressors": [GzipCodec()]},
        {"fill_value": 7},
        {"dtype": ">u2"},
        {"filters": [zarr.codecs.TransposeCodec(order=(0, 2, 1, 3))]},
    ],
    ids=["gzip", "fill value", "big endian", "transposed"],
)
def test_what_it_does_not_know_is_left_to_zarr(tmp_path: Path, options: dict[str, Any]) -> None:
    images = np.zeros((4, 2, 2, 3), dtype=options.pop("dtype", "uint8"))
    assert frame_reader(LocalFolder(tmp_path), make(tmp_path, images, 1, None, "lz4", **options)) is None


@pytest.fixture
def damaged(tmp_path: Path) -> tuple[Path, zarr.Array[Any]]:
    images = np.random.default_rng(0).integers(0, 256, (12, 4, 4, 3), dtype=np.uint8)
    return tmp_path, make(tmp_path, images, 1, 4, "lz4+crc")


def flip(file: Path, at: int) -> None:
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: f.unlink(), "lacks its chunk file"),
        (lambda f: f.write_bytes(b""), "index is cut short"),
        (lambda f: f.write_bytes(f.read_bytes()[:-1]), "index is cut short or damaged"),
        (lambda f: flip(f, -10), "index is cut short or damaged"),
        (lambda f: flip(f, 30), "wrong checksum"),
    ],
    ids=["lost", "empty", "cut short", "damaged index", "damaged frame"],
)
def test_damaged_files_are_named(damaged: tuple[Path, zarr.Array[Any]], damage: Any, message: str) -> None:
    path, array = damaged
    damage(path / "images/c/1/0/0/0")
    reader = frame_reader(LocalFolder(path), array)
    assert reader is not None
    reader.read(np.array([0, 11]))  # the other files are fine
    with pytest.raises(DataError, match=rf"(?s){path}.*images/c/1/0/0/0.*{message}|{message}.*images/c/1"):
        reader.read(np.array([0, 4]))


def test_an_index_that_points_outside_the_file_is_refused(damaged: tuple[Path, zarr.Array[Any]]) -> None:
    """With a right checksum: such a file was made, not damaged."""
    import google_crc32c

    path, array = damaged
    file = path / "images/c/0/0/0/0"
    content = bytearray(file.read_bytes())
    content[-68:-60] = (2**40).to_bytes(8, "little")
    content[-4:] = google_crc32c.value(bytes(content[-68:-4])).to_bytes(4, "little")
    file.write_bytes(content)
    reader = frame_reader(LocalFolder(path), array)
    assert reader is not None
    with pytest.raises(DataError, match="points outside the file"):
        reader.read(np.array([0]))


@pytest.mark.parametrize("declared", [100, 200, 300, 70_000, 10**8])
def test_what_a_chunk_declares_is_checked_before_it_is_unpacked(tmp_path: Path, declared: int) -> None:
    """A few bytes could else become as many gigabytes."""
    images = np.zeros((1, 10, 10, 3), np.uint8)
    array = make(tmp_path, images, 1, None, "zstd")
    (tmp_path / "images/c/0/0/0/0").write_bytes(numcodecs.zstd.compress(bytes(declared), 1))
    reader = frame_reader(LocalFolder(tmp_path), array)
    assert reader is not None
    if declared == images.nbytes:
        np.testing.assert_array_equal(reader.read(np.array([0])), images)
        return
    tracemalloc.start()
    with pytest.raises(DataError, match=rf"{declared} bytes instead of 300"):
        reader.read(np.array([0]))
    assert tracemalloc.get_traced_memory()[1] < 10**6
    tracemalloc.stop()


def test_few_files_stay_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mode_datasets.frames, "MAX_OPEN_FILES", 3)
    images = np.arange(20 * 12, dtype=np.uint8).reshape(20, 2, 2, 3)
    reader = frame_reader(LocalFolder(tmp_path), make(tmp_path, images, 1, 2, "lz4"))
    assert reader is not None
    for _ in range(2):
        np.testing.assert_array_equal(reader.read(np.arange(20)), images)
        assert len(reader._open) == 3
    reader.close()
    np.testing.assert_array_equal(reader.read(np.array([7])), images[7:8])


def test_files_are_closed_when_their_reader_or_store_is_dropped(
    make_store: Callable[..., DemonstrationStore],
) -> None:
    store = make_store([3, 2], WITH_IMAGES)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(200):
        reader = frame_reader(store.location, store.array(CAMERA))
        assert reader is not None
        reader.read(np.arange(5))
    for _ in range(10):
        open_store(store.location).frames(CAMERA, np.arange(5))
    del reader
    assert len(os.listdir("/proc/self/fd")) == before


def test_it_can_be_sent_to_another_process(damaged: tuple[Path, zarr.Array[Any]]) -> None:
    path, array = damaged
    reader = frame_reader(locate(path), array)
    assert reader is not None
    before = reader.read(np.arange(12))
    sent = pickle.dumps(reader)
    np.testing.assert_array_equal(pickle.loads(sent).read(np.arange(12)), before)  # noqa: S301


def test_a_file_that_is_replaced_meanwhile_is_read_as_it_was(damaged: tuple[Path, zarr.Array[Any]]) -> None:
    """As when another process appends: old index and new file must never meet."""
    path, array = damaged
    reader = frame_reader(LocalFolder(path), array)
    assert reader is not None
    before = reader.read(np.arange(12))
    array.set_basic_selection(slice(3, 4), 0)
    np.testing.assert_array_equal(reader.read(np.arange(12)), before)
    reader.close()
    assert reader.read(np.array([3])).max() == 0
