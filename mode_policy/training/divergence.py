"""Noticing that a run is lost, and keeping what its author needs to find out why."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import save

from mode_policy.errors import TrainingDivergedError
from mode_policy.files import replacing
from mode_policy.types import Batch


def find_divergence(losses: Sequence[float], limit: float, finite: bool) -> tuple[int, str] | None:
    """Look for a loss that is not finite or above ``limit``; ``finite`` says whether the weights are.

    Returns:
        The index of the bad loss (of the last one for bad weights) and what is wrong; None if nothing is.
    """
    for index, loss in enumerate(losses):
        if not loss <= limit:  # true of NaN, too
            return index, f"the loss became {loss:.4g}"
    if not finite:
        return len(losses) - 1, "the weights became non-finite"
    return None


def describe_divergence(
    what: str, step: int, first_loss: float | None, batch_file: Path, last_checkpoint: Path
) -> TrainingDivergedError:
    """Return the error that says what happened and what to look at."""
    began = "" if first_loss is None else f" (the loss began at {first_loss:.4g})"
    kept = (
        f"the last good checkpoint is {last_checkpoint}"
        if last_checkpoint.exists()
        else "no checkpoint had been written"
    )
    return TrainingDivergedError(
        f"{what} at step {step}{began}. The batch is in {batch_file}; {kept}. Look at the batch for "
        "outliers, lower trainer.learning_rate or trainer.grad_clip."
    )


def save_batch(path: Path, batch: Batch) -> None:
    """Write a batch as safetensors: ``actions``, ``action_is_pad``, ``instruction``, and features by key."""
    seen = batch.observation
    tensors = {"actions": batch.actions, "action_is_pad": batch.action_is_pad, **seen.states, **seen.images}
    if seen.instruction is not None:
        tensors["instruction"] = seen.instruction
    with replacing(path) as partial:
        partial.write_bytes(save({k: v.cpu().contiguous() for k, v in tensors.items()}))
