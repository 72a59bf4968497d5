"""Functions that run inside the kernels.

Legend: M rows of a tile, N columns of a tile.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def prefetch_l2(weight_ptr, row_N, first, width: tl.constexpr, COLUMNS: tl.constexpr):
    """Ask for some columns of weight rows while the kernel before still runs, in lines of 128 bytes.

    Weights do not depend on that kernel, so this fills the gap between the two. Columns from ``first`` on,
    rounded up to a power of two of lines, but never past the end of a row.
    """
    PER_LINE: tl.constexpr = 1024 // weight_ptr.dtype.element_ty.primitive_bitwidth
    LINES: tl.constexpr = triton.next_power_of_2(triton.cdiv(COLUMNS, PER_LINE))
    column = tl.minimum(first + tl.arange(0, LINES) * PER_LINE, width - 1)
    address = (weight_ptr + row_N[:, None] * width + column[None, :]).to(tl.int64)
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.b32 $0, 0;",
        "=r,l",
        [address],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.constexpr_function
def product_type(activation, weight):
    """Type in which a kernel takes its products: see `mode_kernels.launch.product_dtype`."""
    if weight.primitive_bitwidth > 8:
        return weight
    return activation if activation.primitive_bitwidth == 16 else tl.bfloat16


@triton.jit
def inverse_rms(square_M, width, eps):
    """``1 / max(‖x‖ / √width, eps)`` from the sums of squares: a clamp, no eps inside the root."""
    return 1.0 / tl.maximum(tl.sqrt(square_M / width), eps)


@triton.jit
def arrived_last(counter_ptr, tile, PARTS: tl.constexpr):
    """Count the programs that have written their part of a tile; true for the one that completes it.

    That one adds the parts up in their order, so a sum does not depend on who comes last. It leaves the
    counter at zero for the next launch.
    """
    tl.debug_barrier()  # every thread of this program has written
    before = tl.atomic_add(counter_ptr + tile, 1, sem="acq_rel")
    last = before == PARTS - 1
    if last:
        tl.store(counter_ptr + tile, 0)
    return last


@triton.jit
def sum_parts(part_ptr, offset_MN, part_stride, mask_MN, PARTS: tl.constexpr):
    """Sum of a tile's parts, first to last. Past L1, which may hold lines from before they were written."""
    total_MN = tl.load(part_ptr + offset_MN, mask=mask_MN, other=0.0, cache_modifier=".cg")
    for part in range(1, PARTS):
        total_MN += tl.load(
            part_ptr + part * part_stride + offset_MN, mask=mask_MN, other=0.0, cache_modifier=".cg"
        )
    return total_MN
