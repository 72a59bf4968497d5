"""CALVIN: spans of play that language describes, one npz a step, and a pickle that is never unpickled."""

from __future__ import annotations

import io
import os
import pickle
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest

from mode_datasets.convert import SourceOptions, detect, open_source
from mode_datasets.convert.calvin import ABSOLUTE, RELATIVE
from mode_datasets.convert.pickled_npy import load_object
from mode_policy.errors import DataError
from mode_policy.types import ACTION, ENVIRONMENT_STATE, STATE

from .conftest import run, to_store

TEXTS = ["open the drawer", "push the red block", "open the drawer"]
SPANS = [(10, 14), (12, 19), (20, 23)]
FIRST, LAST = 10, 25


def step(i: int) -> dict[str, np.ndarray]:
    """The arrays of one step, of small images."""
    rng = np.random.default_rng(i)
    return {
        "rgb_static": rng.integers(0, 256, (20, 20, 3), dtype=np.uint8),
        "rgb_gripper": rng.integers(0, 256, (8, 8, 3), dtype=np.uint8),
        "rgb_tactile": rng.integers(0, 256, (16, 12, 6), dtype=np.uint8),
        "depth_static": rng.random((20, 20)).astype(np.float32),
        "robot_obs": rng.normal(size=15),
        "scene_obs": rng.normal(size=24),
        "actions": rng.normal(size=7),
        "rel_actions": rng.uniform(-1, 1, 7),
    }


def annotations() -> dict:
    return {
        "language": {
            "ann": TEXTS,
            "task": ["open_drawer", "push_red_block", "open_drawer"],
            "emb": np.random.default_rng(0).normal(size=(3, 1, 384)).astype(np.float32),
        },
        "info": {"episodes": [], "indx": SPANS},
    }


def write_split(folder: Path) -> Path:
    (folder / "lang_annotations").mkdir(parents=True)
    for i in range(FIRST, LAST + 1):
        np.savez_compressed(folder / f"episode_{i:07d}.npz", **step(i))
    np.save(folder / "ep_start_end_ids.npy", np.array([[FIRST, 17], [18, LAST]]))
    np.save(folder / "lang_annotations" / "auto_lang_ann.npy", annotations())
    return folder


@pytest.fixture
def calvin(tmp_path: Path) -> Path:
    """A training split of sixteen steps."""
    return write_split(tmp_path / "task_D_D" / "training").parent


def test_each_described_span_is_an_episode(calvin: Path, tmp_path: Path) -> None:
    assert detect(calvin).format == "calvin"
    store = to_store(calvin, tmp_path / "out.zarr")
    assert store.episode_lengths.tolist() == [5, 8, 4]  # both ends count
    assert [store.episode(i).task.instruction for i in range(3)] == TEXTS
    assert len(store.tasks) == 2
    arrays = store.episode(1).arrays
    for key, name in {
        STATE: "robot_obs",
        ENVIRONMENT_STATE: "scene_obs",
        ACTION: "rel_actions",
        "observation.images.static": "rgb_static",
        "observation.images.gripper": "rgb_gripper",
    }.items():
        expected = np.stack([step(i)[name] for i in range(12, 20)])
        np.testing.assert_array_equal(arrays[key], expected.astype(arrays[key].dtype))
    assert store.convention == RELATIVE
    assert store.convention.gripper == "plus_opens"
    assert store.features[STATE].angles == (3, 4, 5)


def test_absolute_actions_mean_something_else(calvin: Path) -> None:
    source, _ = open_source(calvin, None, SourceOptions(absolute=True))
    assert source.convention == ABSOLUTE
    np.testing.assert_array_equal(source.episode(0).arrays[ACTION][0], step(10)["actions"].astype(np.float32))


def test_without_annotations_each_recording_is_an_episode(calvin: Path, tmp_path: Path) -> None:
    (calvin / "training" / "lang_annotations" / "auto_lang_ann.npy").unlink()
    store = to_store(calvin / "training", tmp_path / "out.zarr", instruction="play")
    assert store.episode_lengths.tolist() == [8, 8]


def test_splits_are_chosen_by_name(calvin: Path) -> None:
    with pytest.raises(DataError, match=r"no split 'validation'.*training"):
        open_source(calvin, None, SourceOptions(split="validation"))


def rewrite_step(folder: Path, number: int, **changes: np.ndarray | None) -> None:
    arrays = {k: v for k, v in {**step(number), **changes}.items() if v is not None}
    np.savez_compressed(folder / "training" / f"episode_{number:07d}.npz", **arrays)


def cut(folder: Path) -> None:
    path = folder / "training" / "episode_0000015.npz"
    path.write_bytes(path.read_bytes()[:-100])


