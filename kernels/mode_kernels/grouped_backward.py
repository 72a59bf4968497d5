"""Backward pass of the grouped experts: hidden units, then the gradients of inputs and of both weights.

Every gradient is one program's own sum in a fixed order, so results repeat to the bit.

Legend: R routed rows, S tokens of a row, D width, H hidden width, E = 2H, N experts, K active experts,
J = R·K slots, T = J·S tokens sorted by expert.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mode_kernels.grouping import expert_block, most_tiles, source_row, tile_of_expert
from mode_kernels.launch import dot_precision, wrap_triton
from mode_kernels.tile_table import Tile


@triton.jit
def _hidden_kernel(
    grad_ptr,  # (R, S, D)
    weight_ptr,  # (N, D, H), the second projection
    route_ptr,  # (R, K)
    h_ptr,  # (T, 2, H)
    slot_ptr,  # (J,)
    start_ptr,  # (N + 1,)
    dh_ptr,  # (T, 2, H)
    weighted_ptr,  # (T, H), routing weight times hidden units
    droute_ptr,  # (T, column blocks), float32 shares of the routing weights' gradients
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
    weight_ptr += expert.to(tl.int64) * (D * H)
    dhidden = tl.zeros([BLOCK_M, BLOCK_N], dtype=tl.float32)  # before the routing weight
    for start in range(0, D, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        in_k = k < D
        in_grad = in_t[:, None] & in_k[None, :]
        grad = tl.load(grad_ptr + row[:, None] * D + k[None, :], mask=in_grad, other=0.0)
        in_weight = in_k[:, None] & in_n[None, :]
        weight = tl.load(weight_ptr + k[:, None] * H + n[None, :], mask=in_weight, other=0.0)
        dhidden = tl.dot(grad.to(weight.dtype), weight, dhidden, input_precision=PRECISION)

    mask = in_t[:, None] & in_n[None, :]
    route = tl.load(route_ptr + tl.load(slot_ptr + t // tokens, mask=in_t, other=0), mask=in_t, other=0.0)
    route = route.to(tl.float32)[:, None]
    t = t.to(tl.int64)
    offset = t[:, None] * (2 * H) + n[None, :]
    linear = tl.load(h_ptr + offset, mask=mask, other=0.0).to(tl.float32)
    gate = tl.load(h_ptr + H + offset, mask=mask, other=0.0).to(tl.float32)
    sigmoid = tl.sigmoid(gate)
    silu = gate * sigmoid
    hidden = linear * silu
    share = tl.sum(tl.where(mask, dhidden * hidden, 0.0), 1)
    tl.store(droute_ptr + t * tl.num_programs(1) + tl.program_id(1), share, mask=in_t)
    dhidden *= route
    dlinear = dhidden * silu
    dgate = dhidden * linear * (sigmoid + silu * (1 - sigmoid))
    tl.store(dh_ptr + offset, dlinear.to(dh_ptr.dtype.element_ty), mask=mask)
    tl.store(dh_ptr + H + offset, dgate.to(dh_ptr.dtype.element_ty), mask=mask)
    weighted = (route * hidden).to(weighted_ptr.dtype.element_ty)
    tl.store(weighted_ptr + t[:, None] * H + n[None, :], weighted, mask=mask)


@triton.jit
def _outer_kernel(
    left_ptr,  # (T, I), or (R·S, I) where gathered
    right_ptr,  # (T, O), or (R·S, O) where gathered
    slot_ptr,  # (J,)
    start_ptr,  # (N + 1,)
    out_ptr,  # (N, I, O)
    sum_ptr,  # (N, I) or None: the left side's sum over tokens
    tokens,  # S
    I: tl.constexpr,  # noqa: E741
    O: tl.constexpr,  # noqa: E741
    K: tl.constexpr,
    GATHER_LEFT: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    i = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    o = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    expert = tl.program_id(2)
    begin = tl.load(start_ptr + expert) * tokens
    end = tl.load(start_ptr + expert + 1) * tokens
    in_i, in_o = i < I, o < O
    acc = tl.zeros([BLOCK_M, BLOCK_N], dtype=tl.float32)
    total = tl.zeros([BLOCK_M], dtype=tl.float32)
    for first in range(begin, end, BLOCK_K):
        t = first + tl.arange(0, BLOCK_K)
        in_t = t < end
        row = source_row(slot_ptr, t, in_t, tokens, K)
        left_row = row if GATHER_LEFT else t.to(tl.int64)
        right_row = t.to(tl.int64) if GATHER_LEFT else row
        in_left, in_right = in_i[:, None] & in_t[None, :], in_t[:, None] & in_o[None, :]
        left = tl.load(left_ptr + left_row[None, :] * I + i[:, None], mask=in_left, other=0.0)
        right = tl.load(right_ptr + right_row[:, None] * O + o[None, :], mask=in_right, other=0.0)
        if sum_ptr is not None:
            total += tl.sum(left.to(tl.float32), 1)
        dot_type = out_ptr.dtype.element_ty
        acc = tl.dot(left.to(dot_type), right.to(dot_type), acc, input_precision=PRECISION)
    out_ptr += expert.to(tl.int64) * (I * O)
    mask = in_i[:, None] & in_o[None, :]
    tl.store(out_ptr + i[:, None] * O + o[None, :], acc.to(out_ptr.dtype.element_ty), mask=mask)
    if sum_ptr is not None:
        first_column = tl.program_id(1) == 0
        tl.store(sum_ptr + expert * I + i, total.to(sum_ptr.dtype.element_ty), mask=in_i & first_column)


def hidden(
    grad_RSD: Tensor,
    weight_NDH: Tensor,
    route_RK: Tensor,
    h_TE: Tensor,
    slot_J: Tensor,
    start_N1: Tensor,
    t: Tile,
) -> tuple[Tensor, Tensor, Tensor]:
    """Through the second projection and the activation.

    Returns:
        Gradient of h ``(T, E)``, weighted hidden units ``(T, H)`` and the shares ``(T, blocks)`` of the
        routing weights' gradients.
    """
    (R, S, D), (N, _, H), (T, _) = grad_RSD.shape, weight_NDH.shape, h_TE.shape
    blocks = triton.cdiv(H, t.block_n)
    dh_TE, weighted_TH = torch.empty_like(h_TE), h_TE.new_empty(T, H)
    share = h_TE.new_empty(T, blocks, dtype=torch.float32)
    wrap_triton(_hidden_kernel)[(most_tiles(T, N, t.block_m), blocks)](
        grad_RSD,
        weight_NDH,
        route_RK,
        h_TE,
        slot_J,
        start_N1,
        dh_TE,
        weighted_TH,
        share,
        S,
        D=D,
        H=H,
        N=N,
        EXPERTS=expert_block(N),
        K=T // (R * S),
        PRECISION=dot_precision(),
        BLOCK_M=t.block_m,
        BLOCK_N=t.block_n,
        BLOCK_K=t.block_k,
        num_warps=t.warps,
        num_stages=t.stages,
    )
    return dh_TE, weighted_TH, share


def outer(
    left: Tensor,
    right: Tensor,
    slot_J: Tensor,
    start_N1: Tensor,
    tokens: int,
    like_NIO: Tensor,
    t: Tile,
    gather_left: bool = False,
    sum_NI: Tensor | None = None,
) -> Tensor:
    """``Σ left[token]ᵀ right[token]`` over each expert's tokens: the gradient of a weight.

    Args:
        left: sorted ``(T, I)``, or ``(R, S, I)`` with ``gather_left``.
        right: ``(R, S, O)``, or sorted ``(T, O)`` with ``gather_left``.
        slot_J: slot at each sorted place.
        start_N1: first place of each expert.
        tokens: S.
        like_NIO: weight whose shape and type the result has; products are taken in that type.
        t: tile.
        gather_left: which of the two sides is not sorted.
        sum_NI: also receives the left side's sum, the gradient of a bias.
    """
    N, I, O = like_NIO.shape  # noqa: E741
    out_NIO = torch.empty_like(like_NIO)
    wrap_triton(_outer_kernel)[(triton.cdiv(I, t.block_m), triton.cdiv(O, t.block_n), N)](
        left,
        right,
        slot_J,
        start_N1,
        out_NIO,
        sum_NI,
        tokens,
        I=I,
        O=O,
        K=slot_J.shape[0] * tokens // ((left if gather_left else right).numel() // (I if gather_left else O)),
        GATHER_LEFT=gather_left,
        PRECISION=dot_precision(),
        BLOCK_M=t.block_m,
        BLOCK_N=t.block_n,
        BLOCK_K=t.block_k,
        num_warps=t.warps,
        num_stages=t.stages,
    )
    return out_NIO
