"""Norm and linear projection in one kernel, with the noise embedding's part as a table of biases.

The row's norm is a scalar, so it is applied after the product: ``W(g·x/rms) = (Wg·x) / rms``. What the noise
adds after the norm is a constant of the denoising step: ``W(… + c) + b = W(…) + (Wc + b)``, one row of a
table.

Legend: R rows (tokens), G groups of consecutive rows, D width, E outputs, T rows of the tables.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs
from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from mode_kernels import launch
from mode_kernels.device import inverse_rms, prefetch_l2, product_type
from mode_kernels.launch import check_operands, kernel_op, require, wrap_triton
from mode_kernels.tile_table import Tile, lookup


@triton.jit
def _norm_linear_kernel(
    x_ptr,  # (R, D)
    weight_ptr,  # (E, D)
    scale_ptr,  # (E,) or None
    bias_ptr,  # (T, E)
    row_ptr,  # (G,)
    gain_ptr,  # (D,) or None
    shift_ptr,  # (T, D) or None
    out_ptr,  # (R, E)
    num_rows,  # R
    group_rows,  # R / G
    eps,
    D: tl.constexpr,
    E: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PDL: tl.constexpr,
):
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    r = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    in_n, in_r = n < E, r < num_rows
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        prefetch_l2(weight_ptr, tl.minimum(n, E - 1), 0, D, 2 * BLOCK_K)
        tl.extra.cuda.gdc_wait()
    table_row = tl.load(row_ptr + r // group_rows, mask=in_r, other=0)

    dot_type: tl.constexpr = product_type(x_ptr.dtype.element_ty, weight_ptr.dtype.element_ty)
    square = tl.zeros([BLOCK_M], dtype=tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_N], dtype=tl.float32)
    for start in range(0, D, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        in_k = k < D
        in_weight = in_k[:, None] & in_n[None, :]
        weight = tl.load(weight_ptr + n[None, :] * D + k[:, None], mask=in_weight, other=0.0)
        in_x = in_r[:, None] & in_k[None, :]
        x = tl.load(x_ptr + r[:, None] * D + k[None, :], mask=in_x, other=0.0).to(tl.float32)
        if shift_ptr is not None:
            x += tl.load(shift_ptr + table_row[:, None] * D + k[None, :], mask=in_x, other=0.0)
        square += tl.sum(x * x, 1)
        if gain_ptr is not None:
            x *= tl.load(gain_ptr + k, mask=in_k, other=0.0)[None, :]
        acc = tl.dot(x.to(dot_type), weight.to(dot_type), acc, input_precision=PRECISION)

    if scale_ptr is not None:
        acc *= tl.load(scale_ptr + n, mask=in_n, other=0.0)[None, :]
    mask = in_r[:, None] & in_n[None, :]
    bias = tl.load(bias_ptr + table_row[:, None] * E + n[None, :], mask=mask, other=0.0)
    out = acc * inverse_rms(square, D, eps)[:, None] + bias
    tl.store(out_ptr + r[:, None] * E + n[None, :], out.to(out_ptr.dtype.element_ty), mask=mask)


@kernel_op("norm_linear")
def norm_linear(
    x: Tensor,
    weight_ED: Tensor,
    bias_TE: Tensor,
    row_G: Tensor,
    gain_D: Tensor | None = None,
    shift_TD: Tensor | None = None,
    scale_E: Tensor | None = None,
    eps: float = 1e-6,
    pdl: bool = False,
    tile: Sequence[int] | None = None,
) -> Tensor:
    """``W(g · (x + shift[row]) / max(rms(x + shift[row]), eps)) + bias[row]``.

    With ``bias[t] = W cₜ + b`` this is a block's beginning for the residual forms ``normed`` and
    ``prenorm``; with ``shift[t] = cₜ`` and ``bias[t] = b`` it is that of ``paper``.

    Args:
        x: tokens ``(…, D)``, contiguous, of R rows; float32, bfloat16 or float16.
        weight_ED: of the same types, or int8 or float8_e4m3fn with scales. `launch.product_dtype` tells the
            type of the products.
        bias_TE: float32 biases, one row for each denoising step (or whatever else ``row_G`` counts).
        row_G: int32 row of the tables for each of G groups of R / G consecutive tokens.
        gain_D: float32 gain of the norm; None if it was multiplied into the weight.
        shift_TD: float32, added before the norm.
        scale_E: float32 scale of each output channel of a quantised weight.
        eps: smallest root mean square.
        pdl: start before the kernel before has ended (from compute capability 9.0 on, else ignored); that
            kernel must not write the weight.
        tile: a `Tile`; by default that of the tile table.

    Returns:
        ``(…, E)`` in the type of x.

    Raises:
        ValueError: for shapes, types or layouts that do not fit.
    """
    (D, E), R, G = (x.shape[-1], weight_ED.shape[0]), x.numel() // x.shape[-1], row_G.numel()
    check_operands(
        "norm_linear", x, weight_ED, scale_E, bias_TE=bias_TE, row_G=row_G, gain_D=gain_D, shift_TD=shift_TD
    )
    require(
        weight_ED.shape == (E, D) and bias_TE.shape[1:] == (E,),
        f"norm_linear: x {tuple(x.shape)}, weight {tuple(weight_ED.shape)}, bias {tuple(bias_TE.shape)}",
    )
    require(R % G == 0, f"norm_linear: {R} rows cannot form {G} groups")
    t = lookup("norm_linear", x.device, weight_ED.dtype, R) if tile is None else Tile(*tile)
    out = x.new_empty(*x.shape[:-1], E)
    kernel = wrap_triton(_norm_linear_kernel)
    kernel[(triton.cdiv(R, t.block_m), triton.cdiv(E, t.block_n))](
        x,
        weight_ED,
        scale_E,
        bias_TE,
        row_G,
        gain_D,
        shift_TD,
        out,
        R,
        R // G,
        eps,
        D=D,
        E=E,
        PRECISION=launch.dot_precision(),
        BLOCK_M=t.block_m,
        BLOCK_N=t.block_n,
        BLOCK_K=t.block_k,
        **launch.launch_options(_norm_linear_kernel, kernel, x.device, t.warps, t.stages, pdl),
    )
    return out
