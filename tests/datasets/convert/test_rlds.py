"""RLDS, written by `tensorflow_datasets` itself; without it, only what its absence is answered with."""

from __future__ import annotations

import builtins
import json
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mode_datasets import open_store
from mode_datasets.convert import SourceOptions, detect, open_source
from mode_policy.apps.cli import compose, to_plain
from mode_policy.apps.config import TrainConfig
from mode_policy.apps.data import main
from mode_policy.apps.dataset import get_mixture, get_store
from mode_policy.apps.training_data import training_data
from mode_policy.config import build
from mode_policy.convention import Convention
from mode_policy.errors import ConfigError, DataError
from mode_policy.training.processes import Processes
from mode_policy.types import ACTION

from .conftest import (
    LIBERO_TASKS,
    libero_attributes,
    libero_demo,
    run,
    to_store,
    write_hdf5,
)

SAID = {"fps": 5.0, "gripper": "one_opens"}


def episodes() -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [
        {
            "image": rng.integers(0, 256, (n, 16, 20, 3), dtype=np.uint8),
            "state": rng.normal(size=(n, 8)).astype(np.float32),
            "action": rng.normal(size=(n, 7)).astype(np.float32),
        }
        for n in (4, 6, 5)
    ]


def write_dataset(folder: Path, split_action: bool = False, camera: str = "image") -> Path:
    """Write an Open X-Embodiment data set of three episodes and return its folder."""
    tfds = pytest.importorskip("tensorflow_datasets")
    features = tfds.features
    action = features.Tensor(shape=(7,), dtype=np.float32)
    if split_action:
        action = features.FeaturesDict(
            {
                "world_vector": features.Tensor(shape=(3,), dtype=np.float32),
                "gripper": features.Tensor(shape=(), dtype=np.float32),
            }
        )
    step = {
        "observation": {
            camera: features.Image(shape=(16, 20, 3), encoding_format="png"),
            "state": features.Tensor(shape=(8,), dtype=np.float32),
        },
        "action": action,
        "language_instruction": features.Text(),
        "reward": np.float32,
        "is_first": np.bool_,
        "is_last": np.bool_,
    }
    written = []
    for number, arrays in enumerate(episodes()):
        steps = []
        for i, full in enumerate(arrays["action"]):
            steps.append(
                {
                    "observation": {camera: arrays["image"][i], "state": arrays["state"][i]},
                    "action": {"world_vector": full[:3], "gripper": full[6]} if split_action else full,
                    "language_instruction": ("Pick it up.", "pick it up", "Pick it up.")[number],
                    "reward": 0.0,
                    "is_first": i == 0,
                    "is_last": i == len(arrays["action"]) - 1,
                }
            )
        written.append(steps)
    return write_steps(folder, step, written)


def write_steps(folder: Path, step: dict[str, Any], written: list[list[dict[str, Any]]]) -> Path:
    """Write episodes of steps with the library itself, and return their folder."""
    tfds = pytest.importorskip("tensorflow_datasets")

    with tfds.core.registered.skip_registration():

        class Demos(tfds.core.GeneratorBasedBuilder):
            """A few episodes."""

            VERSION = tfds.core.Version("1.0.0")

            def _info(self):
                described = tfds.features.FeaturesDict({"steps": tfds.features.Dataset(step)})
                return self.dataset_info_from_configs(features=described)

            def _split_generators(self, dl_manager):
                return {"train": self._generate_examples()}

            def _generate_examples(self):
                for number, steps in enumerate(written):
                    yield number, {"steps": steps}

    builder = Demos(data_dir=str(folder))
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(num_shards=1))
    return Path(builder.data_path)


