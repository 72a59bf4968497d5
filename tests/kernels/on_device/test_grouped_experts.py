"""The grouped experts equal the dense reference in float64, forward and backward, and sort as they should."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from mode_kernels import expert_mlp_reference, experts
from mode_kernels.grouped import grouped_experts
from mode_kernels.grouping import group_slots, most_tiles
from mode_kernels.tile_table import Tile
from tests.kernels.on_device.shapes import Draw, assert_near, double

TILE = list(Tile(block_m=16, block_n=16, block_k=16, split=0, warps=4, stages=2))


class Shape(NamedTuple):
    """Routed rows, tokens of each, width, hidden width, experts, active ones."""

    R: int
    S: int
    D: int
    H: int
    N: int
    K: int


EDGES = {
    "usual": Shape(4, 5, 16, 32, 4, 2),
    "one token of one row": Shape(1, 1, 16, 16, 4, 1),
    "all experts": Shape(3, 4, 16, 16, 4, 4),
    "widths cut by the tile, prime number of experts": Shape(4, 3, 20, 25, 7, 3),
    "most experts idle": Shape(2, 3, 16, 16, 16, 1),
    "dense": Shape(3, 5, 16, 32, 1, 1),
    "an expert's tokens fill a tile exactly": Shape(2, 16, 16, 16, 2, 2),
}
LONG = ("all experts", "dense", "an expert's tokens fill a tile exactly")  # in the interpreter


def arguments(shape: Shape, draw: Draw) -> list[Tensor]:
    R, S, D, H, N, K = shape
    return [
        draw.normal(R, S, D),
        draw.experts(R, N, K),
        draw.table(R, K),
        draw.normal(N, 2 * H, D, scale=D**-0.5),
        draw.normal(N, 2 * H),
        draw.normal(N, D, H, scale=H**-0.5),
    ]


def run(function, args: list[Tensor], grad: Tensor, *more) -> list[Tensor]:
    """Result and gradients."""
    args = [a.detach().clone().requires_grad_() if a.is_floating_point() else a for a in args]
    out = function(*args, *more)
    out = out[0] if isinstance(out, tuple) else out
    leaves = [a for a in args if a.is_floating_point()]
    return [out.detach(), *torch.autograd.grad(out, leaves, grad.to(out.dtype))]


def compare(args: list[Tensor], dtype: torch.dtype, draw: Draw) -> None:
    grad = draw.table(*args[0].shape)
    actual = run(grouped_experts, args, grad, True, TILE)
    expected = run(expert_mlp_reference, [double(a) for a in args], grad.double())
    assert actual[0].dtype == torch.float32  # the routing weights' type is the wider one
    for a, e, like in zip(actual, expected, [None, *(args[i] for i in (0, 2, 3, 4, 5))], strict=True):
        assert like is None or a.dtype == like.dtype
        # The backward pass rounds once more: the gradient of the hidden units.
        assert_near(a, e, dtype, factor=1 if like is None else 2)


@pytest.mark.parametrize(
    "edge", [pytest.param(e, marks=pytest.mark.slow if e in LONG else ()) for e in EDGES]
)
def test_equals_the_reference(edge, device):
    draw = Draw(device, torch.float32)
    compare(arguments(EDGES[edge], draw), torch.float32, draw)


@pytest.mark.parametrize(
    "dtype",
    [
        pytest.param(torch.bfloat16, id="bfloat16"),
        pytest.param(torch.float16, id="float16", marks=pytest.mark.slow),
    ],
)
def test_half_types(dtype, device):
    draw = Draw(device, dtype)
    compare(arguments(EDGES["usual"], draw), dtype, draw)


def test_all_rows_to_one_expert(device):
    draw = Draw(device, torch.float32)
    args = arguments(Shape(6, 3, 16, 16, 4, 1), draw)
    args[1] = torch.full_like(args[1], 2)
    compare(args, torch.float32, draw)
    for gradient in run(grouped_experts, args, draw.table(6, 3, 16), True, TILE)[3:]:
        used = gradient.flatten(1).abs().sum(1) > 0
        assert used.tolist() == [False, False, True, False]


@pytest.mark.parametrize("slots", [1, 7, 600])  # below and above the sort's block
def test_sorting(slots, device):
    expert = torch.randint(5, (slots, 1), generator=torch.Generator().manual_seed(slots)).to(device)
    slot, place, start = group_slots(expert, 6)
    flat = expert.flatten()
    assert torch.equal(slot.long(), flat.argsort(stable=True))
    assert torch.equal(slot[place.long()], torch.arange(slots, dtype=torch.int32, device=device))
    assert start.tolist() == [0, *torch.bincount(flat, minlength=6).cumsum(0).tolist()]


@pytest.mark.parametrize("sizes", [[0, 0, 40], [1, 1, 1], [16, 16, 8], [17, 15, 8]])
def test_the_grid_has_enough_tiles(sizes):
    assert most_tiles(sum(sizes), len(sizes), 16) >= sum(-(-s // 16) for s in sizes)


def test_nothing_is_kept_without_a_backward_pass(device):
    args = arguments(EDGES["usual"], Draw(device, torch.float32))
    with_h, without = grouped_experts(*args, True, TILE), grouped_experts(*args, False, TILE)
    assert torch.equal(with_h[0], without[0])
    assert (len(with_h[1]), len(without[1])) == (4 * 2 * 5, 0)


def test_repeats_to_the_bit(device):
    draw = Draw(device, torch.float32)
    args, grad = arguments(EDGES["usual"], draw), draw.table(4, 5, 16)
    first, second = (run(grouped_experts, args, grad, True, TILE) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_broken_weight_is_noticed(device):
    """Negative control."""
    draw = Draw(device, torch.float32)
    args = arguments(EDGES["all experts"], draw)
    expected = expert_mlp_reference(*[double(a) for a in args])
    assert_near(grouped_experts(*args, False, TILE)[0], expected, torch.float32)
    args[3][1, 0, 0] += 0.5
    with pytest.raises(AssertionError, match="relative error"):
        assert_near(grouped_experts(*args, False, TILE)[0], expected, torch.float32)


@pytest.mark.parametrize("autocast", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_compiles_into_one_graph(autocast, device):
    """Forward and backward, without a break; the interpreter's operation is opaque, a GPU's is traced."""
    draw = Draw(device, torch.float32)
    args, grad = arguments(Shape(2, 3, 16, 16, 2, 1), draw), draw.table(2, 3, 16)

    def scaled(*arguments):
        return experts._grouped_on_gpu(*arguments) * 2

    compiled = torch.compile(scaled, fullgraph=True, backend="aot_eager")
    with torch.autocast(device, torch.bfloat16, enabled=autocast):
        for a, b in zip(run(scaled, args, grad), run(compiled, args, grad), strict=True):
            assert torch.equal(a, b)


def test_autocast(device):
    """Products in bfloat16; tokens, result and all gradients keep their types, as in the dense form."""
    draw = Draw(device, torch.float32)
    args, grad = arguments(Shape(3, 4, 16, 16, 4, 2), draw), draw.table(3, 4, 16)
    with torch.autocast(device, torch.bfloat16):
        actual = run(experts._grouped_on_gpu, args, grad)
        dense = run(expert_mlp_reference, args, grad)
    expected = run(expert_mlp_reference, [double(a) for a in args], grad.double())
    for a, b, e in zip(actual, dense, expected, strict=True):
        assert a.dtype == b.dtype == torch.float32
        assert_near(a, e, torch.bfloat16, factor=2)
        assert not torch.equal(a, e.float())
