"""Inputs for the inference kernels, at shapes that say which edge they hit."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

# Largest error allowed, as a share of the largest entry of the float64 result. float32 differs by the order
# of its sums. Half types round each operand of a product, and the result: up to 2⁻⁹ (bfloat16) or 2⁻¹²
# (float16) each, several of them in a row.
TOLERANCE = {torch.float32: 5e-6, torch.bfloat16: 2e-2, torch.float16: 2.5e-3}


class Draw:
    """Repeatable tensors on a device."""

    def __init__(self, device: str, dtype: torch.dtype, seed: int = 0) -> None:
        self.device, self.dtype = device, dtype
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int, scale: float = 1.0) -> Tensor:
        """Of the type under test."""
        return self.table(*shape, scale=scale).to(self.dtype)

    def table(self, *shape: int, scale: float = 1.0) -> Tensor:
        """Of float32, as the kernels want biases, gains and other small tensors."""
        return (torch.randn(*shape, generator=self.generator) * scale).to(self.device)

    def experts(self, rows: int, num: int, active: int) -> Tensor:
        order = torch.rand(rows, num, generator=self.generator).argsort(1)[:, :active]
        return order.contiguous().to(self.device)

    def rows(self, *row: int) -> Tensor:
        return torch.tensor(row, dtype=torch.int32, device=self.device)


def double(value: Any) -> Any:
    """Floating-point tensors as float64, everything else as it is."""
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.double()
    return value


def assert_near(actual: Tensor, expected: Tensor, dtype: torch.dtype, factor: float = 1.0) -> None:
    error = (actual.double() - expected).abs().max() / expected.abs().max()
    assert actual.shape == expected.shape
    assert error <= factor * TOLERANCE[dtype], f"relative error {error:.1e}"


class Linear(NamedTuple):
    """Sizes of `norm_linear`: samples, tokens of each, width, outputs, rows of the table; tile (m, n, k)."""

    B: int
    S: int
    D: int
    E: int
    T: int
    tile: tuple[int, int, int] = (16, 16, 32)


LINEAR = {
    "one sample, rows below the tile": Linear(1, 14, 64, 48, 3),
    "one token": Linear(1, 1, 64, 16, 1),
    "several row tiles, the last one cut": Linear(3, 13, 32, 16, 2),
    "tile of 32 rows over the borders of samples": Linear(3, 15, 32, 32, 3, (32, 16, 16)),
    "outputs and width cut by the tile": Linear(2, 5, 40, 25, 3, (16, 16, 32)),
    "odd width": Linear(1, 7, 33, 17, 2),
}


class Attention(NamedTuple):
    """Sizes of `attention`: samples, tokens, heads, width of a head, last tokens, parts, column block."""

    B: int
    S: int
    A: int
    P: int
    L: int | None
    parts: int
    block_n: int = 16


ATTENTION = {
    "sequence below the tile, a program for each head": Attention(1, 14, 4, 16, None, 4),
    "sequence fills the tile, one program for all heads": Attention(2, 16, 2, 16, None, 1),
    "sequence just above a tile": Attention(1, 17, 2, 16, None, 2),
    "sequence of 30, two heads for each program": Attention(1, 30, 4, 16, None, 2),
    "one token": Attention(2, 1, 2, 16, None, 2),
    "head narrower than a product allows": Attention(2, 5, 3, 8, None, 3),
    "width of a head is no power of two": Attention(1, 6, 2, 24, None, 1),
    "last tokens only": Attention(2, 14, 2, 16, 10, 2),
    "parts do not divide the heads": Attention(1, 5, 3, 16, None, 2),
    "columns cut by the tile": Attention(1, 5, 3, 8, 2, 1, 32),
}


class Experts(NamedTuple):
    """Sizes of `expert_up` and `expert_down`: samples, tokens, width, hidden width, experts, active ones,
    groups (1 or samples), programs for each expert, tile (m, n, k)."""

    B: int
    S: int
    D: int
    H: int
    N: int
    K: int
    G: int = 1
    split: int = 1
    tile: tuple[int, int, int] = (16, 16, 32)


EXPERTS = {
    "usual": Experts(1, 14, 32, 128, 4, 2, split=2),
    "dense: one expert": Experts(1, 13, 32, 64, 1, 1, split=1),
    "one expert, its sum shared by four programs": Experts(1, 13, 32, 128, 1, 1, split=4),
    "eight experts, three active, no sharing": Experts(2, 5, 16, 48, 8, 3, split=0),
    "routing of its own for each sample": Experts(3, 17, 16, 64, 4, 2, G=3, split=1),
    "widths cut by the tile": Experts(2, 3, 24, 40, 3, 2, split=1),
    "more programs than steps": Experts(1, 4, 16, 32, 4, 2, split=3),
    "larger tile than rows": Experts(1, 14, 32, 64, 4, 2, split=0, tile=(32, 32, 16)),
}
