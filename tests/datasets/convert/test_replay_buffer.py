"""Diffusion Policy's replay buffers: in a folder or a zip, in and out."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numcodecs
import numpy as np
import pytest
import zarr

from mode_datasets import ReplayBufferLayout, open_store
from mode_datasets.convert import SourceOptions, detect, open_source
from mode_policy.convention import Convention
from mode_policy.errors import DataError
from mode_policy.types import ACTION, STATE, Feature, Task

from ..conftest import CAMERA, CONVENTION, PROVENANCE, WITH_IMAGES, make_episodes, write
from .conftest import run, same_episodes, to_store

RNG = np.random.default_rng(0)
ARRAYS = {
    "data/state": RNG.normal(size=(10, 3)),
    "data/action": RNG.normal(size=(10, 2)).astype(np.float32),
    "data/keypoint": RNG.normal(size=(10, 2, 2)).astype(np.float32),
    "data/img": RNG.integers(0, 256, (10, 4, 5, 3)).astype(np.float32),
    "meta/episode_ends": np.array([6, 10]),
}
SAID = {"fps": 10.0, "instruction": "push the puck"}


@pytest.fixture
def buffer(tmp_path: Path) -> Path:
    """Ten steps in two episodes, as `ReplayBuffer` saves them."""
    group = zarr.create_group(str(tmp_path / "push.zarr"), zarr_format=2)
    codec = numcodecs.Blosc("zstd", 5, numcodecs.Blosc.BITSHUFFLE)
    for name, x in ARRAYS.items():
        group.create_array(
            name, data=x, chunks=(4, *x.shape[1:]), compressors=codec, config={"write_empty_chunks": True}
        )
    return tmp_path / "push.zarr"


def zipped(folder: Path) -> Path:
    path = folder.with_name(folder.name + ".zip")
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(p for p in folder.rglob("*") if p.is_file()):
            archive.write(file, file.relative_to(folder))
    return path


@pytest.mark.parametrize("pack", [lambda folder: folder, zipped], ids=["folder", "zip"])
def test_every_array_becomes_a_feature(buffer: Path, tmp_path: Path, pack) -> None:
    source = pack(buffer)
    assert detect(source).format == "replay_buffer"
    store = to_store(source, tmp_path / "out.zarr", **SAID)
    second = store.episode(1).arrays
    assert set(second) == {ACTION, STATE, "observation.keypoint", "observation.images.img"}
    np.testing.assert_array_equal(second[ACTION], ARRAYS["data/action"][6:])
    np.testing.assert_array_equal(second[STATE], ARRAYS["data/state"][6:].astype(np.float32))
    np.testing.assert_array_equal(second["observation.keypoint"], ARRAYS["data/keypoint"][6:].reshape(4, 4))
    np.testing.assert_array_equal(second["observation.images.img"], ARRAYS["data/img"][6:])
    assert store.tasks == (Task(name="push", instruction="push the puck"),)
    assert store.convention == Convention(fps=10.0)


def test_what_it_does_not_say_is_asked_for(buffer: Path) -> None:
    with pytest.raises(DataError, match="--fps"):
        open_source(buffer, None, SourceOptions(instruction="push"))
    with pytest.raises(DataError, match="--instruction"):
        open_source(buffer, None, SourceOptions(fps=10.0))


def test_damage_is_named(buffer: Path, tmp_path: Path) -> None:
    chunk = buffer / "data" / "img" / "2.0.0.0"
    chunk.write_bytes(chunk.read_bytes()[:40])
    report = run(buffer, tmp_path / "out.zarr", **SAID)
    assert [s.index for s in report.skipped] == [1]
    assert "array data/img is damaged" in report.skipped[0].reason
    chunk.unlink()
    with pytest.raises(DataError, match=r"lacks its chunk file .*data/img/2.0.0.0"):
        open_source(buffer, None, SourceOptions(**SAID))
    shorter = zarr.open_array(str(buffer / "data" / "action"), mode="r+")
    shorter.resize((9, 2))
    with pytest.raises(DataError, match=r"differ in length .*data/action: 9"):
        open_source(buffer, None, SourceOptions(**SAID, keys={STATE: ("state",), ACTION: ("action",)}))


def test_pickled_objects_are_refused(buffer: Path) -> None:
    objects = np.array([{"a": 1}, [2]], dtype=object)
    numcodecs.registry.register_codec(numcodecs.Pickle)
    metadata = (buffer / "data" / "action" / ".zarray").read_text()
    (buffer / "data" / "action" / ".zarray").write_text(
        metadata.replace('"<f4"', '"|O"').replace(
            '"filters": null', '"filters": [{"id": "pickle", "protocol": 4}]'
        )
    )
    (buffer / "data" / "action" / "0.0").write_bytes(numcodecs.Pickle().encode(objects))
    with pytest.raises(DataError, match="objects and pickles can run code"):
        open_source(buffer, None, SourceOptions(**SAID))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("../../x", "would leave its folder"),
        ("/etc/x", "would leave its folder"),
        ("a\\..\\b", "would leave"),
    ],
)
def test_zips_that_leave_their_folder_are_refused(buffer: Path, name: str, message: str) -> None:
    path = zipped(buffer)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, b"x")
    with pytest.raises(DataError, match=message):
        open_source(path, None, SourceOptions(**SAID))


def test_zips_with_bombs_are_refused(buffer: Path) -> None:
    path = zipped(buffer)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        archive.writestr("data/zeros/0", bytes(3 * 10**6))  # about 1 in 1000: as arrays of zeros really are
    to_open = open_source(path, None, SourceOptions(**SAID))[0]
    assert to_open.num_episodes == 2
    with zipfile.ZipFile(path, "a", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("data/bomb/0", bytes(3 * 10**7))
    with pytest.raises(DataError, match=r"'data/bomb/0' .* declares 30000000 bytes .*bomb"):
        open_source(path, None, SourceOptions(**SAID))


def test_arrays_that_declare_too_much_are_not_read(buffer: Path, tmp_path: Path) -> None:
    report_limit = 2000  # bytes; the first episode's images take more
    with pytest.raises(DataError, match=r"none of the 2 episodes .*declares .*--episode-gib"):
        run(buffer, tmp_path / "out.zarr", episode_bytes=report_limit // 10, **SAID)
    assert not list(tmp_path.glob("*out.zarr*"))


def test_a_zip_that_was_cut_short_is_named(buffer: Path) -> None:
    path = zipped(buffer)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DataError, match="no zip archive, or cut short"):
        open_source(path, None, SourceOptions(**SAID))


def test_there_and_back(tmp_path: Path) -> None:
    write(tmp_path / "first.zarr", make_episodes([6, 4, 5], WITH_IMAGES), WITH_IMAGES)
    run(tmp_path / "first.zarr", tmp_path / "buffer.zarr", to="replay_buffer")
    assert detect(tmp_path / "buffer.zarr").format == "replay_buffer"
    back = to_store(tmp_path / "buffer.zarr", tmp_path / "second.zarr")
    same_episodes(open_store(tmp_path / "first.zarr"), back)
    assert back.convention == CONVENTION
    assert back.features == WITH_IMAGES
    assert back.episode_seeds.tolist() == [100, 101, 102]


def test_what_we_write_is_read_in_place_and_by_plain_zarr(tmp_path: Path) -> None:
    episodes = make_episodes([6, 4], WITH_IMAGES)
    write(tmp_path / "first.zarr", episodes, WITH_IMAGES)
    run(tmp_path / "first.zarr", tmp_path / "buffer.zarr", to="replay_buffer")
    layout = ReplayBufferLayout(
        keys={STATE: "state", ACTION: "action", CAMERA: "front"},
        features={**WITH_IMAGES, STATE: Feature(shape=(3,))},
        convention=CONVENTION,
        task=Task(name="push", instruction="push the puck"),
        provenance=PROVENANCE,
    )
    store = open_store(tmp_path / "buffer.zarr", layout)
    np.testing.assert_array_equal(store.episode(1).arrays[CAMERA], episodes[1].arrays[CAMERA])
    raw = zarr.open_group(str(tmp_path / "buffer.zarr"), mode="r", zarr_format=2)
    assert raw["meta/episode_ends"][:].tolist() == [6, 10]
    assert raw["data/front"].compressors[0].codec_id == "blosc"
