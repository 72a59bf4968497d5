"""A short training run of the toy policy, by as many processes as were launched; see test_processes."""

import contextlib
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import torch

from mode_policy.training.processes import Processes
from mode_policy.training.trainer import Trainer
from mode_policy.types import Batch
from tests import toy
from tests.training.runs import config


def padded(step: int) -> Batch:
    """A global batch whose first half has more padding than its second."""
    batch = toy.batch(step)
    lengths = torch.arange(len(batch.actions)) // 4 + 1
    return replace(batch, action_is_pad=torch.arange(4) >= lengths[:, None])


def make(folder: Path, balance: float = 0.01, processes: Processes | None = None, **changes) -> Trainer:
    """The run's trainer, in whichever process this is."""
    settings = config(**{"steps": 8} | changes)
    processes = processes or Processes(settings)
    own = slice(processes.rank * processes.share, (processes.rank + 1) * processes.share)
    validation = [toy.batch(10**6 + i, size=6 + i) for i in range(3)]
    return Trainer(
        toy.policy(loss={"load_balance": balance}),
        settings,
        lambda step: padded(step).map(lambda x: x[own]),
        validation,
        folder,
        processes=processes,
    )


def setting(text: str) -> tuple[str, int | str]:
    """Read ``name=value``."""
    name, value = text.split("=")
    return name, int(value) if value.isdigit() else value


def main(folder: str, *changes: str) -> None:
    """Train; continue if the folder holds a checkpoint, and be stopped by a signal after ``until=`` steps."""
    settings = dict(map(setting, changes))
    until = settings.pop("until", None)
    trainer = make(Path(folder), **settings)
    batch = trainer.batch

    def stopping(step: int) -> Batch:
        if until is not None and step == until - 1 and trainer.processes.main:
            os.kill(os.getpid(), signal.SIGTERM)
        return batch(step)

    trainer.batch = stopping
    if trainer.checkpoints.last.exists():
        trainer.resume(trainer.checkpoints.last)
    with contextlib.suppress(KeyboardInterrupt):
        trainer.run()
    trainer.processes.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
