"""What a sweep minimises (``uv run train.py -m hydra/sweeper=mode_optuna …``)."""

from __future__ import annotations

from pathlib import Path

from mode_policy.evaluation.results import Evaluation
from mode_policy.training.metrics import read_metrics


def objective(folder: Path) -> float | None:
    """Return a run's share of failed rollouts; without rollouts its newest validation loss.

    None where a run has neither, as in the processes that only train.
    """
    results = folder / "evaluation.json"
    if results.exists():
        return 1 - Evaluation.read(results).overall.success
    losses = [r["validation_loss"] for r in read_metrics(folder / "metrics.jsonl") if "validation_loss" in r]
    return losses[-1] if losses else None
