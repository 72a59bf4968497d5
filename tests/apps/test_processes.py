"""``train.py`` in several processes."""

import contextlib
import io
import os
import re
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.torch import load_file

from mode_datasets import open_store
from mode_policy.apps.cli import compose, to_plain
from mode_policy.apps.config import TrainConfig
from mode_policy.apps.data import main as data
from mode_policy.apps.launch import start_processes
from mode_policy.apps.training_data import training_data
from mode_policy.config import build
from mode_policy.errors import ConfigError
from tests.apps.conftest import ROOT, TINY, program


def test_processes_share_each_batch(reach_store):
    config = build(TrainConfig, to_plain(compose("train", [*TINY, "trainer.batch_size=12"])))
    store = open_store(reach_store)
    alone, *parts = (
        training_data([store], config, SimpleNamespace(rank=rank, count=count, share=12 // count))
        for rank, count in ((0, 1), (0, 3), (1, 3), (2, 3))
    )
    for step in range(30):  # over the border of an epoch
        shares = [part.batch.sampler.indices(step) for part in parts]
        assert np.array_equal(np.concatenate(shares), alone.batch.sampler.indices(step))
    assert [len(b.actions) for b in parts[2].validation] == [len(b.actions) for b in alone.validation]


@pytest.mark.slow
def test_the_first_process_speaks_writes_and_evaluates(tmp_path, reach_store):
    """The run is that of one process, and its weights are, too, up to the order of sums."""
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    for name, start in (("one", (sys.executable,)), ("two", launcher)):
        done = subprocess.run(
            [
                *(*start, "train.py", *TINY, "dataset.source=path", f"dataset.path={reach_store}"),
                *("evaluation.episodes=1", f"run_dir={tmp_path}/{name}"),
            ],
            cwd=ROOT,
            capture_output=True,
            text=True,
            env=os.environ | {"COLUMNS": "200", "OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, done.stderr
        assert len(re.findall(r"^success: ", done.stdout, re.MULTILINE)) == 1
        assert len(re.findall(r"^trained ", done.stdout, re.MULTILINE)) == 1
    one, two = ({p.name for p in (tmp_path / name).iterdir()} for name in ("one", "two"))
    assert one == two
    for name in ("weights.safetensors", "weights_raw.safetensors"):
        a, b = (load_file(tmp_path / run / "checkpoints" / "last" / name) for run in ("one", "two"))
        assert max((a[k] - b[k]).abs().max().item() for k in a) < 1e-6
    done = program("train", f"resume={tmp_path}/two", "trainer.steps=8", "evaluation.episodes=0", timeout=600)
    assert "continuing at step 6 with 1 processes (before: 2)" in done.stdout


@pytest.mark.slow
def test_a_process_that_dies_is_replaced_and_the_run_goes_on(tmp_path, reach_store):
    """``trainer.devices=2``, and a killed process: the end is that of an undisturbed run."""
    settings = (
        *TINY,
        "trainer.steps=40",
        "dataset.source=path",
        f"dataset.path={reach_store}",
        "evaluation.episodes=0",
    )
    run = subprocess.Popen(
        [sys.executable, "train.py", *settings, "trainer.devices=2", f"run_dir={tmp_path}/two"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(lambda: (tmp_path / "two/checkpoints/last").exists() or run.poll() is not None)
    launcher = children(run.pid)[0]
    os.kill(children(launcher)[1], signal.SIGKILL)
    output, errors = run.communicate(timeout=600)
    assert run.returncode == 0, errors
    assert re.search(r"continuing at step \d+$", output, re.MULTILINE), output
    done = program("train", *settings, f"run_dir={tmp_path}/one")
    assert done.returncode == 0, done.stderr
    for name in ("weights.safetensors", "weights_raw.safetensors"):
        a, b = (load_file(tmp_path / run / "checkpoints" / "last" / name) for run in ("one", "two"))
        assert max((a[k] - b[k]).abs().max().item() for k in a) < 1e-5


@pytest.mark.slow
def test_bad_input_is_not_tried_again(tmp_path, reach_store):
    """What a restart cannot mend: the launcher ends, with the exit code of a single process."""
    settings = (*TINY, "dataset.source=path", f"dataset.path={reach_store}", "evaluation.episodes=0")
    done = program(
        *("train", *settings, "trainer.devices=2", "init_from=nowhere", f"run_dir={tmp_path}/run"),
        timeout=600,
    )
    assert done.returncode == 2
    assert done.stderr.count("error: nowhere is no checkpoint") == 1
    assert done.stdout.count("run        ") == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "message"),
    [("dataset", r"dataset is of \d+ windows, .*, not of \d+ windows"), ("seed", "trainer.seed is 1, not 0")],
)
def test_processes_with_other_data_or_settings_are_named_before_training(
    tmp_path, reach_store, name, message
):
    """Process 1 is given another store, as on a machine whose copy is old, or another seed."""
    for rank, episodes in enumerate(("0-11", "0-7")):
        with contextlib.redirect_stdout(io.StringIO()):
            data(["filter", str(reach_store), f"{tmp_path}/store_{rank}.zarr", "--episodes", episodes])
    rank = {"dataset": "0", "seed": "0"} | {name: "${oc.env:RANK}"}
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"),
            *("train.py", *TINY, "dataset.source=path", "evaluation.episodes=0"),
            f"dataset.path={tmp_path}/store_{rank['dataset']}.zarr",
            *(f"trainer.seed={rank['seed']}", f"run_dir={tmp_path}/run"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"COLUMNS": "200", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode != 0
    assert re.search(f"process 1 is not like process 0: {message}", done.stderr), done.stderr
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def children(pid):
    """Processes that a process started, in their order."""
    listed = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=True)
    return [int(line) for line in listed.stdout.split()]


def wait_for(condition, seconds=600):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["trainer.devices=3"], "3 processes cannot share trainer.batch_size=8 windows evenly.*e.g. 6"),
        (["trainer.devices=2", "trainer.accumulate=3"], "2 processes in trainer.accumulate=3 parts"),
    ],
)
def test_devices_that_do_not_fit(overrides, message):
    config = build(TrainConfig, to_plain(compose("train", [*TINY, *overrides])))
    with pytest.raises(ConfigError, match=message):
        start_processes(config.trainer, [])


def test_a_launcher_whose_restarts_would_hang_is_refused(monkeypatch):
    """As torchrun tells its processes; without restarts, or with a store of their own, they meet."""
    config = build(TrainConfig, to_plain(compose("train", list(TINY)))).trainer
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    assert start_processes(config, []) is None
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    with pytest.raises(ConfigError, match=r"--max-restarts=3.*Set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"):
        start_processes(config, [])
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "False")
    assert start_processes(config, []) is None


def test_one_process_needs_no_launcher(monkeypatch):
    one, two = (
        build(TrainConfig, to_plain(compose("train", [*TINY, f"trainer.devices={n}"]))).trainer
        for n in (1, 2)
    )
    assert start_processes(one, []) is None
    monkeypatch.setenv("LOCAL_RANK", "0")  # as torchrun, accelerate and SLURM's launcher set it
    assert start_processes(two, []) is None
