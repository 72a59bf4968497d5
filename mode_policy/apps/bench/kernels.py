"""``mode-bench kernels``: each kernel beside plain PyTorch that computes the same.

On a GPU every kernel runs in a CUDA graph beside the plain form, eager and compiled. Weights are rotated past
the caches. Before it is timed, a kernel is held to the plain form on the same inputs. ``GB/s`` counts the
weights alone; ``of_read`` is its ratio to the bandwidth of a kernel that only reads, measured in the same
run. ``compiled`` is `torch.compile` with max-autotune; a ratio below 1 means that the kernel does not earn
its place. Beside 8-bit weights the plain form reads the same weights in bfloat16.

On a processor the kernels would run in an interpreter, whose times mean nothing. There the experts are
measured as PyTorch runs them: one operation that runs the chosen ones, beside all of them on all samples.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from mode_kernels import expert_mlp, expert_mlp_reference
from mode_policy.apps.bench.policies import SIZES
from mode_policy.apps.bench.record import Row
from mode_policy.apps.bench.timing import in_turns

Say = Callable[[str], None]

TYPES = {
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "int8": torch.int8,
    "fp8": torch.float8_e4m3fn,
}

TOLERANCE = 3e-2  # of the largest entry; both sides are rounded to bfloat16


@dataclass(frozen=True, kw_only=True)
class KernelBench:
    """What is measured.

    Attributes:
        batches: samples of the inference kernels.
        types: of their weights.
        training: only the experts, forward and backward; all that there is on a processor.
        training_batch: samples of that.
        size: of the experts on a processor, one of `SIZES`.
        rounds: timed runs of the experts.
        device: "cpu" or "cuda".
    """

    batches: tuple[int, ...] = (1, 8, 64)
    types: tuple[str, ...] = ("bfloat16", "int8", "fp8")
    training: bool = False
    training_batch: int = 512
    size: str = "tiny"
    rounds: int = 20
    device: str = "cpu"


def run(config: KernelBench, say: Say) -> tuple[list[Row], Row]:
    """Measure; return rows, and what was measured of the machine.

    Raises:
        RuntimeError: if a kernel is wrong; nothing is timed then.
    """
    if config.device == "cpu" or config.training:
        return [_experts(config, say)], {}
    from mode_kernels.launch import unsupported
    from mode_policy.apps.bench.kernel_cases import read_bandwidth

    bandwidth = read_bandwidth()
    rows: list[Row] = []
    for name in config.types:
        if reason := unsupported(torch.device("cuda"), TYPES[name]):
            say(f"left out: {reason}")
            continue
        for batch in config.batches:
            say(f"{name}, batch {batch}")
            rows += _inference(batch, name, bandwidth)
    return rows, {"read_GBps": round(bandwidth)}


def _inference(batch: int, name: str, bandwidth: float) -> list[Row]:
    from mode_kernels.launch import QUANTISED, supports_pdl
    from mode_policy.apps.bench.kernel_cases import Graph, Size, cases, in_rounds, largest_error

    rows = []
    for kernel, make in cases(Size(B=batch), TYPES[name]).items():
        if kernel == "step_tail" and TYPES[name] in QUANTISED:
            continue
        case = make()
        error = largest_error(case.ours(0), case.plain(*case.inputs(0)))
        if error > TOLERANCE:
            raise RuntimeError(f"{kernel} {name} batch {batch} is wrong by {error:.1e}; nothing is timed")
        fast = compiled(case.plain)
        runs: dict[str, Callable[[int], Any]] = {
            "ours": case.ours,
            "eager": lambda i, c=case: c.plain(*c.inputs(i)),  # type: ignore[misc]
            "compiled": lambda i, c=case, f=fast: f(*c.inputs(i)),  # type: ignore[misc]
        }
        pdl = supports_pdl(torch.device("cuda"))
        if pdl:
            runs["ours_pdl"] = lambda i, c=case: c.ours(i, pdl=True)  # type: ignore[misc]
        times = in_rounds({who: Graph(run, case.sets) for who, run in runs.items()})
        middle = {who: statistics.median(t) for who, t in times.items()}
        best = min(middle[who] for who in ("ours", "ours_pdl") if who in middle)
        rate = case.read / best / 1e3
        row: Row = {"kernel": kernel, "weights": name, "batch": batch, "error": float(f"{error:.1e}")}
        row |= {f"{who}_us": round(value, 2) for who, value in middle.items()}
        row |= {"ours_spread_us": round(max(times["ours"]) - min(times["ours"]), 2)}
        row |= {"GB/s": round(rate), "of_read": round(rate / bandwidth, 3)}
        row |= {f"{who}/ours": round(middle[who] / best, 2) for who in ("eager", "compiled")}
        rows.append(row)
        del case, runs
        torch.cuda.empty_cache()
    return rows


def _experts(config: KernelBench, say: Say) -> Row:
    """Forward and backward of the routed experts; multiply-adds are those of the chosen ones."""
    cuda = config.device == "cuda"
    dim = 1024 if cuda else SIZES[config.size].dim
    batch, S, H, N, K = config.training_batch, 14, 4 * dim, 4, 2
    dtype = torch.bfloat16 if cuda else torch.float32
    g = torch.Generator(config.device).manual_seed(0)

    def draw(*shape: int, scale: float = 1.0) -> torch.Tensor:
        value = torch.randn(*shape, generator=g, device=config.device) * scale
        return value.to(dtype).requires_grad_()

    x, route = draw(batch, S, dim), torch.rand(batch, K, device=config.device, requires_grad=True)
    expert = torch.rand(batch, N, generator=g, device=config.device).topk(K, dim=1).indices
    weights = (draw(N, 2 * H, dim, scale=dim**-0.5), draw(N, 2 * H), draw(N, dim, H, scale=H**-0.5))
    leaves = [x, route, *weights]
    grad = torch.randn(batch, S, dim, generator=g, device=config.device)
    functions = {"ours": expert_mlp, "dense_eager": expert_mlp_reference}
    if cuda:
        functions["dense_compiled"] = compiled(expert_mlp_reference)

    def step(function: Callable[..., torch.Tensor]) -> list[torch.Tensor]:
        out = function(x, expert, route, *weights)
        return [out.detach(), *torch.autograd.grad(out, leaves, grad.to(out.dtype))]

    if not cuda:
        say("no kernel, as they need a GPU; instead what PyTorch makes of the experts here")
    say(f"experts of width {dim}, batch {batch}, forward and backward")
    for a, b in zip(step(functions["ours"]), step(functions["dense_eager"]), strict=True):
        error = float((a.float() - b.float()).abs().max() / b.float().abs().max())
        if error > TOLERANCE:
            raise RuntimeError(f"the grouped experts are wrong by {error:.1e}; nothing is timed")
    times = in_turns({name: lambda f=f: step(f) for name, f in functions.items()}, config.rounds)  # type: ignore[misc]
    middle = {name: statistics.median(seconds) for name, seconds in times.items()}
    multiply_adds = 3 * batch * K * S * 3 * dim * H
    name = "grouped_experts" if cuda else "experts by PyTorch, no kernel"
    row: Row = {"kernel": name, "weights": str(dtype).removeprefix("torch."), "batch": batch}
    row |= {f"{name}_ms": round(1e3 * value, 3) for name, value in middle.items()}
    row |= {"GFLOPps": round(2 * multiply_adds / middle["ours"] / 1e9, 1)}
    return row | {f"{n}/ours": round(middle[n] / middle["ours"], 2) for n in functions if n != "ours"}


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return what max-autotune makes of a function."""
    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True, mode="max-autotune-no-cudagraphs")
