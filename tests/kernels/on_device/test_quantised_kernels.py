"""With 8-bit weights the kernels equal the references with the weights that those bits stand for.

Products are taken in bfloat16, so that is the tolerance, also where the residual stream is float32.
"""

from __future__ import annotations

import pytest
import torch

from mode_kernels.attention import attention
from mode_kernels.expert_down import expert_down
from mode_kernels.expert_up import expert_up
from mode_kernels.launch import new_counter
from mode_kernels.norm_linear import norm_linear
from mode_kernels.quantize import dequantize, quantize
from mode_kernels.reference_inference import (
    attention_reference,
    expert_down_reference,
    expert_up_reference,
    norm_linear_reference,
)
from mode_kernels.tile_table import Tile
from tests.kernels.on_device.shapes import Draw, assert_near, double

B, S, D, A, H, N, K = 2, 5, 32, 2, 48, 4, 2

formats = pytest.mark.parametrize(
    ("format", "dtype"),
    [("int8", torch.float32), ("fp8", torch.float32), ("int8", torch.bfloat16), ("fp8", torch.bfloat16)],
    ids=["int8 float32", "fp8 float32", "int8 bfloat16", "fp8 bfloat16"],
)


@pytest.fixture(autouse=True)
def _needs_the_type(format, device):
    if format == "fp8" and device == "cuda" and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("float8 needs compute capability 8.9")


def tile(split: int = 0) -> list[int]:
    return list(Tile(16, 16, 32, split, 4, 2))


def packed(draw: Draw, format: str, *shape: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """8-bit weights, scales, and what they stand for in float64."""
    quantised = quantize(draw.table(*shape, scale=shape[-1] ** -0.5), format)
    return *quantised, dequantize(quantised).double()


@formats
def test_norm_linear(format, dtype, device):
    draw = Draw(device, dtype)
    weight, scale, exact = packed(draw, format, 3 * D, D)
    x, bias, row = draw.normal(B, S, D), draw.table(1, 3 * D), draw.rows(0)
    out = norm_linear(x, weight, bias, row, scale_E=scale, tile=tile())
    assert out.dtype == dtype
    assert_near(out, norm_linear_reference(x.double(), exact, bias.double(), row), torch.bfloat16)


@formats
def test_attention(format, dtype, device):
    draw = Draw(device, dtype)
    weight, scale, exact = packed(draw, format, D, D)
    qkv, x, gain = draw.normal(B, S, 3 * D), draw.normal(B, S, D), draw.table(2, D // A)
    out = attention(qkv, x, weight, gain, new_counter(B * S, D, device), A, scale_D=scale, tile=tile(2))
    expected = attention_reference(qkv.double(), x.double(), exact, gain.double(), A)
    assert_near(out, expected, torch.bfloat16)


@formats
def test_experts(format, dtype, device):
    draw = Draw(device, dtype)
    up, up_scale, exact_up = packed(draw, format, N, 2 * H, D)
    down, down_scale, exact_down = packed(draw, format, N, D, H)
    x, bias, route = draw.normal(B, S, D), draw.table(N, 2 * H), draw.table(1, K)
    expert, row = draw.experts(1, N, K), draw.rows(0)
    hidden, _ = expert_up(x, up, bias, expert, route, row, scale_NE=up_scale, tile=tile())
    expected, _ = expert_up_reference(double(x), exact_up, double(bias), expert, double(route), row)
    assert hidden.dtype == torch.bfloat16
    assert_near(hidden, expected, torch.bfloat16)
    counter = new_counter(B * S, D, device)
    out = expert_down(hidden, x, down, expert, row, counter, scale_ND=down_scale, tile=tile(1))
    assert out.dtype == dtype
    expected = expert_down_reference(double(hidden), double(x), exact_down, expert, row)
    assert_near(out, expected, torch.bfloat16)


@pytest.mark.parametrize("format", ["int8"])
def test_scales_are_not_forgotten(format, device):
    draw = Draw(device, torch.float32)
    weight, scale, _ = packed(draw, format, D, D)
    with pytest.raises(ValueError, match=r"weights of torch\.int8 need scales"):
        norm_linear(draw.normal(1, D), weight, draw.table(1, D), draw.rows(0))
    with pytest.raises(ValueError, match="take no scales"):
        norm_linear(draw.normal(1, D), draw.normal(D, D), draw.table(1, D), draw.rows(0), scale_E=scale)
