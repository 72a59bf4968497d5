"""``mode-bench training``: time of a training step of the denoiser, forward, backward and AdamW.

Multiply-adds are counted while a step runs. On a processor float32; on a GPU also under bfloat16 autocast, as
the trainer runs there.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from mode_policy.apps.bench.policies import SIZES, Size
from mode_policy.apps.bench.record import Row
from mode_policy.apps.bench.timing import in_turns, percentiles
from mode_policy.config import DenoiserConfig, build
from mode_policy.nn.denoiser import Denoiser
from mode_policy.nn.router import load_balancing_loss

STATE_DIM, GOAL_DIM, ACTION_DIM, CHUNK = 39, 384, 4, 10


@dataclass(frozen=True, kw_only=True)
class TrainingBench:
    """What is measured.

    Attributes:
        sizes: names of `SIZES`.
        batch: samples of a step.
        rounds: timed steps.
        device: "cpu" or "cuda".
        compiled: also as `torch.compile` makes it.
    """

    sizes: tuple[str, ...] = ("tiny", "small")
    batch: int = 64
    rounds: int = 20
    device: str = "cpu"
    compiled: bool = False


def run(config: TrainingBench, say: Callable[[str], None]) -> list[Row]:
    """Measure; return a row for each size and form."""
    rows = []
    for name in config.sizes:
        steps: dict[tuple[str, str], Callable[[], None]] = {}
        for precision in ("float32", "bfloat16") if config.device == "cuda" else ("float32",):
            for form in ("eager", "compiled") if config.compiled else ("eager",):
                steps[form, precision] = our_step(
                    SIZES[name], config.batch, config.device, precision == "bfloat16", form == "compiled"
                )
        with FlopCounterMode(display=False) as counter:
            steps["eager", "float32"]()
        products = counter.get_total_flops() / 2e9
        say(f"{name}: {', '.join(' '.join(key) for key in steps)}")
        times = in_turns({" ".join(key): step for key, step in steps.items()}, config.rounds)
        for form, precision in steps:
            seconds = times[f"{form} {precision}"]
            row: Row = {"size": name, "batch": config.batch, "form": form, "precision": precision}
            middle = statistics.median(seconds)
            row |= percentiles(seconds)
            row |= {"samples_per_s": round(config.batch / middle), "GMAC": round(products, 2)}
            rows.append(row | {"GFLOPps": round(2 * products / middle, 1)})
    return rows


def data(batch: int, device: str) -> tuple[torch.Tensor, ...]:
    """Return noisy actions, states, goals, targets and noise levels."""
    g = torch.Generator().manual_seed(0)
    actions = (batch, CHUNK, ACTION_DIM)
    shapes = (actions, (batch, 1, STATE_DIM), (batch, GOAL_DIM), actions)
    sigma = torch.rand(batch, generator=g) + 0.1
    return (*(torch.randn(s, generator=g).to(device) for s in shapes), sigma.to(device))


def our_step(
    size: Size, batch: int, device: str, autocast: bool = False, compiled: bool = False
) -> Callable[[], None]:
    """Return a step of our denoiser, without dropout."""
    x, state, goal, target, sigma = data(batch, device)
    config = build(DenoiserConfig, {"dim": size.dim, "num_layers": size.layers, "num_heads": size.heads})
    sizes = {"token_dim": STATE_DIM, "goal_dim": GOAL_DIM, "action_dim": ACTION_DIM, "chunk": CHUNK}
    model = Denoiser(config, **sizes).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)
    forward = torch.compile(model) if compiled else model

    def step() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=autocast):
            prediction, routings = forward(x, sigma, state, goal)
        loss = (prediction.float() - target).square().mean() + 0.01 * load_balancing_loss(routings)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step
