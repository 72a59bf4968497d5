"""Forward pass of the grouped experts: one kernel for each projection, one to bring the results home.

Legend: R routed rows, S tokens of a row, D width, H hidden width, E = 2H, N experts, K active experts,
J = R·K slots, T = J·S tokens sorted by expert.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs
from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from mode_kernels.grouping import expert_block, most_tiles, source_row, tile_of_expert
from mode_kernels.launch import dot_precision, wrap_triton
from mode_kernels.tile_table import Tile


@triton.jit
def _up_kernel(
    x_ptr,  # (R, S, D)
    weight_ptr,  # (N, 2, H, D): linear above gate
    bias_ptr,  # (N, 2, H)
    slot_ptr,  # (J,)
    start_ptr,  # (N + 1,)
    h_ptr,  # (T, 2, H) or None
    hidden_ptr,  # (T, H)
    tokens,  # S
    D: tl.constexpr,
    H: tl.constexpr,
    N: tl.constexpr,
    EXPERTS: tl.constexpr,  # a power of two, N at least
    K: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    e = tl.arange(0, EXPERTS)
    first_place = tl.load(start_ptr + e, mask=e < N, other=0)
    last_place = tl.load(start_ptr + e + 1, mask=e < N, other=0)
    expert, begin, end = tile_of_expert(first_place, last_place, tl.program_id(0), tokens, BLOCK_M, EXPERTS)
    if expert < 0:
        return
    t = begin + tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    in_t, in_n = t < end, n < H
    row = source_row(slot_ptr, t, in_t, tokens, K)
    linear_ptr = weight_ptr + expert.to(tl.int64) * (2 * H * D)
    linear = tl.zeros([BLOCK_M, BLOCK_N], dtype=tl.float32)
    gate = tl.zeros([BLOCK_M, BLOCK_N], dtype=tl.float32)
    for start in range(0, D, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        in_k = k < D
        x = tl.load(x_ptr + row[:, None] * D + k[None, :], mask=in_t[:, None] & in_k[None, :], other=0.0)
        offset = n[None, :] * D + k[:, None]
        in_weight = in_k[:, None] & in_n[None, :]
        linear_weight = tl.load(linear_ptr + offset, mask=in_weight, other=0.0)
        gate_weight = tl.load(linear_ptr + H * D + offset, mask=in_weight, other=0.0)
        linear = tl.dot(x, linear_weight, linear, input_precision=PRECISION)
        gate = tl.dot(x, gate_weight, gate, input_precision=PRECISION)
    bias_ptr += expert * (2 * H)
    linear += tl.load(bias_ptr + n, mask=in_n, other=0.0).to(tl.float32)[None, :]
    gate += tl.load(bias_ptr + H + n, mask=in_n, other=0.0).to(tl.float32)[None, :]
    mask = in_t[:, None] & in_n[None, :]
    t = t.to(tl.int64)
    if h_ptr is not None:
        offset = t[:, None] * (2 * H) + n[None, :]
        tl.store(h_ptr + offset, linear.to(h_ptr.dtype.element_ty), mask=mask)
        tl.store(h_ptr + H + offset, gate.to(h_ptr.dtype.element_ty), mask=mask)
    hidden = linear * gate * tl.sigmoid(gate)
    tl.store(hidden_ptr + t[:, None] * H + n[None, :], hidden.to(hidden_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _rows_kernel(
    in_ptr,  # (T, I)
    weight_ptr,  # (N, O, I) by the strides
    start_ptr,  # (N + 1,)
    out_ptr,  # (T, O)
    tokens,  # S
    I: tl.constexpr,  # noqa: E741
    O: tl.constexpr,  # noqa: E741
    N: tl.constexpr,
    EXPERTS: tl.constexpr,  # a power of two, N at least
    STRIDE_O: tl.constexpr,
    STRIDE_I: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    e = tl.arange(0, EXPERTS)
    first_place = tl.load(start_ptr + e, mask=e < N, other=0)
    last_place = tl.load(start_ptr + e + 1, mask=e < N, other=0)
    expert, begin, end = tile_of_expert(first_place, last_place, tl.program_id(0), tokens, BLOCK_M, EXPERTS)
    if expert < 0:
        return
    t = begin + tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    in_t, in_n = t < end, n < O
    t = t.to(tl.int64)
    weight_ptr += expert.to(tl.int64) * (O * I)
    acc = tl.zeros([BLOCK_M, BLOCK_N], dtype=tl.float32)
    for start in range(0, I, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        in_k = k < I
        value = tl.load(in_ptr + t[:, None] * I + k[None, :], mask=in_t[:, None] & in_k[None, :], other=0.0)
        offset = n[None, :] * STRIDE_O + k[:, None] * STRIDE_I
        weight = tl.load(weight_ptr + offset, mask=in_k[:, None] & in_n[None, :], other=0.0)
        acc = tl.dot(value, weight, acc, input_precision=PRECISION)
    mask = in_t[:, None] & in_n[None, :]
    tl.store(out_ptr + t[:, None] * O + n[None, :], acc.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _combine_kernel(
    y_ptr,  # (T, D)
    route_ptr,  # (R, K) or None
    place_ptr,  # (J,)
    out_ptr,  # (R, S, D)
    tokens,  # S
    D: tl.constexpr,
    K: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    sample = row // tokens
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    acc = tl.zeros([BLOCK_D], dtype=tl.float32)
    for choice in tl.static_range(K):
        place = tl.load(place_ptr + sample * K + choice).to(tl.int64)
        y = tl.load(y_ptr + (place * tokens + row % tokens) * D + d, mask=d < D, other=0.0).to(tl.float32)
        if route_ptr is not None:
            y *= tl.load(route_ptr + sample * K + choice).to(tl.float32)
        acc += y
    tl.store(out_ptr + row * D + d, acc.to(out_ptr.dtype.element_ty), mask=d < D)


def up(
    x_RSD: Tensor,
    weight_NED: Tensor,
    bias_NE: Tensor,
    slot_J: Tensor,
    start_N1: Tensor,
    keep: bool,
    t: Tile,
) -> tuple[Tensor, Tensor]:
    """First projection of the gathered tokens.

    Returns:
        h ``(T, E)``, empty unless kept, and the hidden units ``(T, H)``.
    """
    (R, S, D), (N, E, _), J = x_RSD.shape, weight_NED.shape, slot_J.shape[0]
    H = E // 2
    h_TE = x_RSD.new_empty(J * S if keep else 0, E)
    hidden_TH = x_RSD.new_empty(J * S, H)
    wrap_triton(_up_kernel)[(most_tiles(J * S, N, t.block_m), triton.cdiv(H, t.block_n))](
        x_RSD,
        weight_NED,
        bias_NE,
        slot_J,
        start_N1,
        h_TE if keep else None,
        hidden_TH,
        S,
        D=D,
        H=H,
        N=N,
        EXPERTS=expert_block(N),
        K=J // R,
        PRECISION=dot_precision(),
        BLOCK_M=t.block_m,
        BLOCK_N=t.block_n,
        BLOCK_K=t.block_k,
        num_warps=t.warps,
        num_stages=t.stages,
    )
    return h_TE, hidden_TH


def rows(in_TI: Tensor, weight_NOI: Tensor, start_N1: Tensor, tokens: int, t: Tile) -> Tensor:
    """Each sorted row times its expert's weight, ``(T, O)``; the weight may be a transposed view."""
    (T, I), (N, O, _) = in_TI.shape, weight_NOI.shape  # noqa: E741
    out_TO = in_TI.new_empty(T, O)
    wrap_triton(_rows_kernel)[(most_tiles(T, N, t.block_m), triton.cdiv(O, t.block_n))](
        in_TI,
        weight_NOI,
        start_N1,
        out_TO,
        tokens,
        I=I,
        O=O,
        N=N,
        EXPERTS=expert_block(N),
        STRIDE_O=weight_NOI.stride(1),
        STRIDE_I=weight_NOI.stride(2),
        PRECISION=dot_precision(),
        BLOCK_M=t.block_m,
        BLOCK_N=t.block_n,
        BLOCK_K=t.block_k,
        num_warps=t.warps,
        num_stages=t.stages,
    )
    return out_TO


def combine(y_TD: Tensor, route_RK: Tensor | None, place_J: Tensor, like_RSD: Tensor) -> Tensor:
    """Sum over each token's experts, weighted by the routing if given; shape and type of ``like_RSD``."""
    R, S, D = like_RSD.shape
    block = min(triton.next_power_of_2(D), 1024)
    wrap_triton(_combine_kernel)[(R * S, triton.cdiv(D, block))](
        y_TD,
        route_RK,
        place_J,
        like_RSD,
        S,
        D=D,
        K=place_J.shape[0] // R,
        BLOCK_D=block,
        num_warps=4,
    )
    return like_RSD
