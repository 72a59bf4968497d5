"""The kernels at the sizes of the network, each beside plain PyTorch that does the same, and their timing.

One call reads one set of weights. Sets are rotated, so that the caches of a GPU never hold what the next call
reads: the network's layers follow each other in the same way.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs
from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from mode_kernels.attention import attention
from mode_kernels.expert_down import expert_down
from mode_kernels.expert_up import expert_up
from mode_kernels.launch import QUANTISED, new_counter
from mode_kernels.norm_linear import norm_linear
from mode_kernels.quantize import Format, dequantize, quantize
from mode_kernels.reference_inference import rms_norm
from mode_kernels.step_tail import step_tail

ROTATED_BYTES = 200e6  # more than any GPU's cache holds


@dataclass(frozen=True)
class Size:
    """Batch, sequence, width, heads, hidden width, experts, active ones, chunk, action dimension."""

    B: int = 1
    S: int = 14
    D: int = 1024
    A: int = 8
    H: int = 4096
    N: int = 4
    K: int = 2
    C: int = 10
    action: int = 7


@dataclass(frozen=True)
class Case:
    """A kernel at one size.

    Attributes:
        name: of its entry in the tile tables.
        read: bytes of weights that one call reads.
        sets: number of different sets of weights.
        ours: the kernel on set i; takes ``tile`` and ``pdl``.
        plain: plain PyTorch on what ``inputs(i)`` returns.
        inputs: tensors of set i.
    """

    name: str
    read: int
    sets: int
    ours: Callable[..., Any]
    plain: Callable[..., Any]
    inputs: Callable[[int], tuple[Tensor, ...]]


class _Maker:
    """Random tensors; weights in the type under test, with scales where they are quantised."""

    def __init__(self, size: Size, weight: torch.dtype, device: str) -> None:
        self.size, self.weight, self.device = size, weight, device
        self.act = torch.bfloat16 if weight in QUANTISED else weight
        self.generator = torch.Generator(device).manual_seed(0)

    def table(self, *shape: int, scale: float = 1.0) -> Tensor:
        return torch.randn(*shape, generator=self.generator, device=self.device) * scale

    def normal(self, *shape: int) -> Tensor:
        return self.table(*shape).to(self.act)

    def matrix(self, *shape: int) -> tuple[Tensor, Tensor | None, Tensor]:
        """A weight, its scales, and the weight that plain PyTorch uses."""
        plain = self.table(*shape, scale=shape[-1] ** -0.5)
        if self.weight not in QUANTISED:
            value = plain.to(self.weight)
            return value, None, value
        form: Format = "int8" if self.weight is torch.int8 else "fp8"
        quantised = quantize(plain, form)
        return *quantised, dequantize(quantised, self.act)

    def sets(self, read: int) -> int:
        return 2 if self.device == "cpu" else max(2, -(-int(ROTATED_BYTES) // read))

    def row(self, row: int = 0) -> Tensor:
        return torch.full((1,), row, dtype=torch.int32, device=self.device)

    def bytes(self, *shape: int) -> int:
        return int(torch.Size(shape).numel() * self.weight.itemsize)


def _case_norm_linear(m: _Maker) -> Case:
    s = m.size
    read = m.bytes(3 * s.D, s.D)
    x, bias, gain, row = m.normal(s.B, s.S, s.D), m.table(10, 3 * s.D), m.table(s.D), m.row(3)
    weights = [m.matrix(3 * s.D, s.D) for _ in range(m.sets(read))]

    def ours(i: int, **options: Any) -> Tensor:
        return norm_linear(x, weights[i][0], bias, row, gain, scale_E=weights[i][1], **options)

    def plain(x: Tensor, weight: Tensor, bias: Tensor, gain: Tensor) -> Tensor:
        return F.linear((rms_norm(x, 1e-6) * gain).to(x.dtype), weight, bias[3].to(x.dtype))

    return Case("norm_linear", read, len(weights), ours, plain, lambda i: (x, weights[i][2], bias, gain))


def _case_attention(m: _Maker) -> Case:
    s = m.size
    read = m.bytes(s.D, s.D)
    qkv, x, gain = m.normal(s.B, s.S, 3 * s.D), m.normal(s.B, s.S, s.D), m.table(2, s.D // s.A)
    counter = new_counter(s.B * s.S, s.D, m.device)
    weights = [m.matrix(s.D, s.D) for _ in range(m.sets(read))]

    def ours(i: int, **options: Any) -> Tensor:
        return attention(qkv, x, weights[i][0], gain, counter, s.A, scale_D=weights[i][1], **options)

    def plain(qkv: Tensor, x: Tensor, weight: Tensor, gain: Tensor) -> Tensor:
        q, k, v = qkv.view(s.B, s.S, 3, s.A, -1).permute(2, 0, 3, 1, 4)
        q, k = (rms_norm(t, 1e-6) * g for t, g in ((q, gain[0]), (k, gain[1])))
        y = F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v, is_causal=True)
        return x + F.linear(y.transpose(1, 2).reshape(x.shape), weight)

    return Case("attention", read, len(weights), ours, plain, lambda i: (qkv, x, weights[i][2], gain))


def _routing(m: _Maker) -> tuple[Tensor, Tensor, list[list[int]]]:
    """A table whose rows choose other experts each, as far as there are any."""
    s = m.size
    rows = [[(r * s.K + k) % s.N for k in range(s.K)] for r in range(max(1, s.N // s.K))]
    return torch.tensor(rows, device=m.device), m.table(len(rows), s.K).abs(), rows


def _case_expert_up(m: _Maker) -> Case:
    s = m.size
    read = m.bytes(s.K * 2 * s.H, s.D)
    x, bias, gain = m.normal(s.B, s.S, s.D), m.table(s.N, 2 * s.H), m.table(s.D)
    expert, route, chosen = _routing(m)
    stacks = [m.matrix(s.N, 2 * s.H, s.D) for _ in range(-(-m.sets(read) // len(chosen)))]
    rows = [m.row(r) for r in range(len(chosen))]

    def ours(i: int, **options: Any) -> Tensor:
        (weight, scale, _), row = stacks[i // len(rows)], rows[i % len(rows)]
        return expert_up(x, weight, bias, expert, route, row, gain, scale, **options)[0]

    def plain(x: Tensor, route: Tensor, gain: Tensor, *pairs: Tensor) -> Tensor:
        unit = (rms_norm(x, 1e-6) * gain).to(x.dtype)
        hidden = []
        for k in range(s.K):
            linear, gate = F.linear(unit, pairs[2 * k], pairs[2 * k + 1].to(x.dtype)).chunk(2, -1)
            hidden.append(linear * F.silu(gate) * route[k].to(x.dtype))
        return torch.stack(hidden, -2)

    def inputs(i: int) -> tuple[Tensor, ...]:
        weight, r = stacks[i // len(rows)][2], i % len(rows)
        return (x, route[r], gain, *(t for e in chosen[r] for t in (weight[e], bias[e])))

    return Case("expert_up", read, len(stacks) * len(rows), ours, plain, inputs)


def _case_expert_down(m: _Maker) -> Case:
    s = m.size
    read = m.bytes(s.K * s.D, s.H)
    hidden, x, gain = m.normal(s.B, s.S, s.K, s.H), m.normal(s.B, s.S, s.D), m.table(s.D)
    inverse = m.table(s.B * s.S).abs()
    counter = new_counter(s.B * s.S, s.D, m.device)
    expert, _, chosen = _routing(m)
    stacks = [m.matrix(s.N, s.D, s.H) for _ in range(-(-m.sets(read) // len(chosen)))]
    rows = [m.row(r) for r in range(len(chosen))]

    def ours(i: int, **options: Any) -> Tensor:
        (weight, scale, _), row = stacks[i // len(rows)], rows[i % len(rows)]
        return expert_down(hidden, x, weight, expert, row, counter, inverse, gain, scale, **options)

    def plain(hidden: Tensor, x: Tensor, inverse: Tensor, gain: Tensor, *weights: Tensor) -> Tensor:
        out = x * inverse.view(s.B, s.S, 1) * gain
        for k, weight in enumerate(weights):
            out = out + F.linear(hidden[..., k, :], weight)
        return out.to(x.dtype)

    def inputs(i: int) -> tuple[Tensor, ...]:
        weight = stacks[i // len(rows)][2]
        return (hidden, x, inverse, gain, *(weight[e] for e in chosen[i % len(rows)]))

    return Case("expert_down", read, len(stacks) * len(rows), ours, plain, inputs)


def _case_step_tail(m: _Maker) -> Case:
    s = m.size
    fixed = s.S - s.C - 1
    y, x = m.normal(s.B, s.C, s.D), m.table(s.B, s.C, s.action)
    coefficients, gain = m.table(10, 5), m.table(s.D)
    out_weight, out_bias = m.normal(s.action, s.D), m.table(s.action)
    embedding, position = m.normal(s.D, s.action), m.table(s.C, s.D)
    tokens, noise, step = m.normal(s.B, fixed, s.D), m.table(10, s.D), m.row(3)
    tensors = (y, x, coefficients, gain, out_weight, out_bias, embedding, position, tokens, noise)

    def ours(i: int, tile: Any = None, pdl: bool = False) -> Tensor:
        return step_tail(
            y, x, coefficients, step, gain, out_weight, out_bias, embedding, position, tokens, noise, pdl=pdl
        )[1]

    def plain(*t: Tensor) -> Tensor:
        y, x, coefficients, gain, out_weight, out_bias, embedding, position, tokens, noise = t
        skip, out, keep, move, into = coefficients[3]
        f = F.linear((rms_norm(y, 1e-6) * gain).to(y.dtype), out_weight, out_bias.to(y.dtype)).float()
        x = keep * x + move * (skip * x + out * f)
        actions = F.linear((x * into).to(y.dtype), embedding) + position
        return torch.cat([noise[4].expand(s.B, 1, -1).to(y.dtype), tokens, actions.to(y.dtype)], 1)

    read = (y.numel() + out_weight.numel() + embedding.numel()) * y.itemsize
    return Case("step_tail", read, 2, ours, plain, lambda i: tensors)


_MAKERS = (_case_norm_linear, _case_attention, _case_expert_up, _case_expert_down, _case_step_tail)


def cases(size: Size, weight: torch.dtype, device: str = "cuda") -> dict[str, Callable[[], Case]]:
    """Return what builds each kernel's case; one at a time, as their weights are large."""

    def build(make: Callable[[_Maker], Case]) -> Callable[[], Case]:
        return lambda: make(_Maker(size, weight, device))

    return {make.__name__.removeprefix("_case_"): build(make) for make in _MAKERS}


