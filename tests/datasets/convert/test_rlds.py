"""RLDS, written by `tensorflow_datasets` itself; without it, only what its absence is answered with."""

from __future__ import annotations

import builtins
import json
from pathlib import Path

import numpy as np
import pytest

from mode_datasets.convert import SourceOptions, detect, open_source
from mode_policy.convention import Convention
from mode_policy.errors import ConfigError, DataError
from mode_policy.types import ACTION

from .conftest import run, to_store

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


def write_dataset(folder: Path, split_action: bool = False) -> Path:
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
            "image": features.Image(shape=(16, 20, 3), encoding_format="png"),
            "state": features.Tensor(shape=(8,), dtype=np.float32),
        },
        "action": action,
        "language_instruction": features.Text(),
        "reward": np.float32,
        "is_first": np.bool_,
        "is_last": np.bool_,
    }

    with tfds.core.registered.skip_registration():

        class Demos(tfds.core.GeneratorBasedBuilder):
            """Three episodes."""

            VERSION = tfds.core.Version("1.0.0")

            def _info(self):
                return self.dataset_info_from_configs(
                    features=features.FeaturesDict({"steps": features.Dataset(step)})
                )

            def _split_generators(self, dl_manager):
                return {"train": self._generate_examples()}

            def _generate_examples(self):
                for number, arrays in enumerate(episodes()):
                    steps = []
                    for i in range(len(arrays["action"])):
                        full = arrays["action"][i]
                        steps.append(
                            {
                                "observation": {"image": arrays["image"][i], "state": arrays["state"][i]},
                                "action": {"world_vector": full[:3], "gripper": full[6]}
                                if split_action
                                else full,
                                "language_instruction": ("Pick it up.", "pick it up", "Pick it up.")[number],
                                "reward": 0.0,
                                "is_first": i == 0,
                                "is_last": i == len(arrays["action"]) - 1,
                            }
                        )
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
