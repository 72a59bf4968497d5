"""Demonstrations of a small robot that behaves, to inject faults into."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import mode_datasets.columns
import mode_datasets.profiles
from mode_datasets import StoreWriter
from mode_datasets.check import Finding, Report, check_store
from mode_policy.convention import Convention
from mode_policy.types import ACTION, STATE, Episode, Feature, Features, Task
from tests.datasets.conftest import CAMERA, PROVENANCE

WRIST = "observation.images.wrist"
FEATURES: Features = {
    STATE: Feature(shape=(3,), names=("x", "y", "gripper"), unit="m"),
    ACTION: Feature(shape=(3,), names=("x", "y", "gripper"), unit="m"),
    CAMERA: Feature(shape=(24, 32, 3), dtype="uint8"),
    WRIST: Feature(shape=(12, 12, 3), dtype="uint8"),
}
TASKS = (Task(name="push", instruction="push the puck"), Task(name="reach", instruction="reach the goal"))
CONVENTION = Convention(action_kind="absolute", action_frame="world", gripper="plus_closes", fps=20.0)
EPISODES = 12

Change = Callable[[list[Episode]], list[Episode]]
MakeStore = Callable[..., Path]


def demonstrations(number: int = EPISODES) -> list[Episode]:
    """Episodes in which the robot follows its targets, and two cameras see it move."""
    rng = np.random.default_rng(7)
    return [_demonstration(rng, i) for i in range(number)]


def _demonstration(rng: np.random.Generator, index: int) -> Episode:
    steps = int(rng.integers(50, 80))
    # A smooth path through the unit square, and a gripper that closes once.
    knots = rng.uniform(0.1, 0.9, (6, 2))
    at = np.linspace(0, 5, steps)
    path = np.stack([np.interp(at, np.arange(6), knots[:, i]) for i in range(2)], axis=1)
    target = path + 0.02 * rng.normal(size=path.shape)
    closed = np.where(at > rng.uniform(1, 4), 1.0, -1.0)
    state = np.empty((steps, 3))
    state[0] = [*path[0], 0.0]
    for t in range(1, steps):
        state[t, :2] = state[t - 1, :2] + 0.7 * (target[t - 1] - state[t - 1, :2])
        state[t, 2] = state[t - 1, 2] + 0.3 * ((closed[t - 1] + 1) / 2 - state[t - 1, 2])
    arrays = {
        STATE: state.astype(np.float32),
        ACTION: np.column_stack([target, closed]).astype(np.float32),
        CAMERA: picture(state, 24, 32, 60),
        WRIST: picture(state[:, ::-1], 12, 12, 90),
    }
    return Episode(arrays=arrays, task=TASKS[index % 2], seed=index)


def picture(state: np.ndarray, height: int, width: int, light: int) -> np.ndarray:
    """A bright spot where the robot is, uint8 ``(T, height, width, 3)``."""
    y, x = np.mgrid[0:height, 0:width]
    away = (x / width - state[:, 0, None, None]) ** 2 + (y / height - state[:, 1, None, None]) ** 2
    return np.repeat((light + 150 * np.exp(-20 * away)).astype(np.uint8)[..., None], 3, axis=-1)


def changed(episode: Episode, **arrays: np.ndarray) -> Episode:
    """Replace arrays of an episode: ``state``, ``action``, ``front``, ``wrist``."""
    keys = {"state": STATE, "action": ACTION, "front": CAMERA, "wrist": WRIST}
    return replace(episode, arrays={**episode.arrays, **{keys[k]: x for k, x in arrays.items()}})


def write_demonstrations(
    path: Path,
    episodes: Sequence[Episode],
    features: Features = FEATURES,
    convention: Convention = CONVENTION,
) -> Path:
    """Write a store of some of the features."""
    with StoreWriter(path, features, convention, PROVENANCE) as writer:
        for episode in episodes:
            writer.append(replace(episode, arrays={key: episode.arrays[key] for key in features}))
    return path


@pytest.fixture(scope="session")
def clean_episodes() -> list[Episode]:
    """Episodes without any fault; not to be changed."""
    return demonstrations()


@pytest.fixture
def make_demos(
    tmp_path: Path, clean_episodes: list[Episode], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Path]:
    """A function that writes the clean episodes, changed by a function; several files to each array."""
    monkeypatch.setattr(mode_datasets.profiles, "SHARD_FRAMES", 100)
    monkeypatch.setattr(mode_datasets.columns, "VECTOR_BYTES", 1200)

    def make(change: Change = lambda episodes: episodes, name: str = "demo.zarr", **options: object) -> Path:
        return write_demonstrations(tmp_path / name, change(list(clean_episodes)), **options)  # type: ignore[arg-type]

    return make


def alarms(report: Report) -> dict[str, Finding]:
    """Errors and warnings by the name of their check; each check once."""
    found = [f for f in report.findings if f.severity != "info"]
    assert len({f.check for f in found}) == len(found), found
    return {f.check: f for f in found}


def only(path: Path, check: str) -> Finding:
    """Check a store, and return its one error or warning."""
    found = alarms(check_store(path).report)
    assert set(found) == {check}, found
    return found[check]