def largest_error(actual: Tensor, expected: Tensor) -> float:
    """Largest difference, as a share of the largest entry."""
    return float((actual.float() - expected.float()).abs().max() / expected.float().abs().max())


class Graph:
    """Calls with every set of weights, captured in one CUDA graph."""

    def __init__(self, run: Callable[[int], Any], sets: int) -> None:
        self.sets = sets
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for i in range(sets):
                run(i)
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            for i in range(sets):
                run(i)

    def microseconds(self, replays: int = 5) -> float:
        """Time of one call, in the mean over some replays."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(replays):
            self.graph.replay()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) * 1e3 / replays / self.sets


def in_rounds(graphs: Mapping[str, Graph], rounds: int = 30, warm_up: int = 3) -> dict[str, list[float]]:
    """Microseconds of a call of each, measured in turns."""
    times: dict[str, list[float]] = {name: [] for name in graphs}
    for i in range(rounds + warm_up):
        for name, graph in graphs.items():
            value = graph.microseconds()
            if i >= warm_up:
                times[name].append(value)
    return times


@triton.jit
def _read_kernel(x_ptr, out_ptr, length, BLOCK: tl.constexpr):
    total = tl.zeros([BLOCK], dtype=tl.float32)
    for first in range(tl.program_id(0) * BLOCK, length, tl.num_programs(0) * BLOCK):
        offset = first + tl.arange(0, BLOCK)
        total += tl.load(x_ptr + offset, mask=offset < length, other=0.0)
    tl.store(out_ptr + tl.program_id(0), tl.sum(total, 0))


def read_bandwidth(read: int = 704_643_072) -> float:
    """GB/s of reading so many bytes (the weights that a full-size bfloat16 step touches), median of 50."""
    x = torch.ones(read // 4, device="cuda")
    programs = 8 * torch.cuda.get_device_properties(0).multi_processor_count
    out = torch.empty(programs, device="cuda")
    graph = Graph(lambda _: _read_kernel[(programs,)](x, out, x.numel(), BLOCK=4096, num_warps=8), 1)
    times = in_rounds({"read": graph}, rounds=50)["read"]
    if float(out.double().sum()) != x.numel():
        raise RuntimeError("the read kernel did not read everything")
    return read / statistics.median(times) / 1e3
