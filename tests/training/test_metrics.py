"""Records of a run: on disk whatever happens, and in one piece after a resume."""

import sys

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mode_policy.errors import ConfigError, DataError
from mode_policy.training.metrics import MetricsLog, import_wandb, read_metrics, wandb_run_id


def test_metrics_survive_a_cut_last_line(tmp_path):
    log = MetricsLog(tmp_path, tensorboard=True)
    log.write({"step": 1, "loss": 0.5})
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as f:
        f.write('{"step": 2, "lo')
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": 0.5}]
    assert list((tmp_path / "tensorboard").iterdir())
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"ste\n{"step": 3}\n')
    with pytest.raises(DataError, match=r"metrics\.jsonl, line 2 is no record"):
        read_metrics(tmp_path / "metrics.jsonl")


def test_tensorboard_goes_on_after_the_last_kept_step(tmp_path):
    for keep_steps, steps in ((None, (1, 2, 3)), (2, (3, 4))):
        log = MetricsLog(tmp_path, keep_steps=keep_steps)
        for step in steps:
            log.write({"step": step, "loss": step + 0.1 * (keep_steps or 0)})
        log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [e.step for e in events.Scalars("loss")] == [1, 2, 3, 4]
    assert [e.value for e in events.Scalars("loss")] == pytest.approx([1, 2, 3.2, 4.2])
    assert [r["loss"] for r in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3.2, 4.2]


def test_a_run_that_goes_on_keeps_its_id_at_weights_and_biases(tmp_path):
    first = wandb_run_id(tmp_path, continued=False)
    assert wandb_run_id(tmp_path, continued=True) == first
    assert wandb_run_id(tmp_path, continued=False) != first, "a new run in an old folder is another run"


def test_weights_and_biases_is_optional(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"mode-policy\[wandb\]"):
        import_wandb()
