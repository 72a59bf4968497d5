"""``mode-bench latency``: time of an action chunk by each engine, beside the least time that it could take.

All engines of a batch run in turns, in one process. ``over_floor`` is the ratio of the median to the floor:
bytes of the weights that a chunk reads, or its multiply-adds, over this machine's measured rates. ``error``
is the largest difference of actions from the engine ``eager`` in float32 with the same noise, as a share of
the largest action. ``over_weights`` is the peak memory over the size of the policy's weights in float32,
without what the process held before.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mode_policy.apps.bench.floor import Floor, Rates, floor, measure
from mode_policy.apps.bench.memory import Setting, measured
from mode_policy.apps.bench.policies import SIZES, random_observation, random_policy
from mode_policy.apps.bench.record import Row
from mode_policy.apps.bench.timing import in_turns, percentiles
from mode_policy.checkpoint import load_policy
from mode_policy.config import SamplerConfig
from mode_policy.errors import ExportError, PlanError
from mode_policy.inference.auto import make_engine
from mode_policy.inference.engine import EagerEngine, Engine
from mode_policy.inference.plan import InferencePlan
from mode_policy.inference.weights import Precision
from mode_policy.policy import MoDEPolicy
from mode_policy.types import Observation

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class LatencyBench:
    """What is measured.

    Attributes:
        size: of a policy with random weights, one of `SIZES`.
        checkpoint: a policy of your own instead.
        cameras: give the random policy two cameras (ResNet-50, 224 and 112 pixels) instead of states.
        engines: names; those that cannot run here are left out and named.
        precisions: of the large weights.
        batches: samples of a chunk.
        steps: of the sampler; None for the policy's own.
        rounds: timed runs of each.
        device: "cpu" or "cuda".
        memory: also measure memory, each engine in a process of its own.
    """

    size: str = "small"
    checkpoint: str | None = None
    cameras: bool = False
    engines: tuple[str, ...] = ("cpu", "eager")
    precisions: tuple[Precision, ...] = ("float32",)
    batches: tuple[int, ...] = (1,)
    steps: int | None = None
    rounds: int = 20
    device: str = "cpu"
    memory: bool = True


def run(config: LatencyBench, say: Say) -> tuple[list[Row], Row]:
    """Measure; return a row for each engine, and what was measured of the machine.

    Raises:
        PlanError: if no engine can run here.
    """
    device = torch.device(config.device)
    if config.checkpoint is None:
        policy = random_policy(SIZES[config.size], cameras=config.cameras).to(device)
    else:
        policy = load_policy(config.checkpoint, device=device)
    say("what this machine can do")
    rates = measure(device, torch.bfloat16 if config.device == "cuda" else torch.float32)
    sampler = policy.config.sampler
    if config.steps is not None:
        sampler = replace(sampler, steps=config.steps)
    rows = [row for batch in config.batches for row in _batch(config, policy, sampler, batch, rates, say)]
    if not rows:
        raise PlanError(f"none of the engines {', '.join(config.engines)} can run here")
    return rows, {"read_GBps": round(rates.read / 1e9, 2), "product_GMACps": round(rates.products / 1e9, 2)}


def _batch(
    config: LatencyBench, policy: MoDEPolicy, sampler: SamplerConfig, batch: int, rates: Rates, say: Say
) -> list[Row]:
    observation = random_observation(policy, batch)
    exact = EagerEngine(InferencePlan(policy, sampler, batch))
    shape = (batch, policy.config.chunk, policy.action_dim)
    noise = [torch.randn(shape, device=policy.device) for _ in range(exact.num_draws)]
    expected = exact.act(observation, noise=noise).actions_BCA
    engines: dict[tuple[str, Precision], Engine] = {}
    floors: dict[Precision, Floor] = {}
    errors: dict[tuple[str, Precision], float] = {}
    for precision in config.precisions:
        plan = InferencePlan(policy, sampler, batch, precision)
        floors[precision] = floor(plan, observation, rates)
        for name in config.engines:
            say(f"engine {name}, {precision}, batch {batch}: making it")
            try:
                engine = make_engine(plan, name).engine
            except (PlanError, ExportError) as error:
                say(f"engine {name}, {precision}, left out: {error}")
                continue
            found = engine.act(observation, noise=noise).actions_BCA
            engines[name, precision] = engine
            errors[name, precision] = _error(found, expected)
    say(f"batch {batch}: {', '.join(' '.join(key) for key in engines)}")
    times = in_turns(
        {" ".join(key): _acting(engine, observation, noise) for key, engine in engines.items()},
        config.rounds,
        warm_up=50 if config.device == "cuda" else 2,
    )
    rows = []
    for (name, precision), engine in engines.items():
        seconds, least = times[f"{name} {precision}"], floors[precision]
        row: Row = {"engine": name, "precision": precision, "batch": batch, "steps": sampler.steps}
        row |= percentiles(seconds)
        row |= {
            "floor_ms": round(1e3 * least.seconds, 3),
            "over_floor": round(row["p50_ms"] / (1e3 * least.seconds), 2),
            "read_GB": round(least.gigabytes, 4),
            "GMAC": round(least.giga_multiply_adds, 4),
            "error": float(f"{errors[name, precision]:.1e}"),
        }
        if config.device == "cuda":
            row["kernels"] = kernels(lambda e=engine: e.act(observation, noise=noise))  # type: ignore[misc]
        if config.memory:
            row |= _memory(config, name, precision, batch, say)
        rows.append(row)
    return rows


def _acting(engine: Engine, observation: Observation, noise: list[Tensor]) -> Callable[[], object]:
    return lambda: engine.act(observation, noise=noise)


def _error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def _memory(config: LatencyBench, name: str, precision: Precision, batch: int, say: Say) -> Row:
    say(f"engine {name}, {precision}, batch {batch}: its memory")
    setting = Setting(
        size=config.size,
        checkpoint=config.checkpoint,
        cameras=config.cameras,
        engine=name,
        precision=precision,
        batch=batch,
        device=config.device,
        threads=torch.get_num_threads(),
    )
    try:
        memory = measured(setting)
    except subprocess.CalledProcessError as error:
        say(f"its memory could not be measured: the process ended with {error.returncode}")
        return {"peak_GB": None, "acting_GB": None, "over_weights": None}
    return {
        "peak_GB": round(memory.peak, 3),
        "acting_GB": round(memory.acting, 3),
        "over_weights": round((memory.peak - memory.before) / memory.weights, 3),
    }


def kernels(act: Callable[[], object]) -> int:
    """Return how many kernels a GPU runs in one inference."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        act()
        torch.cuda.synchronize()
    events = (event for event in profiler.events() if event.device_type == DeviceType.CUDA)
    return sum(not event.name.startswith(("Memcpy", "Memset")) for event in events)
