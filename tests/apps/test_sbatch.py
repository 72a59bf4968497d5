"""``docs/train.sbatch`` as SLURM runs it, but for SLURM itself: what is started where."""

import os
import subprocess

import pytest

from mode_policy.apps.cli import compose
from tests.apps.conftest import ROOT


@pytest.fixture
def submit(tmp_path):
    """Run the script where ``srun`` shows the command that each machine would start."""
    (tmp_path / "bin").mkdir()
    for name, script in {"srun": 'printf "%s\\n" "$@"', "scontrol": "echo node7; echo node8"}.items():
        path = tmp_path / "bin" / name
        path.write_text(f"#!/bin/bash\n{script}\n")
        path.chmod(0o755)
    slurm = {"SLURM_JOB_ID": "42", "SLURM_JOB_NODELIST": "node[7-8]", "SLURM_NNODES": "2"}
    paths = {
        "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "MODE_RUN_DIR": f"{tmp_path}/my run",
    }

    def start(*arguments):
        done = subprocess.run(
            ["bash", str(ROOT / "docs" / "train.sbatch"), *arguments],
            env=os.environ | slurm | paths,
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.splitlines()

    return start


def test_a_job_begins_and_a_requeued_one_continues(tmp_path, submit):
    run = tmp_path / "my run"
    begun = submit("task=pusht", "trainer.steps=5")
    assert begun[:5] == ["uv", "run", "torchrun", "--nnodes=2", "--nproc-per-node=4"]
    assert "--rdzv-endpoint=node7:29500" in begun
    assert begun[begun.index("train.py") + 1 :] == ["task=pusht", "trainer.steps=5", f"run_dir={run}"]
    (run / "checkpoints" / "last").mkdir(parents=True)
    again = submit("task=pusht", "trainer.steps=5")
    # A group such as task= cannot change a run that is resumed: train.py would refuse it.
    assert again[again.index("train.py") + 1 :] == [f"resume={run}"]


def test_the_launcher_of_sweeps_is_one_run_a_job():
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    compose("train", ["hydra/launcher=mode_slurm", "hydra.launcher.partition=gpu"])
