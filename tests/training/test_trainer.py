"""The training loop: it learns, repeats itself, and stops when it should."""

import math
import os
import time
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from mode_policy.checkpoint import load_policy
from mode_policy.errors import ConfigError, TrainingDivergedError
from mode_policy.training.metrics import read_metrics
from mode_policy.training.optimizer import parameter_groups
from mode_policy.training.trainer import Trainer
from tests import toy
from tests.training.runs import config, trainer, weights


def test_it_learns(tmp_path):
    summary = trainer(tmp_path, steps=300, learning_rate=1e-2, validate_every=100, checkpoint_every=300).run()
    records = read_metrics(tmp_path / "metrics.jsonl")
    assert records[-1]["loss"] < 0.6 * records[0]["loss"]
    assert summary.validation_loss < 0.6
    assert summary.steps == 300
    assert load_policy(summary.checkpoint).act(toy.batch(0).observation).shape == (16, 4, 2)


def test_two_runs_are_equal_and_another_seed_is_not(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        trainer(tmp_path / name, seed=seed).run()
    a, b, c = (weights(tmp_path / name) for name in "abc")
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert any(not torch.equal(a[k], c[k]) for k in a)


def test_validation_and_records_keep_their_own_time(tmp_path):
    run = trainer(tmp_path, steps=12, log_every=4, validate_every=6, checkpoint_every=5)
    shown = []
    run.progress = lambda share, record: shown.append((share, record["loss"]))
    run.run()
    records = read_metrics(tmp_path / "metrics.jsonl")
    assert [r["step"] for r in records if "validation_loss" in r] == [6, 12]
    assert [r["step"] for r in records if "loss" in r] == [4, 8, 12]
    assert shown == [(r["step"] / 12, r["loss"]) for r in records if "loss" in r]


def test_bf16_trains_on_a_cpu(tmp_path):
    summary = trainer(tmp_path, precision="bf16").run()
    assert math.isfinite(summary.loss)
    assert {v.dtype for v in weights(tmp_path).values()} == {torch.float32}


def test_precision_may_change_within_a_process(tmp_path):
    for precision in ("float32", "bf16", "float32"):
        run = trainer(tmp_path / f"{precision}_{time.monotonic_ns()}", precision=precision, steps=1)
        assert run.accelerator.mixed_precision == ("bf16" if precision == "bf16" else "no")
        assert math.isfinite(run.run().loss)


def test_a_gpu_that_is_not_there(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ConfigError, match="finds no GPU"):
        trainer(tmp_path, device="cuda")


@pytest.mark.parametrize("kind", ["nan", "exploding"])
def test_divergence_saves_the_batch(tmp_path, kind):
    def poisoned(step):
        batch = toy.batch(step)
        value = math.nan if kind == "nan" else 1e5
        return replace(batch, actions=batch.actions + value) if step == 7 else batch

    with pytest.raises(
        TrainingDivergedError, match=r"at step 7 .*bad_batch_step_7.safetensors.*last good checkpoint"
    ):
        trainer(tmp_path, poisoned).run()
    saved = load_file(tmp_path / "bad_batch_step_7.safetensors")
    assert torch.equal(saved["actions"].isnan(), poisoned(7).actions.isnan())
    assert all(p.isfinite().all() for p in load_policy(tmp_path / "checkpoints" / "last").parameters())


def test_minutes_end_a_run(tmp_path):
    summary = trainer(tmp_path, steps=None, minutes=0.02).run()
    assert 1.2 <= summary.seconds < 30
    assert read_metrics(tmp_path / "metrics.jsonl")[-1]["lr"] < 3e-3


def test_a_clock_that_runs_out_during_validation_leaves_a_checkpoint(tmp_path):
    """The step that follows is the last, and is recorded and saved as such."""

    class Slow(list):
        def __iter__(self):
            time.sleep(0.7)
            return super().__iter__()

    never = 10**6
    run = trainer(
        tmp_path, steps=None, minutes=0.01, validate_every=1, log_every=never, checkpoint_every=never
    )
    run.validation = Slow(run.validation)
    summary = run.run()
    assert os.readlink(summary.checkpoint) == f"step_{summary.steps:07d}"
    assert read_metrics(tmp_path / "metrics.jsonl")[-1]["step"] == summary.steps
    assert math.isfinite(summary.loss)


def test_running_statistics_are_those_of_the_trained_network(tmp_path):
    """Buffers that training changes, as those of an image encoder's normalisation, are averages already."""
    policy = toy.policy()
    policy.register_buffer("seen", torch.zeros(()))

    def counted(step):
        policy.seen.add_(1)
        return toy.batch(step)

    run = Trainer(policy, config(steps=3), counted, [], tmp_path)
    run.run()
    assert run.ema.seen.item() == 3


def test_frozen_routers_stay(tmp_path):
    before = {k: v.clone() for k, v in toy.policy().state_dict().items()}
    trainer(tmp_path, freeze_routers=True).run()
    after = weights(tmp_path)
    assert all(torch.equal(after[k], before[k]) == (".router." in k) for k in before if k.endswith("weight"))


def test_every_parameter_has_one_group():
    policy = toy.policy()
    decay, keep = parameter_groups(policy, 0.1)
    assert len(decay["params"]) + len(keep["params"]) == len(list(policy.parameters()))
    assert any(p is policy.denoiser.position for p in keep["params"])
    assert any(p is policy.denoiser.blocks[0].experts.up_weight_NED for p in decay["params"])
    assert any(p is policy.denoiser.blocks[0].experts.up_bias_NE for p in keep["params"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": None}, "nothing says when to stop"),
        ({"warmup": 0.5, "hold": 0.5}, "leave no part of the run for the decay"),
        ({"learning_rat": 1}, "Did you mean 'learning_rate'"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_bad_configurations(changes, message):
    with pytest.raises(ConfigError, match=message):
        config(**changes)
