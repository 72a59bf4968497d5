"""Sweeps: what they minimise, and Optuna at work."""

import math
import sys

import pytest
import yaml

from mode_policy.apps.objective import objective
from mode_policy.errors import ConfigError
from mode_policy.evaluation.records import EpisodeRecord
from mode_policy.evaluation.results import Evaluation
from mode_policy.training.metrics import MetricsLog, import_trackio
from mode_policy.types import Task
from tests.apps.conftest import TINY, program

TASK = Task(name="reach-v3", instruction="Reach.")


def test_rollouts_count_before_the_validation_loss(tmp_path):
    assert objective(tmp_path) is None
    log = MetricsLog(tmp_path, tensorboard=False)
    for step, loss in enumerate((0.5, 0.25)):
        log.write({"step": step, "validation_loss": loss})
    log.write({"step": 2, "loss": 9.0})
    assert objective(tmp_path) == 0.25
    records = [
        EpisodeRecord(task="reach-v3", seed=seed, success=seed < 3, steps=1, return_=0.0) for seed in range(4)
    ]
    Evaluation.from_records(records, [TASK], {}).write(tmp_path / "evaluation.json")
    assert objective(tmp_path) == 0.25
    worse = [EpisodeRecord(task="reach-v3", seed=9, success=False, steps=1, return_=0.0)]
    Evaluation.from_records(worse, [TASK], {}).write(tmp_path / "evaluation.json")
    assert objective(tmp_path) == 1.0


def test_trackio_is_optional(monkeypatch):
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(ConfigError, match=r"mode-policy\[trackio\]"):
        import_trackio()


def test_trackio_gets_every_record(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio")
    from trackio.sqlite_storage import SQLiteStorage

    monkeypatch.setattr("trackio.sqlite_storage.TRACKIO_DIR", tmp_path / "trackio")
    for keep, step in ((None, 1), (1, 2)):
        log = MetricsLog(tmp_path / "run", tensorboard=False, trackio="demo", keep_steps=keep)
        log.write({"step": step, "loss": 0.5})
        log.close()
    (name,) = SQLiteStorage.get_runs("demo")
    assert name.startswith("run-")
    assert [r["step"] for r in SQLiteStorage.get_logs("demo", name)] == [1, 2]


@pytest.mark.slow
def test_optuna_finds_the_better_of_two(tmp_path, reach_store):
    """A learning rate that ruins the run, and one that does not; what diverges does not end the sweep."""
    optuna = pytest.importorskip("optuna")
    storage = f"sqlite:///{tmp_path}/sweep.db"
    done = program(
        *("train", "-m", "hydra/sweeper=mode_optuna", "hydra.sweeper.n_trials=4", *TINY),
        *("dataset.source=path", f"dataset.path={reach_store}", "evaluation.episodes=0"),
        *("trainer.learning_rate=choice(1e-3,1e6)", f"hydra.sweep.dir={tmp_path}/sweep"),
        f"hydra.sweeper.storage={storage}",
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    found = yaml.safe_load((tmp_path / "sweep" / "optimization_results.yaml").read_text())
    assert found["best_params"] == {"trainer.learning_rate": 0.001}
    assert math.isfinite(found["best_value"])
    assert len(list((tmp_path / "sweep").glob("*/metrics.jsonl"))) == 4
    # The study outlives the program, so that it can be continued.
    kept = optuna.load_study(study_name="metaworld_mt10", storage=storage)
    assert kept.best_params == found["best_params"]
    assert len(kept.trials) == 4
