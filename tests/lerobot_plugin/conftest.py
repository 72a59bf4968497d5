"""A small LeRobotDataset, made by LeRobot's own classes, and policies that are small enough for it."""

from __future__ import annotations

import functools
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("lerobot.policies")
pytest.importorskip("lerobot_policy_mode")

import draccus
from lerobot.configs import PreTrainedConfig
from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.policies import make_policy, make_pre_post_processors

from lerobot_policy_mode.configuration_mode import ModeConfig
from lerobot_policy_mode.modeling_mode import ModePolicy
from mode_policy.encoders.language import ENCODERS

CAMERA = "observation.image"
TASKS = ("Push the T.", "Pull the T.")
STATES = {"observation.state": 2, "observation.environment_state": 3}
#: Flags that make a policy small enough for a test.
SMALL = (
    "denoiser.dim=16",
    "denoiser.num_layers=2",
    "denoiser.num_heads=2",
    "vision.width=4",
    "vision.size=32",
    "chunk_size=4",
    "n_action_steps=2",
    "device=cpu",
    "push_to_hub=false",
)


def write_dataset(
    root: Path,
    lengths: tuple[int, ...] = (7, 5, 6),
    *,
    image: tuple[int, int] | None = (40, 48),
    cameras: tuple[str, ...] = (CAMERA,),
    states: dict[str, int] = STATES,
    action: int = 2,
    seed: int = 0,
) -> Path:
    """Write random episodes of two tasks, as a user of LeRobot records them."""
    pictures = dict.fromkeys(cameras, (*image, 3)) if image else {}
    features: dict[str, Any] = {
        **{
            k: {"dtype": "image", "shape": v, "names": ["height", "width", "channels"]}
            for k, v in pictures.items()
        },
        **{
            k: {"dtype": "float32", "shape": (n,), "names": [f"s{i}" for i in range(n)]}
            for k, n in states.items()
        },
        "action": {
            "dtype": "float32",
            "shape": (action,),
            "names": {"axes": [f"a{i}" for i in range(action)]},
        },
    }
    dataset = LeRobotDataset.create("local/tiny", 10, features, root=root, use_videos=False)
    rng = np.random.default_rng(seed)
    for number, steps in enumerate(lengths):
        for _ in range(steps):
            frame = {k: rng.integers(0, 256, shape, dtype=np.uint8) for k, shape in pictures.items()}
            frame |= {k: rng.normal(size=n).astype(np.float32) for k, n in states.items()}
            frame["action"] = rng.uniform(0, 400, action).astype(np.float32)
            dataset.add_frame({**frame, "task": TASKS[number % 2]})
        dataset.save_episode()
    dataset.finalize()
    return root


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing may be asked of the hub, and caches belong to the test."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set that tests share, and do not change."""
    return write_dataset(tmp_path_factory.mktemp("lerobot") / "tiny")


@pytest.fixture
def own_dataset(dataset: Path, tmp_path: Path) -> Path:
    """A data set of the test's own."""
    return Path(shutil.copytree(dataset, tmp_path / "tiny"))


@pytest.fixture
def toy_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """A text encoder ``toy`` without weights: eight numbers that depend on the text alone."""

    def load() -> Callable[[str], torch.Tensor]:
        def embed(text: str) -> torch.Tensor:
            generator = torch.Generator().manual_seed(sum(map(ord, text)))
            return torch.randn(1, 8, generator=generator)

        return embed

    monkeypatch.setitem(ENCODERS, "toy", load)


@dataclass
class Line:
    """A command line that has a policy."""

    policy: PreTrainedConfig


def config(*flags: str, small: tuple[str, ...] = SMALL) -> ModeConfig:
    """The configuration that LeRobot makes of ``--policy.<flag>``; later flags count."""
    given = {flag.split("=", 1)[0]: flag for flag in ("type=mode", "language=null", *small, *flags)}
    return draccus.parse(Line, args=[f"--policy.{flag}" for flag in given.values()]).policy


def metadata(root: Path) -> LeRobotDatasetMetadata:
    return LeRobotDatasetMetadata("local/tiny", root=root)


def fresh(root: Path, *flags: str) -> ModePolicy:
    """A new policy for a data set, as ``lerobot-train`` makes it."""
    torch.manual_seed(0)
    return make_policy(config(*flags), ds_meta=metadata(root))


def save(policy: ModePolicy, folder: Path) -> Path:
    """Save a policy as ``lerobot-train`` does it."""
    for part in (policy, *make_pre_post_processors(policy.config)):
        part.save_pretrained(folder)
    return folder


def batch_of(root: Path, policy: ModePolicy, size: int = 18) -> dict[str, Any]:
    """The first samples of a data set, as ``lerobot-train`` hands them to the policy."""
    c = policy.config
    steps = tuple(c.observation_delta_indices), tuple(c.action_delta_indices)
    return dict(_batch(root, tuple(c.input_features), *steps, size))


@functools.cache
def _batch(
    root: Path, keys: tuple[str, ...], seen: tuple[int, ...], done: tuple[int, ...], size: int
) -> dict[str, Any]:
    deltas = {key: [i / 10 for i in seen] for key in keys} | {"action": [i / 10 for i in done]}
    data = LeRobotDataset("local/tiny", root=root, delta_timestamps=deltas)
    return next(iter(torch.utils.data.DataLoader(data, batch_size=size)))


def edit_json(path: Path, change: Callable[[Any], Any]) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


@pytest.fixture
def _own_accelerator() -> Iterator[None]:
    """LeRobot's loop makes an Accelerator, whose settings the process would keep."""
    import logging

    from accelerate.state import AcceleratorState

    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    root.handlers[:], root.level = handlers, level


@pytest.fixture
def offline_environment(tmp_path: Path) -> dict[str, str]:
    """Environment variables of a program of LeRobot's that runs by itself."""
    offline = {"HF_HUB_OFFLINE": "1", "HF_LEROBOT_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    return {**os.environ, **offline}


@pytest.fixture
def opengl() -> dict[str, str]:
    """Environment variables that choose a way to render that works on this machine."""
    from mode_envs.renderer import rendering_available

    available, backend = rendering_available()
    if not available:
        pytest.skip(backend)
    return {"MUJOCO_GL": backend, "PYOPENGL_PLATFORM": backend}


@pytest.fixture
def libero(tmp_path: Path) -> dict[str, str]:
    """Environment variables that tell LIBERO where its files are: it would ask, and download what it has."""
    from mode_envs.libero_assets import find_assets, package_folder
    from mode_policy.errors import SimulatorError

    try:
        package, assets = package_folder(), find_assets(download=False)
    except SimulatorError as error:
        pytest.skip(str(error))
    paths = {"benchmark_root": package, "bddl_files": package / "bddl_files"}
    paths |= {"init_states": package / "init_files", "datasets": tmp_path}
    (tmp_path / "libero").mkdir()
    lines = "".join(f"{name}: {path}\n" for name, path in paths.items())
    (tmp_path / "libero" / "config.yaml").write_text(lines)
    # It looks for meshes and textures in the cache of its download.
    cache = tmp_path / ".cache" / "libero"
    cache.mkdir(parents=True)
    (cache / "assets").symlink_to(assets, target_is_directory=True)
    return {"LIBERO_CONFIG_PATH": str(tmp_path / "libero"), "HOME": str(tmp_path)}
