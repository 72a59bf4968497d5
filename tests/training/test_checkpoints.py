"""What a run leaves, and what continues from it: resumes are exact or refused."""

import math
import os
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from mode_policy.checkpoint import load_policy
from mode_policy.errors import CheckpointError, TrainingDivergedError
from mode_policy.training.interrupt import ECHO, DeferredInterrupt
from mode_policy.training.metrics import read_metrics
from tests import toy
from tests.training.runs import trainer, weights


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


def test_last_and_best_are_kept_and_nothing_else(tmp_path):
    trainer(tmp_path).run()
    folder = tmp_path / "checkpoints"
    kept = {(folder / name).resolve().name for name in ("last", "best")}
    assert {p.name for p in folder.glob("step_*")} == kept
    assert not list(folder.glob(".*"))


def test_leftovers_of_dead_processes_are_removed(tmp_path):
    """A process that is killed while it writes cannot clean up; one that lives may still be writing."""
    folder = tmp_path / "checkpoints"
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    alive = os.getppid()
    for pid in (dead.pid, os.getpid(), alive, 10**30):
        (folder / f".step_0000002.partial-{pid}" / "training").mkdir(parents=True)
        (folder / f".last.partial-{pid}").symlink_to("step_0000002")
    (folder / ".step_0000002.partial-x").mkdir()
    trainer(tmp_path, steps=1).run()
    names = {p.name for p in folder.glob(".*")}
    assert names == {f".step_0000002.partial-{alive}", f".last.partial-{alive}", ".step_0000002.partial-x"}


def test_signals_that_a_launcher_repeats_are_one():
    interrupt = DeferredInterrupt()
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with interrupt:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
            assert interrupt.requested
            interrupt.requested_at -= 2 * ECHO
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
