"""The checkpoints of a run: writing them, keeping the right ones, and continuing from one.

::

    <run>/checkpoints/
      step_0004000/    see `mode_policy.checkpoint`; the newest and the best are kept
      last             link to the newest
      best             link to the one of the lowest validation loss
"""

from __future__ import annotations

import math
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from mode_policy.checkpoint import load_policy, load_training_state, save_checkpoint
from mode_policy.config import flatten, to_dict
from mode_policy.errors import CheckpointError
from mode_policy.files import link_atomically
from mode_policy.normalization import statistics_to_json
from mode_policy.policy import MoDEPolicy
from mode_policy.training.optimizer import load_optimizer_tensors, optimizer_tensors
from mode_policy.training.sharding import load_whole, whole


@dataclass
class TrainingState:
    """Where a run is: what it needs beside weights and optimizer in order to go on exactly.

    Attributes:
        step: optimizer steps done.
        seconds: of training, over all resumes.
        first_loss: of the first step, against which divergence is measured.
        best: lowest validation loss of a checkpoint, and its step.
        validation_loss: of the newest validation.
        validated_step: step of that validation; -1 before the first.
        processes: that trained together when this was saved.
    """

    step: int = 0
    seconds: float = 0.0
    first_loss: float | None = None
    best: tuple[float, int] | None = None
    validation_loss: float | None = None
    validated_step: int = -1
    processes: int = 1

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TrainingState:
        """Build a state from `asdict`'s mapping; of other keys no notice is taken."""
        known = {k: v for k, v in data.items() if k in cls.__dataclass_fields__}
        return cls(**known | {"best": tuple(data["best"]) if data["best"] else None})


class Checkpoints:
    """The checkpoints of one run.

    Args:
        run: folder of the run.
        policy: what is trained.
        ema: its averaged weights.
        optimizer: of the policy.
        fixed: what a run must have in common with the one that it continues, name → value.
    """

    def __init__(
        self,
        run: Path,
        policy: MoDEPolicy,
        ema: MoDEPolicy,
        optimizer: torch.optim.Optimizer,
        fixed: Mapping[str, Any],
    ) -> None:
        self.folder = run / "checkpoints"
        self.policy = policy
        self.ema = ema
        self.optimizer = optimizer
        self.fixed = dict(fixed)

    @property
    def last(self) -> Path:
        """Link to the newest checkpoint, if one has been written."""
        return self.folder / "last"

    @property
    def best(self) -> Path:
        """Link to the checkpoint of the lowest validation loss, if there was a validation."""
        return self.folder / "best"

    def save(self, state: TrainingState, about: Mapping[str, Any], writes: bool = True) -> None:
        """Write a checkpoint, point ``last`` (and ``best``) at it, and drop those nothing points at.

        Of several processes, one ``writes``; all must call, for each may hold a share of the tensors.
        """
        path = self.folder / f"step_{state.step:07d}"
        # Only a validation of these very weights says whether they are the best.
        if state.validation_loss is not None and state.validated_step == state.step:
            state.best = min(state.best or (math.inf, 0), (state.validation_loss, state.step))
        ema, raw = (whole(p.state_dict(), keep=writes) for p in (self.ema, self.policy))
        optimizer = whole(optimizer_tensors(self.optimizer, self.policy), keep=writes)
        if not writes:
            return
        if not path.exists():
            save_checkpoint(
                path,
                self.ema,
                raw,
                ema_weights=ema,
                about={**about, "step": state.step, "validation_loss": state.validation_loss},
                optimizer=optimizer,
                progress=asdict(state) | self.fixed,
            )
        link_atomically(self.last, path)
        if state.best is not None and state.best[1] == state.step:
            link_atomically(self.best, path)
        keep = {self.last.resolve(), self.best.resolve()}
        for old in self.folder.glob("step_*"):
            if old.resolve() not in keep:
                shutil.rmtree(old)

    def restore(self, checkpoint: Path) -> TrainingState:
        """Load weights, averages and optimizer; return where the run was.

        Raises:
            CheckpointError: if the checkpoint is of another architecture, dataset, batch size or seed.
        """
        saved = load_policy(checkpoint)
        check_same_policy(saved, self.policy, checkpoint)
        tensors, progress = load_training_state(checkpoint)
        for name, own in self.fixed.items():
            if progress[name] != own:
                raise CheckpointError(
                    f"{checkpoint} was trained with {name}={progress[name]}, this run has {own}; an exact "
                    f"resume needs the same {name}"
                )
        load_whole(self.ema, saved.state_dict())
        load_whole(self.policy, load_policy(checkpoint, weights="raw").state_dict())
        load_optimizer_tensors(self.optimizer, self.policy, tensors)
        return TrainingState.from_json(progress)

    def remove_leftovers(self) -> None:
        """Remove what was being written when a process died."""
        for path in self.folder.glob(".*.partial-*"):
            writer = re.search(r"\.partial-(\d+)$", path.name)
            if writer is None or _is_another_living_process(int(writer[1])):
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


def _is_another_living_process(pid: int) -> bool:
    if pid == os.getpid():  # of an earlier process with our number, for we have not written yet
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def newest_checkpoint(run: Path) -> Path | None:
    """Return the checkpoint that a run continues from; the links may have been lost in copying."""
    last = run / "checkpoints" / "last"
    return last if last.exists() else max((run / "checkpoints").glob("step_*"), default=None)


def check_same_policy(saved: MoDEPolicy, policy: MoDEPolicy, checkpoint: Path) -> None:
    """Hold a policy to the one that a checkpoint continues; only the sampler may differ.

    Raises:
        CheckpointError: naming what differs.
    """
    ours, theirs = (
        flatten(to_dict(replace(p.config, sampler=policy.config.sampler)), "policy.") for p in (policy, saved)
    )
    differ = [f"{k}={theirs[k]}, now {ours[k]}" for k in ours if ours[k] != theirs[k]]
    if saved.features != policy.features:
        differ.append("the dataset's features")
    elif statistics_to_json(saved.statistics) != statistics_to_json(policy.statistics):
        differ.append("the dataset's statistics")
    if differ:
        shown = "; ".join(differ[:5])
        raise CheckpointError(
            f"{checkpoint} was made for another architecture or dataset: {shown}. "
            "Undo the change or start a new run"
        )