def test_episodes_come_through(tmp_path: Path) -> None:
    path = write_dataset(tmp_path)
    assert detect(path).format == "rlds"
    store = to_store(path, tmp_path / "out.zarr", **SAID)
    # The library shuffles episodes when it writes them.
    expected = {len(e["action"]): e for e in episodes()}
    assert sorted(store.episode_lengths.tolist()) == [4, 5, 6]
    for i in range(3):
        episode = store.episode(i)
        arrays = expected[len(episode)]
        np.testing.assert_array_equal(episode.arrays["observation.images.image"], arrays["image"])
        np.testing.assert_array_equal(episode.arrays["observation.state"], arrays["state"])
        np.testing.assert_array_equal(episode.arrays[ACTION], arrays["action"])
        assert episode.task.instruction == ("pick it up" if len(episode) == 6 else "Pick it up.")
    assert len(store.tasks) == 2
    assert store.convention == Convention(fps=5.0, gripper="one_opens")


def test_episodes_in_any_order(tmp_path: Path) -> None:
    source, _ = open_source(write_dataset(tmp_path), None, SourceOptions(**SAID))
    forward = [len(source.episode(i)) for i in range(3)]
    assert [len(source.episode(i)) for i in (2, 0, 1)] == [forward[i] for i in (2, 0, 1)]


def test_parts_of_actions_are_joined_as_the_user_says(tmp_path: Path) -> None:
    path = write_dataset(tmp_path, split_action=True)
    with pytest.raises(DataError, match=r"consists of action/gripper, action/world_vector; .*--key action="):
        open_source(path, None, SourceOptions(**SAID))
    keys = {ACTION: ("action/world_vector", "action/gripper"), "observation.state": ("state",)}
    source, _ = open_source(path, None, SourceOptions(keys=keys, **SAID))
    episode = source.episode(0)
    full = {len(e["action"]): e for e in episodes()}[len(episode)]["action"]
    np.testing.assert_array_equal(episode.arrays[ACTION], full[:, [0, 1, 2, 6]])


def papers_mix() -> dict[str, dict[str, Any]]:
    """Folder → features of a step of each data set, as Open X-Embodiment has them, images smaller."""
    features = pytest.importorskip("tensorflow_datasets").features
    image = features.Image(shape=(24, 32, 3), encoding_format="png")
    text, scalar = features.Text(), features.Scalar(np.float32)

    def numbers(n: int, dtype: type = np.float32) -> Any:
        return features.Tensor(shape=(n,), dtype=dtype)

    seven = {"action": numbers(7), "language_instruction": text}
    return {
        "bc_z/0.1.0": {
            "observation": {"image": image, "natural_language_instruction": text, "present/xyz": numbers(3)},
            "action": {
                "future/xyz_residual": numbers(30),
                "future/axis_angle_residual": numbers(30),
                "future/target_close": numbers(10, np.int64),
            },
        },
        "dobbe/0.0.1": {"observation": {"wrist_image": image, "state": numbers(7)}, **seven},
        "bridge_dataset/1.0.0": {"observation": {"image_0": image, "state": numbers(7)}, **seven},
        "fractal20220817_data/0.1.0": {
            "observation": {"image": image, "natural_language_instruction": text, "gripper_closed": scalar},
            "action": {
                "world_vector": numbers(3),
                "rotation_delta": numbers(3),
                "gripper_closedness_action": numbers(1),
                "base_displacement_vector": numbers(2),
            },
        },
        "cmu_play_fusion/0.1.0": {
            "observation": {"image": image, "state": numbers(8)},
            "action": numbers(9),
            "language_instruction": text,
        },
    }


def made_up(feature: Any, rng: np.random.Generator) -> Any:
    """Return values of a feature."""
    if isinstance(feature, dict):
        return {name: made_up(part, rng) for name, part in feature.items()}
    if feature.np_dtype == np.uint8:
        return rng.integers(0, 256, feature.shape, dtype=np.uint8)
    if np.dtype(feature.np_dtype).kind == "i":
        return rng.integers(0, 2, feature.shape)
    return rng.normal(size=feature.shape).astype(np.float32) if feature.np_dtype == np.float32 else "do it"