def bomb(folder: Path) -> None:
    """An image of 40 GB that takes a few bytes: its header alone is read."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "|u1", "fortran_order": False, "shape": (10**9, 20, 3)}
    )
    path = folder / "training" / "episode_0000015.npz"
    rewrite_step(folder, 15, rgb_static=None)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("rgb_static.npy", header.getvalue() + bytes(1000))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (
            lambda folder: (folder / "training" / "episode_0000015.npz").unlink(),
            "episode_0000015.npz is missing",
        ),
        (cut, "episode_0000015.npz is damaged or cut short"),
        (lambda folder: rewrite_step(folder, 15, robot_obs=None), "lacks an array .*robot_obs"),
        (
            lambda folder: rewrite_step(folder, 15, rgb_static=np.zeros((9, 9, 3), np.uint8)),
            r"uint8 \(9, 9, 3\)",
        ),
        (
            lambda folder: rewrite_step(folder, 15, robot_obs=np.array([{}] * 15)),
            "objects and pickles can run code",
        ),
        (bomb, r"\(1000000000, 20, 3\)"),
    ],
)
def test_spans_with_damaged_steps_are_left_out(calvin: Path, tmp_path: Path, damage, reason: str) -> None:
    damage(calvin)
    report = run(calvin, tmp_path / "out.zarr")
    assert [s.index for s in report.skipped] == [1]
    assert re.search(reason, report.skipped[0].reason), report.skipped[0].reason
    assert report.episodes == 2


def test_annotations_are_read_as_pickle_writes_them(tmp_path: Path) -> None:
    """The same data as NumPy's own unpickling gives, in every protocol."""
    data = annotations()
    data["info"]["indx"] = [(np.int64(1), 2), (3, np.int32(4))]
    data["language"]["more"] = {
        "n": None,
        "t": (True, False, 1.5, -(2**40)),
        "text": np.array(["a", "bc"]),
        "l": [],
    }
    data["again"] = data["language"]["ann"]
    path = tmp_path / "x.npy"
    for protocol in range(5):
        array = np.array(data, dtype=object)
        with path.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
            pickle.dump(array, file, protocol=protocol)
        read = load_object(path)
        np.testing.assert_array_equal(read["language"].pop("emb"), data["language"]["emb"])
        np.testing.assert_array_equal(read["language"]["more"].pop("text"), ["a", "bc"])
        expected = {**data, "language": {k: v for k, v in data["language"].items() if k != "emb"}}
        expected["language"]["more"] = {k: v for k, v in data["language"]["more"].items() if k != "text"}
        assert read == expected


class Runs:
    """What an attacker would pickle: unpickling it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


class Quietly(Runs):
    """The same by another instruction of the machine."""

    def __reduce__(self):
        return dict, (), None, None, iter([(os.mkdir, self.path)])


@pytest.mark.parametrize("kind", [Runs, Quietly])
def test_code_in_annotations_does_not_run(calvin: Path, tmp_path: Path, kind: type[Runs]) -> None:
    folder = tmp_path / "made"
    data = annotations() | {"evil": kind(folder)}
    path = calvin / "training" / "lang_annotations" / "auto_lang_ann.npy"
    np.save(path, data)
    with pytest.raises(DataError, match=r"holds more than plain data|calls posix.mkdir"):
        open_source(calvin, None, SourceOptions())
    assert not folder.exists()
    if kind is Runs:
        np.load(path, allow_pickle=True)  # negative control: this is what was avoided
        assert folder.exists()


def test_annotations_that_multiply_are_harmless(tmp_path: Path) -> None:
    """Lists that hold each other many times over: 10^12 texts if they were copied each time."""
    lists: list = ["x"]
    for _ in range(12):
        lists = [lists] * 10
    np.save(tmp_path / "x.npy", np.array({"a": lists}, dtype=object))
    assert isinstance(load_object(tmp_path / "x.npy")["a"], list)


def test_damaged_annotations_are_named(calvin: Path) -> None:
    path = calvin / "training" / "lang_annotations" / "auto_lang_ann.npy"
    whole = path.read_bytes()
    path.write_bytes(whole[:-50])
    with pytest.raises(DataError, match=r"auto_lang_ann.npy is damaged"):
        open_source(calvin, None, SourceOptions())
    np.save(path, {"language": {"ann": ["x"]}, "info": {"indx": SPANS}})
    with pytest.raises(DataError, match=r"is not CALVIN's .*1 texts for 3 spans"):
        open_source(calvin, None, SourceOptions())
    np.save(path, np.zeros(3))
    with pytest.raises(DataError, match="expected is one object"):
        open_source(calvin, None, SourceOptions())
