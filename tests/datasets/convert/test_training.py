"""Data of every format reach training with the two commands that the documentation gives for it."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr

from mode_policy.apps.cli import compose, to_plain
from mode_policy.apps.config import TrainConfig
from mode_policy.apps.data import main
from mode_policy.apps.train import run
from mode_policy.checkpoint import load_policy
from mode_policy.config import build
from mode_policy.types import ACTION, IMAGE_PREFIX, Feature, Observation

from ..conftest import VECTORS, make_episodes, write
from .conftest import libero_attributes, libero_demo, write_hdf5

GUIDE = Path(__file__).parents[3] / "docs" / "data.md"
COMMANDS = re.findall(
    r"```\n(mode-data convert [^\n]+)\n(uv run train.py task=demonstrations [^\n]+)\n```", GUIDE.read_text()
)

#: One step of the smallest network.
TINY = (
    "model=debug",
    "vision=tiny",
    "policy.language=null",
    "trainer.minutes=null",
    "trainer.steps=1",
    "trainer.batch_size=4",
    "trainer.validation_batches=1",
    "trainer.device=cpu",
    "trainer.tensorboard=false",
    "dataset.workers=0",
)


def libero(path: Path) -> None:
    demos = [libero_demo(6, np.random.default_rng(i)) for i in range(2)]
    write_hdf5(path / "open_the_drawer_demo.hdf5", demos, libero_attributes("open the drawer"))


def robomimic(path: Path) -> None:
    rng = np.random.default_rng(0)
    demo = {
        "actions": rng.uniform(-1, 1, (6, 7)),
        "obs/robot0_eef_pos": rng.normal(size=(6, 3)),
        "obs/agentview_image": rng.integers(0, 256, (6, 16, 16, 3), dtype=np.uint8),
    }
    settings = {"env_name": "PickPlaceCan", "type": 1, "env_kwargs": {"control_freq": 20}}
    write_hdf5(path, [demo] * 2, {"env_args": json.dumps(settings)})


def lerobot(path: Path) -> None:
    pytest.importorskip("lerobot.datasets.lerobot_dataset")
    from .test_lerobot import write_dataset

    write_dataset(path, use_videos=False)


def replay_buffer(path: Path) -> None:
    from .test_replay_buffer import zipped

    rng = np.random.default_rng(0)
    group = zarr.create_group(str(path.with_suffix("")), zarr_format=2)
    arrays = {
        "data/img": rng.integers(0, 256, (10, 16, 16, 3)).astype(np.float32),
        "data/state": rng.normal(size=(10, 5)).astype(np.float32),
        "data/action": rng.normal(size=(10, 2)).astype(np.float32),
        "meta/episode_ends": np.array([6, 10]),
    }
    for name, x in arrays.items():
        group.create_array(name, data=x)
    zipped(path.with_suffix(""))
    path.with_suffix("").rename(path.parent / "unpacked")


def calvin(path: Path) -> None:
    from .test_calvin import write_split

    write_split(path / "training")


def rlds(path: Path) -> None:
    from .test_rlds import write_dataset

    written = write_dataset(path.parent / "built", camera="image_0")
    path.parent.mkdir(parents=True, exist_ok=True)
    written.rename(path)


def mcap(path: Path) -> None:
    pytest.importorskip("mcap_ros2.writer")
    from .test_mcap import write_bag

    for name in ("one", "two"):
        write_bag(path / f"{name}.mcap")


def store(path: Path) -> None:
    features = {**VECTORS, f"{IMAGE_PREFIX}front": Feature(shape=(16, 16, 3), dtype="uint8")}
    write(path, make_episodes([5, 6], features), features)


SOURCES: dict[str, Callable[[Path], None]] = {
    "libero_90": libero,
    "can.hdf5": robomimic,
    "my_lerobot_dataset": lerobot,
    "pusht.zarr.zip": replay_buffer,
    "task_ABC_D": calvin,
    "bridge_dataset/1.0.0": rlds,
    "bags": mcap,
    "mine.zarr": store,
}


def test_every_format_is_shown() -> None:
    assert [shlex.split(convert)[2] for convert, _ in COMMANDS] == list(SOURCES)


@pytest.mark.parametrize(("convert", "train"), COMMANDS, ids=list(SOURCES))
def test_two_commands_lead_to_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, convert: str, train: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    source = shlex.split(convert)[2]
    SOURCES[source](tmp_path / source)
    main(shlex.split(convert)[1:])
    data = to_plain(compose("train", [*shlex.split(train)[3:], *TINY]))
    config = build(TrainConfig, data)
    run(config, tmp_path / "run", data)
    policy = load_policy(tmp_path / "run" / "checkpoints" / "last")
    observation = Observation(
        states={
            key: torch.zeros(1, 1, *feature.shape)
            for key, feature in policy.features.items()
            if key != ACTION and not key.startswith(IMAGE_PREFIX)
        },
        images={
            IMAGE_PREFIX + name: torch.zeros(
                1, 1, *policy.features[IMAGE_PREFIX + name].shape, dtype=torch.uint8
            )
            for name in config.policy.cameras
        },
    )
    assert config.policy.cameras
    assert torch.isfinite(policy.act(observation)).all()
