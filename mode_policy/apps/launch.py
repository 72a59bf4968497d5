"""Starting the processes of one machine, so that ``trainer.devices=4`` is all that a user types.

On several machines each starts its own: ``torchrun``, ``accelerate launch`` or SLURM, see docs/scale_out.md.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from mode_policy.errors import ConfigError
from mode_policy.training.config import TrainerConfig
from mode_policy.training.processes import even_share

#: Restarts after a process died; the run then continues from its last checkpoint.
RESTARTS = 3


def launched() -> bool:
    """Whether a launcher started this process."""
    return "LOCAL_RANK" in os.environ


def restarted() -> bool:
    """Whether the launcher started it anew after a process had died."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def start_processes(config: TrainerConfig, arguments: Sequence[str]) -> int | None:
    """Run this program in ``config.devices`` processes; return their exit code.

    Returns None, having done nothing, if one process is enough or a launcher started this one.

    Args:
        config: of the run.
        arguments: of the program in each process.

    Raises:
        ConfigError: if there are fewer GPUs, or the processes cannot share a batch.
    """
    count = config.devices or 1
    if count == 1 or launched():
        return None
    even_share(config.batch_size, count, config.accumulate)
    gpus = 0 if config.device == "cpu" else torch.cuda.device_count()
    if gpus < count and (gpus or config.device == "cuda"):
        raise ConfigError(f"trainer.devices={count}, but this machine has {gpus} GPUs")
    launcher = [
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={count}",
        f"--max-restarts={RESTARTS}",
    ]
    threads = {} if gpus else {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // count))}
    process = subprocess.Popen(
        [sys.executable, "-m", *launcher, str(Path(sys.argv[0]).absolute()), *arguments],
        env=threads | os.environ,
    )
    # The terminal sends Ctrl-C to all of them; what is sent to this process alone is passed on.
    before = signal.signal(signal.SIGTERM, lambda number, _: process.send_signal(number))
    try:
        while True:
            with contextlib.suppress(KeyboardInterrupt):
                return process.wait()
    finally:
        signal.signal(signal.SIGTERM, before)
