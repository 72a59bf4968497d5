"""A small evaluation that has everything: success, failure, metrics, restarts and hostile names."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from mode_policy.evaluation import EpisodeRecord, Evaluation
from mode_policy.types import Task

HOSTILE = "<script>alert('x')</script> & $\\frac$"


@pytest.fixture
def record() -> Callable[..., EpisodeRecord]:
    def make(task: str = "reach", seed: int = 0, success: bool = True, **changes: object) -> EpisodeRecord:
        values = {"steps": 50, "return_": 1.5, "seconds": 0.25} | changes
        return EpisodeRecord(task=task, seed=seed, success=success, **values)  # type: ignore[arg-type]

    return make


@pytest.fixture
def evaluation(record: Callable[..., EpisodeRecord]) -> Evaluation:
    tasks = [Task(name="reach", instruction="reach the goal"), Task(name=HOSTILE, instruction=HOSTILE)]
    records = [
        record(task.name, seed, success=seed % 4 != i, steps=40 + seed, metrics={"coverage": seed / 10})
        for i, task in enumerate(tasks)
        for seed in range(8)
    ]
    return Evaluation.from_records(
        records, tasks, {"sampler": HOSTILE, "steps": 5, "command": "evaluate.py a=<b>"}
    )


@pytest.fixture
def frames() -> np.ndarray:
    """Twelve frames of odd size, each with its own brightness."""
    return np.broadcast_to(np.arange(0, 240, 20, dtype=np.uint8)[:, None, None, None], (12, 31, 45, 3)).copy()
