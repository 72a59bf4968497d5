"""Settings under ``dataset``: conventions that refuse, adapters, mixtures, balance, loader processes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mode_datasets import Provenance, StoreWriter, open_store
from mode_envs import convention, env_task, features
from mode_policy.apps.config import TrainConfig
from mode_policy.apps.dataset import check_conventions, get_mixture, get_store
from mode_policy.apps.training_data import training_data
from mode_policy.config import build
from mode_policy.convention import Convention
from mode_policy.errors import ConfigError, ConventionError, DataError
from mode_policy.training.processes import Processes
from mode_policy.types import Episode

REACH, PUSH = env_task("reach-v3"), env_task("push-v3")


def write(path: Path, meaning: Convention, episodes: dict[str, int]) -> None:
    described = features(REACH.env_id)
    rng = np.random.default_rng(len(episodes))
    with StoreWriter(path, described, meaning, Provenance(source="test", licence="MIT")) as writer:
        for task in (REACH, PUSH):
            for i in range(episodes.get(task.task.name, 0)):
                arrays = {
                    k: rng.uniform(-1, 1, (12, *f.shape)).astype(np.float32) for k, f in described.items()
                }
                writer.append(Episode(arrays=arrays, task=task.task, seed=i))


@pytest.fixture
def store(tmp_path: Path) -> Path:
    path = tmp_path / "reach.zarr"
    write(path, convention(REACH.env_id), {"reach-v3": 8, "push-v3": 2})
    return path


def config(path: Path, **dataset: object) -> TrainConfig:
    data = {
        "task": {"name": "reach", "suite": "metaworld_mt10", "tasks": ["reach-v3", "push-v3"]},
        "dataset": {"source": "path", "path": str(path), "validation_fraction": 0.2} | dataset,
        "policy": {"language": None, "denoiser": {"dim": 16, "num_layers": 2, "num_heads": 2}},
        "trainer": {"batch_size": 40, "steps": 3, "device": "cpu"},
        "evaluation": {},
        "run_dir": "runs/none",
    }
    return build(TrainConfig, data)


def prepared(settings: TrainConfig):
    stores = [get_store(settings.dataset, settings.task, None), *get_mixture(settings.dataset, None)]
    return stores, training_data(stores, settings, Processes(settings.trainer))


@pytest.mark.parametrize(
    ("changes", "fix"),
    [
        ({"gripper": "plus_opens"}, "dataset.adapt.gripper=plus_closes"),
        ({"fps": 160.0}, "dataset.adapt.stride=2"),
        ({"action_scale": (0.02, 0.02, 0.02, 1.0)}, r"dataset.adapt.action_scale=\[0.01, 0.01, 0.01, 1.0\]"),
        ({"action_kind": "absolute"}, "no setting can"),
    ],
)
def test_demonstrations_of_another_convention_are_refused(tmp_path: Path, changes: dict, fix: str) -> None:
    meaning = Convention(**(convention(REACH.env_id).to_json() | changes))
    write(tmp_path / "other.zarr", meaning, {"reach-v3": 2})
    with pytest.raises(ConventionError, match=rf"(?s)the dataset and mode/metaworld-reach-v3.*fix: .*{fix}"):
        check_conventions(open_store(tmp_path / "other.zarr"), [REACH])


def test_the_printed_fix_fixes_it(tmp_path: Path) -> None:
    path = tmp_path / "other.zarr"
    meaning = Convention(**(convention(REACH.env_id).to_json() | {"gripper": "plus_opens", "fps": 160.0}))
    write(path, meaning, {"reach-v3": 2})
    settings = config(path, adapt={"gripper": "plus_closes", "stride": 2})
    adapted = get_store(settings.dataset, settings.task, None)
    check_conventions(adapted, [REACH])
    assert adapted.fps == 80


def test_tasks_can_be_balanced(store: Path) -> None:
    shares = {}
    for balanced in (False, True):
        stores, data = prepared(config(store, balance_tasks=balanced, validation_fraction=0.0))
        windows = np.concatenate([data.batch.sampler.indices(step) for step in range(30)])
        shares[balanced] = np.mean(data.windows.tasks[windows] == 1)
        assert len(stores) == 1
    assert shares[False] == pytest.approx(0.2, abs=0.01)
    assert shares[True] == pytest.approx(0.5, abs=0.06)


def test_tasks_can_be_weighted(store: Path) -> None:
    def share(**dataset: object) -> float:
        _, data = prepared(config(store, validation_fraction=0.0, **dataset))
        windows = np.concatenate([data.batch.sampler.indices(step) for step in range(30)])
        return float(np.mean(data.windows.tasks[windows] == 1))

    assert share(task_weights={"push-v3": 4.0}) == pytest.approx(0.5, abs=0.06)
    assert share(task_weights={"push-v3": 3.0}, balance_tasks=True) == pytest.approx(0.75, abs=0.06)
    assert share(task_weights={"reach-v3": 0.0}) == 1
    with pytest.raises(ConfigError, match=r"no task 'puhs-v3'. Did you mean 'push-v3'"):
        share(task_weights={"puhs-v3": 1.0})
    with pytest.raises(ConfigError, match=r"leaves nothing of .*reach.zarr"):
        share(task_weights={"reach-v3": 0.0, "push-v3": 0.0})


def test_a_mixture_holds_to_one_convention(store: Path, tmp_path: Path) -> None:
    meaning = convention(REACH.env_id).to_json()
    write(tmp_path / "other.zarr", Convention(**(meaning | {"gripper": "plus_opens"})), {"push-v3": 3})
    part = {"path": str(tmp_path / "other.zarr")}
    with pytest.raises(ConventionError, match=r"(?s)other.zarr does not mix.*adapt.gripper=plus_closes"):
        prepared(config(store, mixture=[part]))
    prepared(config(store, mixture=[part | {"adapt": {"gripper": "plus_closes"}}]))


def test_stores_are_mixed(store: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.zarr"
    write(other, convention(REACH.env_id), {"push-v3": 3})
    settings = config(store, mixture=[{"path": str(other), "weight": 3.0}])
    stores, data = prepared(settings)
    assert [s.num_episodes for s in stores] == [10, 3]
    windows = np.concatenate([data.batch.sampler.indices(step) for step in range(30)])
    assert np.mean(windows >= len(data.windows.target)) == pytest.approx(0.75, abs=0.05)
    assert data.batch(0).actions.shape == (40, 10, 4)


def test_loader_processes_change_nothing(store: Path) -> None:
    alone, ahead = (prepared(config(store, workers=workers))[1] for workers in (0, 2))
    try:
        for step in range(4):
            np.testing.assert_array_equal(alone.batch(step).actions, ahead.batch(step).actions)
    finally:
        ahead.batch.close()


@pytest.mark.parametrize(
    ("dataset", "error", "message"),
    [
        ({"adapt": {"griper": "none"}}, ConfigError, "griper"),
        ({"adapt": {"stride": 0}}, ConfigError, "stride"),
        ({"mixture": [{"path": "nowhere.zarr"}]}, DataError, "no demonstration store at nowhere.zarr"),
        ({"mixture": [{"weight": 2.0}]}, ConfigError, "path"),
        ({"workers": -1}, ConfigError, "workers"),
    ],
)
def test_bad_settings_are_refused(store: Path, dataset: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        prepared(config(store, **dataset))
