"""Programs as a user runs them."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mode_datasets import Provenance, StoreWriter
from mode_envs import env_task, features
from mode_policy.convention import Convention
from mode_policy.types import ACTION, STATE, Episode, InstructionTable

ROOT = Path(__file__).parents[2]

#: A run of seconds: one Meta-World task, the smallest network.
TINY = (
    "model=debug",
    "task.tasks=[reach-v3]",
    "trainer.minutes=null",
    "trainer.steps=6",
    "trainer.batch_size=8",
    "trainer.log_every=2",
    "trainer.validate_every=4",
    "trainer.checkpoint_every=4",
    "trainer.device=cpu",
    "evaluation.videos=0",
    "evaluation.lanes=2",
    "evaluation.workers=0",
)


def program(name: str, *arguments: str, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    """Run a root script from the root, as the README says."""
    return subprocess.run(
        [sys.executable, f"{name}.py", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
        env=os.environ | {"COLUMNS": "200"},
    )


@pytest.fixture(scope="session")
def reach_store(tmp_path_factory) -> Path:
    """Twelve demonstrations of reaching, from random motion: enough to train on, not to learn from."""
    path = tmp_path_factory.mktemp("stores") / "reach.zarr"
    task = env_task("reach-v3")
    rng = np.random.default_rng(0)
    provenance = Provenance(source="test", licence="MIT")
    with StoreWriter(path, features(task.env_id), Convention(fps=80.0), provenance) as writer:
        for seed in range(12):
            steps = int(rng.integers(8, 20))
            state = rng.normal(size=(steps, 39)).astype(np.float32)
            action = rng.uniform(-1, 1, (steps, 4)).astype(np.float32)
            writer.append(Episode(arrays={STATE: state, ACTION: action}, task=task.task, seed=seed))
        embeddings = torch.randn(1, 384, generator=torch.Generator().manual_seed(0))
        writer.set_instructions(
            InstructionTable(
                encoder="minilm-l6-v2", instructions=(task.task.instruction,), embeddings=embeddings
            )
        )
    return path
