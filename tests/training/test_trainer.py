"""The training loop: it learns, resumes exactly, and stops when it should."""

import math
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mode_policy.checkpoint import load_policy
from mode_policy.config import build
from mode_policy.errors import CheckpointError, ConfigError, DataError, TrainingDivergedError
from mode_policy.training.config import TrainerConfig
from mode_policy.training.metrics import MetricsLog, read_metrics
from mode_policy.training.optimizer import parameter_groups
from mode_policy.training.trainer import Trainer
from tests import toy

ROOT = Path(__file__).parents[2]


def config(**changes) -> TrainerConfig:
    data = {
        "steps": 12,
        "batch_size": 16,
        "learning_rate": 3e-3,
        "log_every": 2,
        "validate_every": 4,
        "checkpoint_every": 4,
        "device": "cpu",
        "tensorboard": False,
    }
    return build(TrainerConfig, data | changes)


def trainer(folder, batch=toy.batch, **changes) -> Trainer:
    policy = toy.policy(**changes.pop("policy", {}))
    return Trainer(policy, config(**changes), batch, [toy.batch(10**6)], folder)


def weights(folder, name="weights_raw.safetensors"):
    return load_file(folder / "checkpoints" / "last" / name)


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


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_resuming_is_exact(tmp_path, dropout):
    """Interrupted after any checkpoint and resumed: the same weights, averages and metrics, bit for bit."""
    extra = {
        "policy": {"denoiser": {"dim": 16, "num_layers": 2, "num_heads": 2, "attention_dropout": dropout}}
    }
    trainer(tmp_path / "whole", **extra).run()

    class PowerCutError(Exception):
        pass

    def stop_at_nine(step):
        if step == 9:
            raise PowerCutError
        return toy.batch(step)

    with pytest.raises(PowerCutError):
        trainer(tmp_path / "parts", stop_at_nine, **extra).run()
    second = trainer(tmp_path / "parts", **extra)
    second.resume(tmp_path / "parts" / "checkpoints" / "last")
    assert second.step == 8
    second.run()
    for name in ("weights.safetensors", "weights_raw.safetensors", "training/optimizer.safetensors"):
        a, b = weights(tmp_path / "whole", name), weights(tmp_path / "parts", name)
        assert a.keys() == b.keys()
        assert all(torch.equal(a[k], b[k]) for k in a), name
    timed = ("seconds", "samples_per_second")
    a, b = (
        [{k: v for k, v in r.items() if k not in timed} for r in read_metrics(tmp_path / n / "metrics.jsonl")]
        for n in ("whole", "parts")
    )
    assert a == b


@pytest.mark.parametrize(("change", "name"), [({"batch_size": 8}, "batch_size"), ({"seed": 5}, "seed")])
def test_a_resume_that_could_not_be_exact_is_refused(tmp_path, change, name):
    trainer(tmp_path).run()
    with pytest.raises(CheckpointError, match=f"{name}="):
        trainer(tmp_path, **change).resume(tmp_path / "checkpoints" / "last")


def test_a_resume_with_another_network_is_refused(tmp_path):
    trainer(tmp_path).run()
    other = trainer(tmp_path / "other", policy={"denoiser": {"dim": 32, "num_layers": 2, "num_heads": 2}})
    with pytest.raises(CheckpointError, match="another architecture"):
        other.resume(tmp_path / "checkpoints" / "last")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"policy": {"normalize_action": "mean_std"}}, "policy.normalize_action=min_max, now mean_std"),
        ({"policy": {"denoiser": {"dim": 16, "num_layers": 1, "num_heads": 2}}}, "num_layers=2, now 1"),
        ({"freeze_routers": True}, "trained other parameters"),
    ],
)
def test_a_resume_with_other_settings_is_refused(tmp_path, change, message):
    trainer(tmp_path).run()
    with pytest.raises(CheckpointError, match=message):
        trainer(tmp_path, **change).resume(tmp_path / "checkpoints" / "last")


def test_another_sampler_does_not_matter_to_a_resume(tmp_path):
    trainer(tmp_path).run()
    other = trainer(tmp_path, policy={"sampler": {"steps": 3}})
    other.resume(tmp_path / "checkpoints" / "last")
    assert (other.step, other.policy.config.sampler.steps) == (12, 3)


def test_resuming_a_finished_run_ends_it_again(tmp_path):
    first = trainer(tmp_path).run()
    again = trainer(tmp_path)
    again.resume(tmp_path / "checkpoints" / "last")
    second = again.run()
    assert (second.steps, second.loss, second.validation_loss) == (
        first.steps,
        first.loss,
        first.validation_loss,
    )
    assert second.samples_per_second == pytest.approx(first.samples_per_second, rel=0.5)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_waits_for_the_step_and_resumes_exactly(tmp_path, number):
    trainer(tmp_path / "whole").run()

    def interrupted(step):
        if step == 6:
            os.kill(os.getpid(), number)
        return toy.batch(step)

    # A test run in the background inherits an ignored SIGINT, which the trainer respects.
    before = signal.signal(number, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            trainer(tmp_path / "parts", interrupted).run()
    finally:
        signal.signal(number, before)
    second = trainer(tmp_path / "parts")
    second.resume(tmp_path / "parts" / "checkpoints" / "last")
    assert second.step == 7
    second.run()
    for name in ("weights.safetensors", "weights_raw.safetensors"):
        a, b = weights(tmp_path / "whole", name), weights(tmp_path / "parts", name)
        assert all(torch.equal(a[k], b[k]) for k in a), name


def test_bad_weights_are_never_saved(tmp_path):
    """Checkpoints come between two records, where the loss has not been looked at yet."""

    def poisoned(step):
        batch = toy.batch(step)
        return replace(batch, actions=batch.actions + math.nan) if step == 5 else batch

    with pytest.raises(TrainingDivergedError, match="at step 5"):
        trainer(tmp_path, poisoned, log_every=10, checkpoint_every=4, validate_every=10).run()
    assert os.readlink(tmp_path / "checkpoints" / "last") == "step_0000004"
    assert all(p.isfinite().all() for p in load_policy(tmp_path / "checkpoints" / "last").parameters())


def test_validation_and_records_keep_their_own_time(tmp_path):
    trainer(tmp_path, steps=12, log_every=4, validate_every=6, checkpoint_every=5).run()
    records = read_metrics(tmp_path / "metrics.jsonl")
    assert [r["step"] for r in records if "validation_loss" in r] == [6, 12]
    assert [r["step"] for r in records if "loss" in r] == [4, 8, 12]


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


def test_last_and_best_are_kept_and_nothing_else(tmp_path):
    trainer(tmp_path).run()
    folder = tmp_path / "checkpoints"
    kept = {(folder / name).resolve().name for name in ("last", "best")}
    assert {p.name for p in folder.glob("step_*")} == kept
    assert not list(folder.glob(".*"))


def test_minutes_end_a_run(tmp_path):
    summary = trainer(tmp_path, steps=None, minutes=0.02).run()
    assert 1.2 <= summary.seconds < 30
    assert read_metrics(tmp_path / "metrics.jsonl")[-1]["lr"] < 3e-3


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


def test_metrics_survive_a_cut_last_line(tmp_path):
    log = MetricsLog(tmp_path, tensorboard=True)
    log.write({"step": 1, "loss": 0.5})
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as f:
        f.write('{"step": 2, "lo')
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": 0.5}]
    assert list((tmp_path / "tensorboard").iterdir())
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"ste\n{"step": 3}\n')
    with pytest.raises(DataError, match=r"metrics\.jsonl, line 2 is not JSON"):
        read_metrics(tmp_path / "metrics.jsonl")


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
