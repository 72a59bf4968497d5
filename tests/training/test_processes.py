"""Several processes train the policy that one would: real ones, started by torchrun, that talk over gloo."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from mode_policy.errors import ConfigError
from mode_policy.training.metrics import read_metrics
from mode_policy.training.processes import Processes, RowsOfAll, even_share
from tests import toy
from tests.conftest import ROOT
from tests.training.runs import config
from tests.training.shared_run import make


def launch(folder, *changes, count=2, module="shared_run"):
    """Start the run of `shared_run` in several processes."""
    launcher = ("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}")
    return subprocess.Popen(
        [sys.executable, *launcher, "-m", f"tests.training.{module}", str(folder), *changes],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def difference(one, two):
    """Largest difference of any weight, raw or averaged, between two runs."""
    worst = 0.0
    for name in ("weights.safetensors", "weights_raw.safetensors"):
        a, b = (load_file(folder / "checkpoints" / "last" / name) for folder in (one, two))
        worst = max(worst, *((a[k] - b[k]).abs().max().item() for k in a))
    return worst


def test_two_processes_train_what_one_does(tmp_path):
    """With all draws of the default policy, and more padding in one process's rows than in the other's."""
    _, errors = (process := launch(tmp_path / "two")).communicate(timeout=600)
    assert process.returncode == 0, errors
    make(tmp_path / "one").run()
    # float32 sums in another order; weights are of the order of 0.1, and 8 steps move them by up to 0.02.
    assert difference(tmp_path / "one", tmp_path / "two") < 1e-6
    one, two = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("one", "two"))
    assert [r["step"] for r in one] == [r["step"] for r in two] == [2, 4, 6, 8]
    for a, b in zip(one, two, strict=True):
        for key in set(a) - {"seconds", "samples_per_second"}:
            assert a[key] == pytest.approx(b[key], rel=1e-5), key


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes", [("accumulate=2", "balance=0"), ("sharding=full", "activation_checkpointing=1")]
)
def test_parts_and_shares_make_no_difference(tmp_path, changes):
    _, errors = (process := launch(tmp_path / "two", *changes)).communicate(timeout=600)
    assert process.returncode == 0, errors
    make(tmp_path / "one", balance=0 if "balance=0" in changes else 0.01).run()
    assert difference(tmp_path / "one", tmp_path / "two") < 1e-6


def test_a_batch_in_parts_gives_the_same_step(tmp_path):
    make(tmp_path / "one", balance=0).run()
    make(tmp_path / "parts", balance=0, accumulate=4).run()
    assert difference(tmp_path / "one", tmp_path / "parts") < 1e-6


def test_recomputed_activations_are_the_same_to_the_bit(tmp_path):
    make(tmp_path / "kept").run()
    make(tmp_path / "recomputed", activation_checkpointing=True).run()
    assert difference(tmp_path / "kept", tmp_path / "recomputed") == 0


def test_recomputing_keeps_less_memory():
    """Counted by what autograd saves for the backward pass."""

    def saved(recompute):
        policy, sizes = toy.policy().train(), []
        for block in policy.denoiser.blocks:
            block.recompute = recompute

        def keep(x):
            sizes.append(x.numel())
            return x

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            policy(toy.batch(0))
        return sum(sizes)

    assert saved(True) < 0.6 * saved(False)


@pytest.mark.slow
@pytest.mark.parametrize(
    "stages",
    [
        pytest.param([(4, "full"), (2, "none")], id="four shares, two replicas, one"),
        pytest.param([(1, "none"), (2, "full")], id="one, two shares, one"),
    ],
)
def test_a_run_goes_on_exactly_with_other_processes(tmp_path, stages):
    """Four steps in each stage, and the last four in this process."""
    for number, (count, sharding) in enumerate(stages, start=1):
        changes = (f"until={4 * number}", "steps=12", f"sharding={sharding}")
        _, errors = (process := launch(tmp_path / "many", *changes, count=count)).communicate(timeout=600)
        assert process.returncode == 0, errors
    trainer = make(tmp_path / "many", steps=12)
    trainer.resume(trainer.checkpoints.last)
    assert (trainer.step, trainer.state.processes) == (8, 2)
    trainer.run()
    make(tmp_path / "one", steps=12).run()
    assert difference(tmp_path / "one", tmp_path / "many") < 1e-6


@pytest.mark.slow
def test_a_checkpoint_holds_what_pytorch_gathers_to_the_bit(tmp_path):
    """Written by shares, read by shares, and read by shares from what one process wrote."""
    one = make(tmp_path / "one", steps=4)
    one.run()
    process = launch(tmp_path / "two", str(one.checkpoints.last), module="shared_state")
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    assert difference(tmp_path / "one", tmp_path / "two") > 0  # two checkpoints, and each was held to its own


@pytest.mark.slow
def test_a_killed_process_ends_the_run_and_it_resumes_exactly(tmp_path):
    process = launch(tmp_path / "two", "steps=60", "sharding=full")
    try:
        deadline = time.monotonic() + 600
        while not (tmp_path / "two" / "checkpoints" / "last").exists():
            assert time.monotonic() < deadline
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        workers = subprocess.run(
            ["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True
        )
        os.kill(int(workers.stdout.split()[1]), signal.SIGKILL)
        _, errors = process.communicate(timeout=600)
        assert process.returncode != 0
        assert "Signal 9" in errors
    finally:
        process.kill()
    _, errors = (process := launch(tmp_path / "two", "steps=60", "sharding=full")).communicate(timeout=600)
    assert process.returncode == 0, errors
    make(tmp_path / "one", steps=60).run()
    assert difference(tmp_path / "one", tmp_path / "two") < 1e-5


def test_another_seed_is_told_apart(tmp_path):
    """Negative control of the tolerance above: it is not met by chance."""
    make(tmp_path / "one").run()
    make(tmp_path / "two", seed=1).run()
    assert difference(tmp_path / "one", tmp_path / "two") > 1e-3


@pytest.mark.slow
def test_a_launcher_that_is_stopped_leaves_a_checkpoint_to_continue_from(tmp_path):
    process = launch(tmp_path / "two", "steps=120")
    try:
        deadline = time.monotonic() + 600
        while not (tmp_path / "two" / "checkpoints" / "last").exists():
            assert time.monotonic() < deadline
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=600)
    finally:
        process.kill()
    at = int(os.readlink(tmp_path / "two" / "checkpoints" / "last").removeprefix("step_"))
    assert read_metrics(tmp_path / "two" / "metrics.jsonl")[-1]["step"] == at < 120
    _, errors = (process := launch(tmp_path / "two", "steps=120")).communicate(timeout=600)
    assert process.returncode == 0, errors
    make(tmp_path / "one", steps=120).run()
    # As above; rounding grows on the way through 120 steps.
    assert difference(tmp_path / "one", tmp_path / "two") < 1e-5


@pytest.mark.parametrize(("batch_size", "instead"), [(15, 12), (2, 4)])
def test_a_batch_that_cannot_be_shared_is_refused(batch_size, instead):
    message = rf"4 processes cannot share trainer.batch_size={batch_size} windows evenly.*e.g. {instead}$"
    with pytest.raises(ConfigError, match=message):
        even_share(batch_size, 4)
    assert even_share(instead, 4) == instead // 4


@pytest.mark.parametrize(
    "draw",
    [
        lambda n, g: torch.rand(n, generator=g, dtype=torch.float64),
        lambda n, g: torch.rand((n, 3), generator=g),
        lambda n, g: torch.randint(2, 9, (n, 2), generator=g),
        lambda n, g: torch.empty(n, 5).normal_(generator=g),
        lambda n, g: torch.empty(n, 4).exponential_(generator=g),
    ],
)
def test_processes_together_draw_what_one_draws(draw):
    whole = draw(6, torch.Generator().manual_seed(3))
    parts = []
    for rank in range(3):
        generator = torch.Generator().manual_seed(3)
        with RowsOfAll(generator, rank, count=3):
            parts.append(draw(2, generator))
            other = draw(2, torch.Generator().manual_seed(3))
        assert torch.equal(other, draw(2, torch.Generator().manual_seed(3))), "other generators are let alone"
    assert torch.equal(torch.cat(parts), whole)


def test_draws_that_have_no_rows_are_noticed():
    generator = torch.Generator()
    with RowsOfAll(generator, 0, 2), pytest.raises(NotImplementedError, match="does not draw row by row"):
        torch.randperm(4, generator=generator)


def test_alone():
    """Without a launcher there is one process, which waits for nobody."""
    alone = Processes(config())
    assert (alone.main, alone.count, alone.share) == (True, 1, 16)
    assert alone.agree(1.5, True) == (1.5, True)
    assert alone.from_main("runs/a") == "runs/a"
    with alone.main_first():
        alone.wait()
    alone.close()
