"""LeRobotDataset v3, written and read by LeRobot itself, with images and with videos."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from mode_datasets import open_store
from mode_datasets.convert import SinkOptions, SourceOptions, convert, detect, open_sink, open_source
from mode_policy.convention import Convention
from mode_policy.errors import DataError
from mode_policy.types import ACTION, STATE, Episode, Feature, Task

from ..conftest import CONVENTION, WITH_IMAGES, make_episodes, write
from .conftest import run, same_episodes, to_store

pytest.importorskip("av")
lerobot = pytest.importorskip("lerobot.datasets.lerobot_dataset")
CAMERA = "observation.images.front"


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing may be asked of the hub, and caches belong to the test."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def frames(steps: int, size: int = 64) -> np.ndarray:
    """A slow gradient, which videos keep nearly."""
    y, x = np.mgrid[:size, :size]
    return np.stack([np.stack([x + y + t, 2 * x, 255 - y - t], -1) for t in range(steps)]).astype(np.uint8)


def write_dataset(root: Path, use_videos: bool) -> list[dict[str, np.ndarray]]:
    """Three episodes of two tasks, as a user of LeRobot records them."""
    features = {
        CAMERA: {
            "dtype": "video" if use_videos else "image",
            "shape": (64, 64, 3),
            "names": ["height", "width", "channels"],
        },
        STATE: {"dtype": "float32", "shape": (3,), "names": {"axes": ["x", "y", "z"]}},
        "observation.force": {"dtype": "float64", "shape": (1,), "names": ["n"]},
        ACTION: {"dtype": "float32", "shape": (2,), "names": ["dx", "dy"]},
        "next.reward": {"dtype": "float32", "shape": (1,), "names": None},
    }
    dataset = lerobot.LeRobotDataset.create("local/x", 20, features, root=root, use_videos=use_videos)
    rng = np.random.default_rng(0)
    episodes = []
    for number, steps in enumerate((7, 5, 6)):
        arrays = {
            CAMERA: frames(steps),
            STATE: rng.normal(size=(steps, 3)).astype(np.float32),
            "observation.force": rng.normal(size=(steps, 1)),
            ACTION: rng.normal(size=(steps, 2)).astype(np.float32),
            "next.reward": np.zeros((steps, 1), np.float32),
        }
        for i in range(steps):
            dataset.add_frame(
                {**{k: x[i] for k, x in arrays.items()}, "task": ("Lift it!", "put it down")[number % 2]}
            )
        dataset.save_episode()
        episodes.append(arrays)
    dataset.finalize()
    return episodes


@pytest.mark.parametrize("use_videos", [False, True], ids=["images", "videos"])
def test_names_tasks_and_values_come_through(tmp_path: Path, use_videos: bool) -> None:
    episodes = write_dataset(tmp_path / "set", use_videos)
    assert detect(tmp_path / "set").format == "lerobot"
    store = to_store(tmp_path / "set", tmp_path / "out.zarr")
    assert set(store.features) == {CAMERA, STATE, "observation.force", ACTION}
    assert store.features[STATE].names == ("x", "y", "z")
    assert store.convention == Convention(fps=20.0)
    assert [store.episode(i).task.instruction for i in range(3)] == ["Lift it!", "put it down", "Lift it!"]
    for i, expected in enumerate(episodes):
        arrays = store.episode(i).arrays
        for key in (STATE, "observation.force", ACTION):
            np.testing.assert_array_equal(arrays[key], expected[key].astype(np.float32))
        difference = np.abs(arrays[CAMERA].astype(int) - expected[CAMERA])
        # Images are PNG; videos lose a little, but another frame would be off by more.
        assert difference.max() == 0 if not use_videos else difference.mean() < 3


def test_there_and_back_without_loss(tmp_path: Path) -> None:
    size = {**WITH_IMAGES, CAMERA: Feature(shape=(32, 48, 3), dtype="uint8")}
    write(tmp_path / "first.zarr", make_episodes([6, 4, 5], size), size)
    run(tmp_path / "first.zarr", tmp_path / "set", to="lerobot")
    loaded = lerobot.LeRobotDataset("local/set", root=tmp_path / "set")
    assert (loaded.num_episodes, len(loaded), loaded.fps) == (3, 15, 20)
    back = to_store(tmp_path / "set", tmp_path / "second.zarr")
    same_episodes(open_store(tmp_path / "first.zarr"), back)
    assert (back.convention, back.features) == (CONVENTION, size)


def test_videos_are_written_and_read_again(tmp_path: Path) -> None:
    size = {ACTION: Feature(shape=(2,)), CAMERA: Feature(shape=(64, 64, 3), dtype="uint8")}
    arrays = {ACTION: np.zeros((9, 2), np.float32), CAMERA: frames(9)}
    write(tmp_path / "first.zarr", [Episode(arrays=arrays, task=Task(name="a", instruction="b"))], size)
    source, _ = open_source(tmp_path / "first.zarr", None, SourceOptions())
    about = SinkOptions(features=source.features, convention=source.convention, provenance=source.provenance)
    convert(source, open_sink(tmp_path / "set", "lerobot", about), tmp_path / "set")
    assert list((tmp_path / "set").rglob("*.mp4"))
    again = to_store(tmp_path / "set", tmp_path / "second.zarr").episode(0).arrays[CAMERA]
    assert np.abs(again.astype(int) - arrays[CAMERA]).mean() < 3


def test_a_damaged_video_leaves_out_its_episodes(tmp_path: Path) -> None:
    write_dataset(tmp_path / "set", use_videos=True)
    video = next((tmp_path / "set").rglob("*.mp4"))
    video.write_bytes(video.read_bytes()[:200])
    with pytest.raises(DataError, match=r"none of the 3 episodes .*the video file-000.mp4 .*cannot be read"):
        run(tmp_path / "set", tmp_path / "out.zarr")
    assert not list(tmp_path.glob("*out.zarr*"))
    video.unlink()
    with pytest.raises(DataError, match=r"lacks videos/.*file-000.mp4"):
        open_source(tmp_path / "set", None, SourceOptions())


def test_parts_of_features_can_be_chosen(tmp_path: Path) -> None:
    dataset = tmp_path / "set"
    write_dataset(dataset, use_videos=False)
    whole = open_source(dataset, None, SourceOptions())[0]
    keys = {STATE: ("observation.state[1:]",), ACTION: ("action[:1]", "observation.state[:1]")}
    part = open_source(dataset, None, SourceOptions(keys=keys))[0]
    assert part.features[STATE].names == whole.features[STATE].names[1:]
    arrays, full = part.episode(0).arrays, whole.episode(0).arrays
    np.testing.assert_array_equal(arrays[STATE], full[STATE][:, 1:])
    np.testing.assert_array_equal(arrays[ACTION], np.stack([full[ACTION][:, 0], full[STATE][:, 0]], 1))


def test_what_is_missing_is_named_and_never_downloaded(tmp_path: Path) -> None:
    write_dataset(tmp_path / "set", use_videos=False)
    for name, message in (("data", "lacks data/chunk-000"), ("meta/episodes", "lacks meta/episodes")):
        copy = tmp_path / f"without-{name.replace('/', '-')}"
        shutil.copytree(tmp_path / "set", copy)
        shutil.rmtree(copy / name)
        with pytest.raises(DataError, match=message):
            open_source(copy, None, SourceOptions())


def test_a_damaged_table_is_named(tmp_path: Path) -> None:
    write_dataset(tmp_path / "set", use_videos=False)
    table = next((tmp_path / "set" / "data").rglob("*.parquet"))
    table.write_bytes(table.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"none of the 3 .*file-000.parquet is missing, damaged or cut short"):
        run(tmp_path / "set", tmp_path / "out.zarr")


def edit_info(root: Path, **changes: object) -> None:
    path = root / "meta" / "info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_files_outside_the_data_set_are_not_opened(tmp_path: Path) -> None:
    write_dataset(tmp_path / "set", use_videos=False)
    edit_info(tmp_path / "set", data_path="../../secret/{chunk_index}-{file_index}.parquet")
    with pytest.raises(DataError, match="would leave"):
        open_source(tmp_path / "set", None, SourceOptions())


def test_older_versions_are_sent_to_lerobots_own_tool(tmp_path: Path) -> None:
    write_dataset(tmp_path / "set", use_videos=False)
    edit_info(tmp_path / "set", codebase_version="v2.1")
    with pytest.raises(DataError, match=r"v2.1; bring it to v3 first with"):
        detect(tmp_path / "set")


def test_frame_rates_are_whole_numbers(tmp_path: Path) -> None:
    write(tmp_path / "first.zarr", make_episodes([3], WITH_IMAGES), WITH_IMAGES, fps=12.5)
    with pytest.raises(DataError, match=r"whole numbers, and the control rate is 12.5"):
        run(tmp_path / "first.zarr", tmp_path / "set", to="lerobot")
