"""Starting the processes of one machine, so that ``trainer.devices=4`` is all that a user types.

On several machines each starts its own: ``torchrun``, ``accelerate launch`` or SLURM, see docs/scale_out.md.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from mode_policy.apps.cli import BAD_INPUT, REFUSED
from mode_policy.errors import ConfigError
from mode_policy.training.config import TrainerConfig
from mode_policy.training.processes import even_share

#: Restarts after a process died; the run then continues from its last checkpoint.
RESTARTS = 3
#: Processes that are started anew must not meet in the launcher's own store: there they would find the
#: addresses of those that died, and wait for them (pytorch issue 135712).
FRESH_STORE = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}


def launched() -> bool:
    """Whether a launcher started this process."""
    return "LOCAL_RANK" in os.environ


def restarted() -> bool:
    """Whether the launcher started it anew after a process had died."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def check_restarts(environment: Mapping[str, str]) -> None:
    """Refuse a ``torchrun`` whose restarts would wait for the dead; see `FRESH_STORE`.

    Raises:
        ConfigError: with the way out.
    """
    restarts = int(environment.get("TORCHELASTIC_MAX_RESTARTS", "0"))
    if restarts and environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        raise ConfigError(
            f"torchrun shall restart what dies (--max-restarts={restarts}), but the processes it starts anew "
            "would look for the dead in its store. Set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 for it, with "
            "--standalone or --rdzv-backend=c10d; or leave out --max-restarts"
        )


def start_processes(config: TrainerConfig, arguments: Sequence[str]) -> int | None:
    """Run this program in ``config.devices`` processes; return their exit code.

    Returns None, having done nothing, if one process is enough or a launcher started this one.

    Args:
        config: of the run.
        arguments: of the program in each process.

    Raises:
        ConfigError: if there are fewer GPUs, the processes cannot share a batch, or the launcher that started
            this one could not start it anew.
    """
    count = config.devices or 1
    if launched():
        check_restarts(os.environ)
        return None
    if count == 1:
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
    with tempfile.TemporaryDirectory() as place:
        refused = Path(place) / "refused"
        process = subprocess.Popen(
            [sys.executable, "-m", *launcher, str(Path(sys.argv[0]).absolute()), *arguments],
            env=threads | os.environ | FRESH_STORE | {REFUSED: str(refused)},
        )
        # The terminal sends Ctrl-C to all of them; what is sent to this process alone is passed on.
        before = signal.signal(signal.SIGTERM, lambda number, _: process.send_signal(number))
        try:
            while True:
                with contextlib.suppress(KeyboardInterrupt, subprocess.TimeoutExpired):
                    code = process.wait(timeout=1)
                    return BAD_INPUT if refused.exists() else code
                if refused.exists():  # to start it anew would not help
                    process.terminate()
                    process.wait()
        finally:
            signal.signal(signal.SIGTERM, before)