def test_the_papers_mix_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands of the documentation, on data sets whose steps are those of Open X-Embodiment."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for folder, step in papers_mix().items():
        episodes = [[made_up(step, rng) for _ in range(length)] for length in (12, 14)]
        written = write_steps(tmp_path / "built" / folder, step, episodes)
        (tmp_path / folder).parent.mkdir()
        written.rename(tmp_path / folder)
    guide = (Path(__file__).parents[3] / "docs" / "data.md").read_text()
    script = re.search(r"```\n(store=.*?)uv run train.py task=pretraining_mix\n```", guide, re.DOTALL)
    assert script is not None
    variables = dict(re.findall(r'(\w+)=("[^"]*"|\S+?);?\s', script[1].splitlines()[0] + " "))
    text = script[1].replace("\\\n", " ")
    for name, value in variables.items():
        text = text.replace(f"${name}", value.strip('"'))
    commands = [shlex.split(line) for line in text.splitlines()[1:] if line.strip()]
    assert len(commands) == 5
    for command in commands:
        main(command[1:])
    assert set(np.unique(open_store("datasets/store/fractal.zarr").vectors()[ACTION][:, 6])) <= {-1.0, 1.0}
    assert open_store("datasets/store/play_fusion.zarr").features[ACTION].shape == (7,)
    suite = {f"{name}_demo.hdf5": text for name, text in LIBERO_TASKS.items()}
    for name, instruction in suite.items():
        write_hdf5(tmp_path / "libero" / name, [libero_demo(30, rng)], libero_attributes(instruction))
    main(["convert", "libero", "datasets/store/libero_10.zarr"])
    overrides = ["model=debug", "vision=tiny", "policy.language=null", "trainer.batch_size=40"]
    overrides += ["dataset.workers=0", "trainer.device=cpu", "dataset.folder=datasets/store"]
    config = build(TrainConfig, to_plain(compose("train", ["task=pretraining_mix", *overrides])))
    stores = [get_store(config.dataset, config.task, None), *get_mixture(config.dataset, None)]
    data = training_data(stores, config, Processes(config.trainer))
    batch = data.batch(0)
    assert batch.actions.shape == (40, 10, 7)
    for camera in ("static", "gripper"):
        assert batch.observation.images[f"observation.images.{camera}"].shape == (40, 1, 224, 224, 3)
    assert batch.actions[..., 6].abs().max() <= 1.2
    windows = np.concatenate([data.batch.sampler.indices(step) for step in range(100)])
    shares = np.histogram(windows, data.windows.offsets)[0] / len(windows)
    expected = [0.043649, 0.258768, 0.245176, 0.188043, 0.162878, 0.101486]
    np.testing.assert_allclose(shares, expected, atol=0.03)


def test_damage_and_absence_are_named(tmp_path: Path) -> None:
    path = write_dataset(tmp_path)
    with pytest.raises(DataError, match=r"no split 'tran'.*train"):
        open_source(path, None, SourceOptions(split="tran", **SAID))
    with pytest.raises(DataError, match="--fps"):
        open_source(path, None, SourceOptions())
    records = next(path.glob("*.tfrecord*"))
    records.write_bytes(records.read_bytes()[:-200])
    report = run(path, tmp_path / "out.zarr", **SAID)
    assert [s.index for s in report.skipped] == [2]
    assert "cannot be read" in report.skipped[0].reason


def test_without_the_library_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dataset_info.json").write_text("{}")
    described = {"featuresDict": {"features": {"steps": {}}}}
    (tmp_path / "features.json").write_text(json.dumps(described))
    real = builtins.__import__

    def without(name: str, *args: object) -> object:
        if name.startswith("tensorflow"):
            raise ImportError(name)
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r"pip install 'mode-policy\[oxe\]'"):
        open_source(tmp_path, None, SourceOptions())
