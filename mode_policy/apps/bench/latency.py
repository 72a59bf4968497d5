"""``mode-bench latency``: time of an action chunk by each engine, beside the least time that it could take.

All engines of a batch run in turns, in one process. ``over_floor`` is the ratio of the median to the floor:
bytes of the weights that a chunk reads, or its multiply-adds, over this machine's measured rates. ``error``
is the largest difference of actions from the engine ``eager`` in float32 with the same noise, as a share of
the largest action. ``over_weights`` is the peak memory over the size of the policy's weights in float32,
without what the process held before.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mode_policy.apps.bench.engines import make
from mode_policy.apps.bench.floor import Rates, floor, measure
from mode_policy.apps.bench.memory import Setting, measured
from mode_policy.apps.bench.policies import policy_of, random_observation
from mode_policy.apps.bench.record import Row
from mode_policy.apps.bench.timing import Others, in_turns, percentiles
from mode_policy.errors import ExportError, PlanError
from mode_policy.inference.engine import EagerEngine
from mode_policy.inference.plan import InferencePlan
from mode_policy.inference.weights import Precision
from mode_policy.policy import MoDEPolicy
from mode_policy.types import Observation

Say = Callable[[str], None]

#: Returns actions in raw units.
Act = Callable[[], Tensor]

#: Other implementations of a policy, by name and precision, that run in turns with its engines. They are made
#: for an observation and the noise that the sampler begins with.
Rivals = Callable[[MoDEPolicy, Observation, Tensor], Mapping[tuple[str, Precision], Act]]


@dataclass(frozen=True, kw_only=True)
class LatencyBench:
    """What is measured.

    Attributes:
        size: of a policy with random weights, one of `SIZES`.
        checkpoint: a policy of your own instead.
        cameras: give the random policy two cameras (ResNet-50, 224 and 112 pixels) instead of states.
        runs: engines, by their names in `mode_policy.apps.bench.engines`, with the precision of the large
            weights; those that cannot run here are left out and named.
        batches: samples of a chunk.
        steps: of the sampler; None for the policy's own.
        rounds: timed runs of each.
        device: "cpu" or "cuda".
        memory: also measure memory, each engine in a process of its own.
    """

    size: str = "small"
    checkpoint: str | None = None
    cameras: bool = False
    runs: tuple[tuple[str, Precision], ...] = (("cpu", "float32"), ("eager", "float32"))
    batches: tuple[int, ...] = (1,)
    steps: int | None = None
    rounds: int = 20
    device: str = "cpu"
    memory: bool = True


def run(config: LatencyBench, say: Say, rivals: Rivals | None = None) -> tuple[list[Row], Row]:
    """Measure; return a row for each engine and rival, and what was measured of the machine.

    Raises:
        PlanError: if no engine can run here.
    """
    memory = _memories(config, say) if config.memory else {}  # first, while this process is small
    say("what this machine can do")
    device = torch.device(config.device)
    rates = measure(device, torch.bfloat16 if config.device == "cuda" else torch.float32)
    policy = policy_of(config.size, config.checkpoint, config.cameras, config.steps, config.device)
    rows, others = [], Others()
    for batch in config.batches:
        for row in _batch(config, policy, batch, rates, say, rivals):
            rows.append(row | memory.get((row["engine"], row["precision"], batch), {}))
    used = others.processors()
    if used is not None:
        say(f"other programs used {used} processors meanwhile")
    return rows, {
        "read_GBps": round(rates.read / 1e9, 2),
        "product_GMACps": round(rates.products / 1e9, 2),
        "processors_used_by_others": used,
    }


def _batch(
    config: LatencyBench, policy: MoDEPolicy, batch: int, rates: Rates, say: Say, rivals: Rivals | None
) -> list[Row]:
    observation = random_observation(policy, batch)
    exact = EagerEngine(InferencePlan(policy, batch=batch))
    shape = (batch, policy.config.chunk, policy.action_dim)
    generator = torch.Generator().manual_seed(0)
    noise = [torch.randn(shape, generator=generator).to(policy.device) for _ in range(exact.num_draws)]
    expected = exact.act(observation, noise=noise).actions_BCA
    runs: dict[tuple[str, Precision], Act] = {}
    known: dict[Precision, Row] = {}
    for precision in dict.fromkeys(precision for _, precision in config.runs):
        plan = InferencePlan(policy, batch=batch, precision=precision)
        for name in (name for name, of in config.runs if of == precision):
            say(f"engine {name}, {precision}, batch {batch}: making it")
            try:
                engine = make(plan, name)
                engine.act(observation, noise=noise)
            except (PlanError, ExportError) as error:
                say(f"engine {name}, {precision}, left out: {error}")
                continue
            runs[name, precision] = lambda e=engine: e.act(observation, noise=noise).actions_BCA  # type: ignore[misc]
        least = floor(plan, observation, rates)
        known[precision] = {
            "floor_ms": round(1e3 * least.seconds, 3),
            "read_GB": round(least.gigabytes, 4),
            "GMAC": round(least.giga_multiply_adds, 4),
        }
    if not runs:
        names = ", ".join(dict.fromkeys(name for name, _ in config.runs))
        raise PlanError(f"none of the engines {names} can run here")
    if rivals is not None:
        runs |= rivals(policy, observation, noise[0])
    errors = {key: _error(act(), expected) for key, act in runs.items()}
    say(f"batch {batch}, in turns: {', '.join(' '.join(key) for key in runs)}")
    cuda = config.device == "cuda"
    times = in_turns({" ".join(key): act for key, act in runs.items()}, config.rounds, 50 if cuda else 1)
    rows = []
    for (name, precision), act in runs.items():
        row: Row = {
            "engine": name,
            "precision": precision,
            "batch": batch,
            "steps": policy.config.sampler.steps,
        }
        row |= percentiles(times[f"{name} {precision}"])
        if precision in known:
            row |= {"over_floor": round(row["p50_ms"] / known[precision]["floor_ms"], 2)} | known[precision]
        row["error"] = float(f"{errors[name, precision]:.1e}")
        if cuda:
            row["kernels"] = kernels(act)
        rows.append(row)
    return rows


def _error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def _memories(config: LatencyBench, say: Say) -> dict[tuple[str, Precision, int], Row]:
    """Of each engine and batch that can run here."""
    rows: dict[tuple[str, Precision, int], Row] = {}
    for batch, (name, precision) in itertools.product(config.batches, config.runs):
        say(f"engine {name}, {precision}, batch {batch}: its memory")
        setting = Setting(
            size=config.size,
            checkpoint=config.checkpoint,
            cameras=config.cameras,
            steps=config.steps,
            engine=name,
            precision=precision,
            batch=batch,
            device=config.device,
            threads=torch.get_num_threads(),
        )
        try:
            memory = measured(setting)
        except PlanError as error:
            say(f"it could not be measured: {error}")
            continue
        rows[name, precision, batch] = {
            "peak_GB": round(memory.peak, 3),
            "acting_GB": round(memory.acting, 3),
            "over_weights": round((memory.peak - memory.before) / memory.weights, 3),
        }
    return rows


def kernels(act: Callable[[], object]) -> int:
    """Return how many kernels a GPU runs in one inference."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        act()
        torch.cuda.synchronize()
    events = (event for event in profiler.events() if event.device_type == DeviceType.CUDA)
    return sum(not event.name.startswith(("Memcpy", "Memset")) for event in events)
