"""Query-key norm, causal attention, output projection and residual in one kernel.

A program owns some output columns of one sample and some of its heads. It attends for those heads (anew for
every block of columns: sequences of 13 to 30 tokens make that cheap) and multiplies with their slice of the
projection. Where the heads of a sample are shared out, the program that comes last adds the parts in order.

Legend: B batch, S sequence, D width, A heads, P width of a head, L last tokens.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs
from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from mode_kernels import launch
from mode_kernels.device import arrived_last, inverse_rms, prefetch_l2, product_type, sum_parts
from mode_kernels.launch import check_operands, kernel_op, require, wrap_triton
from mode_kernels.tile_table import Tile, lookup


@triton.jit
def _head(
    qkv_ptr,  # (S, 3, A, P) of one sample
    gain_ptr,  # (2, P)
    head,
    length,  # S
    eps,
    D: tl.constexpr,
    P: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """Attention output of one head, (BLOCK_S, BLOCK_P), float32."""
    s, p = tl.arange(0, BLOCK_S), tl.arange(0, BLOCK_P)
    mask = (s < length)[:, None] & (p < P)[None, :]
    offset = s[:, None] * (3 * D) + head * P + p[None, :]
    value = tl.load(qkv_ptr + 2 * D + offset, mask=mask, other=0.0)
    query = tl.load(qkv_ptr + offset, mask=mask, other=0.0).to(tl.float32)
    key = tl.load(qkv_ptr + D + offset, mask=mask, other=0.0).to(tl.float32)
    query *= inverse_rms(tl.sum(query * query, 1), P, eps)[:, None]
    key *= inverse_rms(tl.sum(key * key, 1), P, eps)[:, None]
    query *= tl.load(gain_ptr + p, mask=p < P, other=0.0)[None, :] * (P**-0.5)
    key *= tl.load(gain_ptr + P + p, mask=p < P, other=0.0)[None, :]

    score = tl.dot(query.to(value.dtype), tl.trans(key.to(value.dtype)), input_precision=PRECISION)
    score = tl.where(s[None, :] <= s[:, None], score, float("-inf"))  # rows past S see keys before S
    score = tl.exp(score - tl.max(score, 1)[:, None])
    score /= tl.sum(score, 1)[:, None]
    return tl.dot(score.to(value.dtype), value, input_precision=PRECISION)


@triton.jit
def _attention_kernel(
    qkv_ptr,  # (B, S, 3, A, P)
    x_ptr,  # (B, S, D), the residual
    weight_ptr,  # (D, A, P)
    scale_ptr,  # (D,) or None
    gain_ptr,  # (2, P)
    part_ptr,  # (PARTS, B, L, D) float32
    counter_ptr,  # (B · column blocks,) zeros
    out_ptr,  # (B, L, D)
    length,  # S
    last,  # L
    eps,
    D: tl.constexpr,
    P: tl.constexpr,
    PARTS: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PDL: tl.constexpr,
):
    sample, part = tl.program_id(0), tl.program_id(2)
    s, p = tl.arange(0, BLOCK_S), tl.arange(0, BLOCK_P)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    in_n = n < D
    HEADS: tl.constexpr = D // P // PARTS
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        prefetch_l2(weight_ptr, tl.minimum(n, D - 1), part * HEADS * P, D, HEADS * P)
        tl.extra.cuda.gdc_wait()

    dot_type: tl.constexpr = product_type(x_ptr.dtype.element_ty, weight_ptr.dtype.element_ty)
    acc = tl.zeros([BLOCK_S, BLOCK_N], dtype=tl.float32)
    for head in range(part * HEADS, (part + 1) * HEADS):
        in_weight = (p < P)[:, None] & in_n[None, :]
        weight = tl.load(weight_ptr + n[None, :] * D + head * P + p[:, None], mask=in_weight, other=0.0)
        qkv_sample_ptr = qkv_ptr + sample * length * 3 * D
        y = _head(qkv_sample_ptr, gain_ptr, head, length, eps, D, P, PRECISION, BLOCK_S, BLOCK_P)
        acc = tl.dot(y.to(dot_type), weight.to(dot_type), acc, input_precision=PRECISION)

    row = s - (length - last)  # of the result, which holds the last L tokens
    mask = ((row >= 0) & (s < length))[:, None] & in_n[None, :]
    offset = (sample * last + row[:, None]) * D + n[None, :]
    if PARTS > 1:
        part_stride = tl.num_programs(0) * last * D
        tl.store(part_ptr + part * part_stride + offset, acc, mask=mask)
        tile = sample * tl.num_programs(1) + tl.program_id(1)
        if not arrived_last(counter_ptr, tile, PARTS):
            return
        acc = sum_parts(part_ptr, offset, part_stride, mask, PARTS)
    if scale_ptr is not None:
        acc *= tl.load(scale_ptr + n, mask=in_n, other=0.0)[None, :]
    x = tl.load(x_ptr + (sample * length + s[:, None]) * D + n[None, :], mask=mask, other=0.0)
    tl.store(out_ptr + offset, (x.to(tl.float32) + acc).to(out_ptr.dtype.element_ty), mask=mask)


@kernel_op("attention", mutates=["counter"])
def attention(
    qkv_BSE: Tensor,
    x_BSD: Tensor,
    weight_DD: Tensor,
    gain_2P: Tensor,
    counter: Tensor,
    num_heads: int,
    last: int | None = None,
    scale_D: Tensor | None = None,
    eps: float = 1e-6,
    pdl: bool = False,
    tile: Sequence[int] | None = None,
) -> Tensor:
    """``x + W · attention(norm(q) · gain₀, norm(k) · gain₁, v)``, causal, of the last tokens.

    Args:
        qkv_BSE: E = 3D, queries, keys and values of all heads; contiguous, as are all others.
        x_BSD: the residual stream, in the type of qkv.
        weight_DD: output projection; float32, bfloat16 or float16, or quantised with scales.
        gain_2P: float32 gains of queries and keys.
        counter: int32 zeros, of `launch.new_counter`; zeros again afterwards. Launches that may run at
            the same time need counters of their own.
        num_heads: A.
        last: return only this many last tokens.
        scale_D: float32 scale of each output channel of a quantised weight.
        eps: smallest root mean square.
        pdl: start before the kernel before has ended; that kernel must not write the weight.
        tile: a `Tile`; by default that of the tile table. Its ``split`` shares out the heads.

    Returns:
        ``(B, L, D)`` in the type of x.

    Raises:
        ValueError: for shapes, types or layouts that do not fit.
    """
    (B, S, D), A = x_BSD.shape, num_heads
    L = S if last is None else last
    check_operands("attention", x_BSD, weight_DD, scale_D, qkv=qkv_BSE, gain_2P=gain_2P, counter=counter)
    require(qkv_BSE.dtype == x_BSD.dtype, f"attention: qkv is {qkv_BSE.dtype}, x {x_BSD.dtype}")
    require(
        D % A == 0 and gain_2P.shape == (2, D // A),
        f"attention: width {D}, {A} heads, gain {tuple(gain_2P.shape)}",
    )
    require(
        qkv_BSE.shape == (B, S, 3 * D) and weight_DD.shape == (D, D) and 0 < L <= S,
        f"attention: x {tuple(x_BSD.shape)}, qkv {tuple(qkv_BSE.shape)}, "
        f"weight {tuple(weight_DD.shape)}, last {L}",
    )
    t = lookup("attention", x_BSD.device, weight_DD.dtype, B * S) if tile is None else Tile(*tile)
    blocks = triton.cdiv(D, t.block_n)
    parts = max(t.split, 1) if A % max(t.split, 1) == 0 else A
    require(counter.numel() >= B * blocks, f"attention: {counter.numel()} counters, {B * blocks} needed")
    out = x_BSD.new_empty(B, L, D)
    part = x_BSD.new_empty(parts if parts > 1 else 0, B, L, D, dtype=torch.float32)
    kernel = wrap_triton(_attention_kernel)
    kernel[(B, blocks, parts)](
        qkv_BSE,
        x_BSD,
        weight_DD,
        scale_D,
        gain_2P,
        part,
        counter,
        out,
        S,
        L,
        eps,
        D=D,
        P=D // A,
        PARTS=parts,
        PRECISION=launch.dot_precision(),
        BLOCK_S=max(16, triton.next_power_of_2(S)),
        BLOCK_P=max(16, triton.next_power_of_2(D // A)),
        BLOCK_N=t.block_n,
        **launch.launch_options(_attention_kernel, kernel, x_BSD.device, t.warps, t.stages, pdl),
    )
    return out
