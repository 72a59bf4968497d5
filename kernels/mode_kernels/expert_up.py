"""Norm, first projection of the chosen experts, SiLU, product and routing weight in one kernel.

The experts' weights stay where they are, in one stacked tensor: a program reads the number of its expert from
the routing table and computes the address.

Legend: R rows (tokens), G groups of consecutive rows, D width, H hidden width, E = 2H, N experts, K active
experts, T rows of the tables.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs
from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from mode_kernels import launch
from mode_kernels.device import inverse_rms, prefetch_l2
from mode_kernels.launch import check_operands, kernel_op, require, wrap_triton
from mode_kernels.tile_table import Tile, lookup


@triton.jit
def _expert_up_kernel(
    x_ptr,  # (G, R / G, D)
    weight_ptr,  # (N, 2, H, D): linear above gate
    scale_ptr,  # (N, 2, H) or None
    bias_ptr,  # (N, 2, H)
    expert_ptr,  # (T, K)
    route_ptr,  # (T, K)
    row_ptr,  # (G,)
    gain_ptr,  # (D,) or None
    hidden_ptr,  # (R, K, H)
    inverse_ptr,  # (R,)
    group_rows,  # R / G
    eps,
    D: tl.constexpr,
    H: tl.constexpr,
    K: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PDL: tl.constexpr,
):
    blocks = tl.cdiv(group_rows, BLOCK_M)
    group, choice = tl.program_id(0) // blocks, tl.program_id(2)
    m = tl.program_id(0) % blocks * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    in_m, in_n = m < group_rows, n < H
    r = group * group_rows + m
    table = tl.load(row_ptr + group) * K + choice
    expert = tl.load(expert_ptr + table).to(tl.int64)
    linear_ptr = weight_ptr + expert * (2 * H * D)
    gate_ptr = linear_ptr + H * D
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        prefetch_l2(linear_ptr, tl.minimum(n, H - 1), 0, D, 2 * BLOCK_K)
        prefetch_l2(gate_ptr, tl.minimum(n, H - 1), 0, D, 2 * BLOCK_K)
        tl.extra.cuda.gdc_wait()

    dot_type = hidden_ptr.dtype.element_ty
    square = tl.zeros([BLOCK_M], dtype=tl.float32)
    linear = tl.zeros([BLOCK_M, BLOCK_N], dtype=tl.float32)
    gate = tl.zeros([BLOCK_M, BLOCK_N], dtype=tl.float32)
    for start in range(0, D, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        in_k = k < D
        in_weight = in_k[:, None] & in_n[None, :]
        offset = n[None, :] * D + k[:, None]
        linear_weight = tl.load(linear_ptr + offset, mask=in_weight, other=0.0)
        gate_weight = tl.load(gate_ptr + offset, mask=in_weight, other=0.0)
        in_x = in_m[:, None] & in_k[None, :]
        x = tl.load(x_ptr + r[:, None] * D + k[None, :], mask=in_x, other=0.0).to(tl.float32)
        square += tl.sum(x * x, 1)
        if gain_ptr is not None:
            x *= tl.load(gain_ptr + k, mask=in_k, other=0.0)[None, :]
        linear = tl.dot(x.to(dot_type), linear_weight.to(dot_type), linear, input_precision=PRECISION)
        gate = tl.dot(x.to(dot_type), gate_weight.to(dot_type), gate, input_precision=PRECISION)

    inverse = inverse_rms(square, D, eps)
    if (tl.program_id(1) == 0) & (choice == 0):
        tl.store(inverse_ptr + r, inverse, mask=in_m)
    channel = expert * (2 * H) + n
    if scale_ptr is not None:
        linear *= tl.load(scale_ptr + channel, mask=in_n, other=0.0)[None, :]
        gate *= tl.load(scale_ptr + channel + H, mask=in_n, other=0.0)[None, :]
    linear = linear * inverse[:, None] + tl.load(bias_ptr + channel, mask=in_n, other=0.0)[None, :]
    gate = gate * inverse[:, None] + tl.load(bias_ptr + channel + H, mask=in_n, other=0.0)[None, :]
    hidden = linear * gate * tl.sigmoid(gate) * tl.load(route_ptr + table)
    mask = in_m[:, None] & in_n[None, :]
    tl.store(hidden_ptr + (r[:, None] * K + choice) * H + n[None, :], hidden.to(dot_type), mask=mask)


@kernel_op("expert_up")
def expert_up(
    x: Tensor,
    weight_NED: Tensor,
    bias_NE: Tensor,
    expert_TK: Tensor,
    route_TK: Tensor,
    row_G: Tensor,
    gain_D: Tensor | None = None,
    scale_NE: Tensor | None = None,
    eps: float = 1e-6,
    pdl: bool = False,
    tile: Sequence[int] | None = None,
) -> tuple[Tensor, Tensor]:
    """Weighted hidden units of the chosen experts: ``wₖ · aₖ · silu(bₖ)``, (a, b) = W₁ₖ(g·x/rms) + b₁ₖ.

    A shared expert is one more expert of the stack that every row of the table chooses with weight 1.

    Args:
        x: tokens ``(…, D)``, contiguous, of R rows; float32, bfloat16 or float16.
        weight_NED: first projections, linear half above the gate half; of the same types, or int8 or
            float8_e4m3fn with scales.
        bias_NE: float32.
        expert_TK: int32 or int64 experts of each row of the table.
        route_TK: float32 weights of them.
        row_G: int32 row of the tables for each of G groups of R / G consecutive tokens.
        gain_D: float32 gain of the norm; None if it was multiplied into the weights.
        scale_NE: float32 scale of each output channel of quantised weights.
        eps: smallest root mean square.
        pdl: start before the kernel before has ended; that kernel must not write weights, experts or rows.
        tile: a `Tile`; by default that of the tile table.

    Returns:
        Hidden units ``(…, K, H)`` of `launch.product_dtype`, and the inverse root mean squares ``(R,)``,
        which `expert_down` needs for a residual that carries the normed stream.

    Raises:
        ValueError: for shapes, types or layouts that do not fit.
    """
    (N, E, D), R, G, K = weight_NED.shape, x.numel() // x.shape[-1], row_G.numel(), expert_TK.shape[1]
    H = E // 2
    tables = {
        "bias_NE": bias_NE,
        "expert_TK": expert_TK,
        "route_TK": route_TK,
        "row_G": row_G,
        "gain_D": gain_D,
    }
    check_operands("expert_up", x, weight_NED, scale_NE, **tables)
    require(
        x.shape[-1] == D and bias_NE.shape == (N, E) and expert_TK.shape == route_TK.shape,
        f"expert_up: x {tuple(x.shape)}, weight {tuple(weight_NED.shape)}, bias {tuple(bias_NE.shape)}, "
        f"tables {tuple(expert_TK.shape)} and {tuple(route_TK.shape)}",
    )
    require(R % G == 0, f"expert_up: {R} rows cannot form {G} groups")
    t = lookup("expert_up", x.device, weight_NED.dtype, R // G) if tile is None else Tile(*tile)
    hidden = x.new_empty(*x.shape[:-1], K, H, dtype=launch.product_dtype(x.dtype, weight_NED.dtype))
    inverse = x.new_empty(R, dtype=torch.float32)
    kernel = wrap_triton(_expert_up_kernel)
    kernel[(G * triton.cdiv(R // G, t.block_m), triton.cdiv(H, t.block_n), K)](
        x,
        weight_NED,
        scale_NE,
        bias_NE,
        expert_TK,
        route_TK,
        row_G,
        gain_D,
        hidden,
        inverse,
        R // G,
        eps,
        D=D,
        H=H,
        K=K,
        PRECISION=launch.dot_precision(),
        BLOCK_M=t.block_m,
        BLOCK_N=t.block_n,
        BLOCK_K=t.block_k,
        **launch.launch_options(_expert_up_kernel, kernel, x.device, t.warps, t.stages, pdl),
    )
    return hidden, inverse
