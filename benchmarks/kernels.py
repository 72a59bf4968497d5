"""Time of each kernel on a GPU: ours beside plain PyTorch, eager and compiled, all in CUDA graphs.

    uv run benchmarks/kernels.py                     every kernel, bfloat16 and 8 bits, batches 1, 8 and 64
    uv run benchmarks/kernels.py --batches 1 --types bfloat16
    uv run benchmarks/kernels.py --training          the grouped experts, forward and backward, batch 512
    uv run benchmarks/kernels.py --record            also write benchmarks/results/kernels_….json

Weights are rotated past the caches. Before it is timed, each kernel is held to the plain form on the same
inputs. ``GB/s`` counts the weights alone; ``of_read`` is its ratio to the bandwidth of a kernel that only
reads, measured in the same run. ``compiled`` is `torch.compile` with max-autotune; a ratio below 1 means that
the kernel does not earn its place. Beside 8-bit weights the plain form reads the same weights in bfloat16.
Without a GPU nothing is measured.
"""

import argparse
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() != Path(__file__).resolve().parents[1]]

import torch  # noqa: E402
from _kernels import Graph, Size, cases, in_rounds, largest_error, read_bandwidth  # noqa: E402

from mode_kernels import expert_mlp_reference, launch  # noqa: E402
from mode_kernels.grouped import grouped_experts  # noqa: E402
from mode_kernels.launch import QUANTISED, supports_pdl, unsupported  # noqa: E402
from mode_policy.apps.bench.record import write_record  # noqa: E402

TYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32, "int8": torch.int8, "fp8": torch.float8_e4m3fn}
TOLERANCE = 3e-2  # of the largest entry; both sides are rounded to bfloat16


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True, mode="max-autotune-no-cudagraphs")


def inference_rows(batch: int, name: str, bandwidth: float) -> list[dict[str, Any]]:
    rows = []
    for kernel, make in cases(Size(B=batch), TYPES[name]).items():
        if kernel == "step_tail" and TYPES[name] in QUANTISED:
            continue
        case = make()
        error = largest_error(case.ours(0), case.plain(*case.inputs(0)))
        if error > TOLERANCE:
            raise SystemExit(f"{kernel} {name} batch {batch} is wrong by {error:.1e}; nothing is timed")
        fast = compiled(case.plain)
        runs: dict[str, Callable[[int], Any]] = {
            "ours": case.ours,
            "eager": lambda i, c=case: c.plain(*c.inputs(i)),  # type: ignore[misc]
            "compiled": lambda i, c=case, f=fast: f(*c.inputs(i)),  # type: ignore[misc]
        }
        if supports_pdl(torch.device("cuda")):
            runs["ours_pdl"] = lambda i, c=case: c.ours(i, pdl=True)  # type: ignore[misc]
        times = in_rounds({who: Graph(run, case.sets) for who, run in runs.items()})
        middle = {who: statistics.median(t) for who, t in times.items()}
        best = min(middle[who] for who in ("ours", "ours_pdl") if who in middle)
        rate = case.read / best / 1e3
        row = {"kernel": kernel, "weights": name, "batch": batch, "error": float(f"{error:.1e}")}
        row |= {f"{who}_us": round(value, 2) for who, value in middle.items()}
        row |= {"ours_spread_us": round(max(times["ours"]) - min(times["ours"]), 2)}
        row |= {"GB/s": round(rate), "of_read": round(rate / bandwidth, 3)}
        row |= {f"{who}/ours": round(middle[who] / best, 2) for who in ("eager", "compiled")}
        rows.append(row)
        print(row, flush=True)
        del case, runs
        torch.cuda.empty_cache()
    return rows


def training_rows(batch: int) -> list[dict[str, Any]]:
    """Forward and backward of the routed experts; multiply-adds are those of the chosen experts."""
    s, dtype = Size(B=batch), torch.bfloat16
    g = torch.Generator("cuda").manual_seed(0)

    def draw(*shape: int, scale: float = 1.0) -> torch.Tensor:
        value = torch.randn(*shape, generator=g, device="cuda") * scale
        return value.to(dtype).requires_grad_()

    x, route = draw(batch, s.S, s.D), torch.rand(batch, s.K, device="cuda", requires_grad=True)
    expert = torch.rand(batch, s.N, generator=g, device="cuda").topk(s.K, dim=1).indices
    weights = (
        draw(s.N, 2 * s.H, s.D, scale=s.D**-0.5),
        draw(s.N, 2 * s.H),
        draw(s.N, s.D, s.H, scale=s.H**-0.5),
    )
    arguments = (x, expert, route, *weights)
    leaves = [x, route, *weights]
    grad = torch.randn(batch, s.S, s.D, generator=g, device="cuda")
    functions = {
        "ours": lambda *a: grouped_experts(*a)[0],
        "dense_eager": expert_mlp_reference,
        "dense_compiled": compiled(expert_mlp_reference),
    }

    def step(function: Callable[..., torch.Tensor]) -> list[torch.Tensor]:
        out = function(*arguments)
        return [out, *torch.autograd.grad(out, leaves, grad.to(out.dtype))]

    for a, b in zip(step(functions["ours"]), step(functions["dense_eager"]), strict=True):
        error = largest_error(a, b)
        if error > TOLERANCE:
            raise SystemExit(f"grouped experts are wrong by {error:.1e}; nothing is timed")
    times: dict[str, list[float]] = {name: [] for name in functions}
    for i in range(25):
        for name, function in functions.items():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            step(function)
            end.record()
            end.synchronize()
            if i >= 5:
                times[name].append(float(start.elapsed_time(end)))
    middle = {name: statistics.median(t) for name, t in times.items()}
    multiply_adds = 3 * batch * s.K * s.S * 3 * s.D * s.H
    row: dict[str, Any] = {"kernel": "grouped_experts", "weights": "bfloat16", "batch": batch}
    row |= {f"{name}_ms": round(value, 3) for name, value in middle.items()}
    row |= {"TFLOP/s": round(2 * multiply_adds / middle["ours"] / 1e9, 1)}
    row |= {f"{name}/ours": round(middle[name] / middle["ours"], 2) for name in functions if name != "ours"}
    print(row, flush=True)
    return [row]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--types", nargs="+", choices=TYPES, default=["bfloat16", "int8", "fp8"])
    parser.add_argument("--training", action="store_true", help="only the training kernels")
    parser.add_argument("--training-batch", type=int, default=512)
    parser.add_argument("--record", action="store_true")
    arguments = parser.parse_args()
    if not torch.cuda.is_available() or launch.INTERPRETED:
        print("There is no GPU here, and times of the interpreter would mean nothing: nothing was measured.")
        return
    device = torch.device("cuda")
    bandwidth = read_bandwidth()
    print(f"{torch.cuda.get_device_name()}: {bandwidth:.0f} GB/s read")
    rows = []
    for name in [] if arguments.training else arguments.types:
        if reason := unsupported(device, TYPES[name]):
            print(f"left out: {reason}")
            continue
        for batch in arguments.batches:
            rows += inference_rows(batch, name, bandwidth)
    if arguments.training:
        rows += training_rows(arguments.training_batch)
    if arguments.record:
        config = {k: v for k, v in vars(arguments).items() if k != "record"}
        what = "training" if arguments.training else "_".join(arguments.types)
        print(write_record(f"kernels_{what}", rows, config | {"read_GB/s": round(bandwidth)}))


if __name__ == "__main__":
    main()
