"""Peak memory of an engine, in a process of its own: ``python -m mode_policy.apps.bench.memory SETTINGS``.

On a processor it is that of the whole process, interpreter and libraries included; on a GPU what PyTorch
allocated there. ``acting`` is what an engine needs once it stands, after the weights that it does not use
were freed; ``peak`` includes the time while it was made.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from mode_policy.apps.bench.engines import make
from mode_policy.apps.bench.policies import policy_of, random_observation
from mode_policy.errors import ExportError, PlanError
from mode_policy.inference.plan import InferencePlan
from mode_policy.inference.weights import Precision


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is measured; see `mode_policy.apps.bench.latency.LatencyBench`."""

    size: str
    checkpoint: str | None
    cameras: bool
    steps: int | None
    engine: str
    precision: Precision
    batch: int
    device: str
    threads: int


@dataclass(frozen=True)
class Memory:
    """In gigabytes (1e9 bytes).

    Attributes:
        weights: of the policy, as it was loaded.
        before: of the process before the policy was made; 0 on a GPU.
        peak: the most from then on.
        acting: after the engine was made and had acted.
    """

    weights: float
    before: float
    peak: float
    acting: float


def measured(setting: Setting) -> Memory:
    """Measure in a process of its own.

    Raises:
        PlanError: if that process could not make the engine or did not survive.
    """
    command = [sys.executable, "-P", "-m", "mode_policy.apps.bench.memory", json.dumps(asdict(setting))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = done.stderr.strip().splitlines()
        raise PlanError(
            f"a process to measure memory ended with {done.returncode}. {said[-1] if said else ''}"
        )
    return Memory(**json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """Measure in this process, and print."""
    setting = Setting(**json.loads(sys.argv[1]))
    torch.set_num_threads(setting.threads)
    before = 0.0 if setting.device == "cuda" else _process("VmRSS")
    policy = policy_of(setting.size, setting.checkpoint, setting.cameras, setting.steps, setting.device)
    weights = sum(p.numel() * p.element_size() for p in policy.parameters()) / 1e9
    observation = random_observation(policy, setting.batch)
    plan = InferencePlan(policy, batch=setting.batch, precision=setting.precision, consume=True)
    try:
        engine = make(plan, setting.engine)
    except (PlanError, ExportError) as error:
        sys.exit(str(error))
    engine.act(observation)
    if setting.device == "cuda":
        peak = torch.cuda.max_memory_allocated() / 1e9
        torch.cuda.reset_peak_memory_stats()
        engine.act(observation)
        acting = torch.cuda.max_memory_allocated() / 1e9
    else:
        peak, acting = _process("VmHWM"), _process("VmRSS")
    print(json.dumps(asdict(Memory(weights, before, peak, acting))))


def _process(name: str) -> float:
    """A line of this process's status, in gigabytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) * 1024 / 1e9


if __name__ == "__main__":
    main()
