"""Second projection of the chosen experts and the residual in one kernel.

The sum over experts is one long product, ``[W₂₁ W₂₂ …][h₁; h₂; …]``. Few rows give few tiles, too few to
keep a GPU's memory busy, so the axis of the sum is shared out over programs; the one that comes last adds the
parts in order.

Legend: R rows (tokens), G groups of consecutive rows, D width, H hidden width, N experts, K active experts,
T rows of the table.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs
from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from mode_kernels import launch
from mode_kernels.device import arrived_last, prefetch_l2, sum_parts
from mode_kernels.launch import QUANTISED, check_operands, kernel_op, require, wrap_triton
from mode_kernels.tile_table import Tile, lookup


@triton.jit
def _expert_down_kernel(
    hidden_ptr,  # (G, R / G, K, H)
    x_ptr,  # (R, D), the residual
    weight_ptr,  # (N, D, H)
    scale_ptr,  # (N, D) or None
    expert_ptr,  # (T, K)
    row_ptr,  # (G,)
    inverse_ptr,  # (R,) or None
    gain_ptr,  # (D,) or None
    part_ptr,  # (PARTS, R, D) float32
    counter_ptr,  # (row blocks · column blocks,) zeros
    out_ptr,  # (R, D)
    num_rows,  # R
    group_rows,  # R / G
    D: tl.constexpr,
    H: tl.constexpr,
    K: tl.constexpr,
    SPLIT: tl.constexpr,  # programs for each expert; 0: one for all experts
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PDL: tl.constexpr,
):
    PARTS: tl.constexpr = K * SPLIT if SPLIT > 0 else 1
    CHOICES: tl.constexpr = 1 if SPLIT > 0 else K  # experts that this program sums
    LENGTH: tl.constexpr = tl.cdiv(tl.cdiv(H, BLOCK_K), max(SPLIT, 1)) * BLOCK_K  # of its part of H
    blocks = tl.cdiv(group_rows, BLOCK_M)
    group, part = tl.program_id(0) // blocks, tl.program_id(2)
    m = tl.program_id(0) % blocks * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    in_m, in_n = m < group_rows, n < D
    r = group * group_rows + m
    table = tl.load(row_ptr + group) * K
    first = part // max(SPLIT, 1)
    begin = part % max(SPLIT, 1) * LENGTH
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        expert = tl.load(expert_ptr + table + first).to(tl.int64)
        prefetch_l2(weight_ptr + expert * (D * H), tl.minimum(n, D - 1), begin, H, 2 * BLOCK_K)
        tl.extra.cuda.gdc_wait()

    dot_type = hidden_ptr.dtype.element_ty
    acc = tl.zeros([BLOCK_M, BLOCK_N], dtype=tl.float32)
    for choice in tl.static_range(CHOICES):
        expert = tl.load(expert_ptr + table + first + choice).to(tl.int64)
        expert_weight_ptr = weight_ptr + expert * (D * H)
        expert_hidden_ptr = hidden_ptr + (first + choice) * H
        product = tl.zeros([BLOCK_M, BLOCK_N], dtype=tl.float32)
        for start in range(0, LENGTH, BLOCK_K):
            h = begin + start + tl.arange(0, BLOCK_K)
            in_h = h < H
            in_weight = in_h[:, None] & in_n[None, :]
            weight = tl.load(expert_weight_ptr + n[None, :] * H + h[:, None], mask=in_weight, other=0.0)
            in_hidden = in_m[:, None] & in_h[None, :]
            hidden = tl.load(expert_hidden_ptr + r[:, None] * (K * H) + h[None, :], mask=in_hidden, other=0.0)
            product = tl.dot(hidden, weight.to(dot_type), product, input_precision=PRECISION)
        if scale_ptr is not None:
            product *= tl.load(scale_ptr + expert * D + n, mask=in_n, other=0.0)[None, :]
        acc += product

    mask = in_m[:, None] & in_n[None, :]
    offset = r[:, None] * D + n[None, :]
    if PARTS > 1:
        tl.store(part_ptr + part * num_rows * D + offset, acc, mask=mask)
        if not arrived_last(counter_ptr, tl.program_id(0) * tl.num_programs(1) + tl.program_id(1), PARTS):
            return
        acc = sum_parts(part_ptr, offset, num_rows * D, mask, PARTS)
    x = tl.load(x_ptr + offset, mask=mask, other=0.0).to(tl.float32)
    if inverse_ptr is not None:
        x *= tl.load(inverse_ptr + r, mask=in_m, other=0.0)[:, None]
    if gain_ptr is not None:
        x *= tl.load(gain_ptr + n, mask=in_n, other=0.0)[None, :]
    tl.store(out_ptr + offset, (x + acc).to(out_ptr.dtype.element_ty), mask=mask)


@kernel_op("expert_down", mutates=["counter"])
def expert_down(
    hidden: Tensor,
    x: Tensor,
    weight_NDH: Tensor,
    expert_TK: Tensor,
    row_G: Tensor,
    counter: Tensor,
    inverse_R: Tensor | None = None,
    gain_D: Tensor | None = None,
    scale_ND: Tensor | None = None,
    pdl: bool = False,
    tile: Sequence[int] | None = None,
) -> Tensor:
    """``residual + Σₖ W₂ₖ · hiddenₖ``; the hidden units of `expert_up` carry the routing weights already.

    The residual is ``x`` for the forms ``prenorm`` and ``paper`` of the block. For ``normed`` it is
    ``x · inverse · gain``, with the inverse root mean squares that `expert_up` returned.

    Args:
        hidden: ``(…, K, H)``, contiguous; float32, bfloat16 or float16.
        x: residual stream ``(…, D)`` of R rows; float32, bfloat16 or float16.
        weight_NDH: second projections, in the type of hidden, or int8 or float8_e4m3fn with scales.
        expert_TK: int32 or int64 experts of each row of the table.
        row_G: int32 row of the table for each of G groups of R / G consecutive tokens.
        counter: int32 zeros, of `launch.new_counter`; zeros again afterwards. Launches that may run at
            the same time need counters of their own.
        inverse_R: float32; given only for the form ``normed``, as is the gain.
        gain_D: float32 gain of the norm (also where it was multiplied into the first projection).
        scale_ND: float32 scale of each output channel of quantised weights.
        pdl: start before the kernel before has ended; that kernel must not write weights, experts or rows.
        tile: a `Tile`; by default that of the tile table.

    Returns:
        ``(…, D)`` in the type of x.

    Raises:
        ValueError: for shapes, types or layouts that do not fit.
    """
    (_, D, H), R, G, K = weight_NDH.shape, x.numel() // x.shape[-1], row_G.numel(), expert_TK.shape[1]
    tables = {"expert_TK": expert_TK, "row_G": row_G, "inverse_R": inverse_R, "gain_D": gain_D}
    check_operands("expert_down", x, weight_NDH, scale_ND, hidden=hidden, counter=counter, **tables)
    require(
        x.shape[-1] == D and hidden.shape == (*x.shape[:-1], K, H),
        f"expert_down: hidden {tuple(hidden.shape)}, x {tuple(x.shape)}, weight {tuple(weight_NDH.shape)}",
    )
    require(
        weight_NDH.dtype in (*QUANTISED, hidden.dtype),
        f"expert_down: hidden units of {hidden.dtype}, weights of {weight_NDH.dtype}",
    )
    require(R % G == 0, f"expert_down: {R} rows cannot form {G} groups")
    t = lookup("expert_down", x.device, weight_NDH.dtype, R // G) if tile is None else Tile(*tile)
    grid = (
        G * triton.cdiv(R // G, t.block_m),
        triton.cdiv(D, t.block_n),
        K * t.split if t.split > 0 else 1,
    )
    require(
        counter.numel() >= grid[0] * grid[1],
        f"expert_down: {counter.numel()} counters, {grid[0] * grid[1]} needed",
    )
    out = torch.empty_like(x)
    part = x.new_empty(grid[2] if grid[2] > 1 else 0, R, D, dtype=torch.float32)
    kernel = wrap_triton(_expert_down_kernel)
    kernel[grid](
        hidden,
        x,
        weight_NDH,
        scale_ND,
        expert_TK,
        row_G,
        inverse_R,
        gain_D,
        part,
        counter,
        out,
        R,
        R // G,
        D=D,
        H=H,
        K=K,
        SPLIT=t.split,
        PRECISION=launch.dot_precision(),
        BLOCK_M=t.block_m,
        BLOCK_N=t.block_n,
        BLOCK_K=t.block_k,
        **launch.launch_options(_expert_down_kernel, kernel, x.device, t.warps, t.stages, pdl),
    )
    return out
