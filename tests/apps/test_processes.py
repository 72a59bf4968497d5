"""``train.py`` in several processes."""

import os
import re
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.torch import load_file

from mode_datasets import open_store
from mode_policy.apps.cli import compose, to_plain
from mode_policy.apps.config import TrainConfig
from mode_policy.apps.training_data import training_data
from mode_policy.config import build
from tests.apps.conftest import ROOT, TINY


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
