"""Sorting of routed rows by expert, on the device: the host never learns how many rows an expert has.

A *slot* is one choice of one row, r·K + k; an expert's slots become neighbours, in ascending order. As all
tokens of a row go the same way, a slot stands for S tokens that stay together.

Legend: R routed rows, K active experts, J = R·K slots, N experts, S tokens of a row, T = J·S sorted tokens.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mode_kernels.launch import wrap_triton

BLOCK_J = 512
_INT = torch.int32


@triton.jit
def _group_kernel(
    expert_ptr,  # (J,)
    slot_ptr,  # (J,) slot at each sorted place
    place_ptr,  # (J,) sorted place of each slot
    start_ptr,  # (N + 1,) first place of each expert
    slots,  # J
    N: tl.constexpr,
    BLOCK_N: tl.constexpr,  # a power of two above N
    BLOCK_J: tl.constexpr,
):
    """One program: count, then place. A counting sort, so it is stable and needs no atomics."""
    n = tl.arange(0, BLOCK_N)
    count = tl.zeros([BLOCK_N], dtype=tl.int32)
    for first in range(0, slots, BLOCK_J):
        j = first + tl.arange(0, BLOCK_J)
        expert = tl.load(expert_ptr + j, mask=j < slots, other=BLOCK_N).to(tl.int32)
        count += tl.sum((expert[:, None] == n[None, :]).to(tl.int32), 0)
    end = tl.cumsum(count, 0)
    tl.store(start_ptr + n, end - count, mask=n <= N)  # no slot chooses N, so its start is the end of N - 1
    place = end - count
    for first in range(0, slots, BLOCK_J):
        j = first + tl.arange(0, BLOCK_J)
        expert = tl.load(expert_ptr + j, mask=j < slots, other=BLOCK_N).to(tl.int32)
        hit = (expert[:, None] == n[None, :]).to(tl.int32)
        earlier = tl.cumsum(hit, 0) - hit
        own = tl.sum(hit * (place[None, :] + earlier), 1)
        tl.store(place_ptr + j, own, mask=j < slots)
        tl.store(slot_ptr + own, j, mask=j < slots)
        place += tl.sum(hit, 0)


def group_slots(expert_RK: Tensor, num_experts: int) -> tuple[Tensor, Tensor, Tensor]:
    """Sort the slots by expert, without waiting for the device.

    Returns:
        ``slot_J``, the slot at each sorted place; ``place_J``, the sorted place of each slot; ``start_N1``,
        the first place of each expert and, at its end, J. All int32.
    """
    slots = expert_RK.numel()
    slot_J = expert_RK.new_empty(slots, dtype=_INT)
    place_J = expert_RK.new_empty(slots, dtype=_INT)
    start_N1 = expert_RK.new_empty(num_experts + 1, dtype=_INT)
    wrap_triton(_group_kernel)[(1,)](
        expert_RK,
        slot_J,
        place_J,
        start_N1,
        slots,
        N=num_experts,
        BLOCK_N=triton.next_power_of_2(num_experts + 1),
        BLOCK_J=BLOCK_J,
        num_warps=4,
    )
    return slot_J, place_J, start_N1


@triton.jit
def tile_of_expert(first_N, last_N, tile, tokens, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Expert, first sorted token and end of that expert's tokens for a tile; the expert is -1 past the last.

    A tile never holds tokens of two experts. Their number is not known on the host, so the grid has the most
    tiles that there can be, `most_tiles`, and some of them find nothing.

    Args:
        first_N: each expert's first place, loaded by the kernel itself: PyTorch would take a pointer that a
            function is given, and that its results depend on, for one that the kernel writes to.
        last_N: the place behind its last.
        tile: number of the tile.
        tokens: S.
    """
    tiles = tl.cdiv((last_N - first_N) * tokens, BLOCK_M)
    before = tl.cumsum(tiles, 0) - tiles
    inside = (tile >= before) & (tile < before + tiles)
    expert = tl.max(tl.where(inside, tl.arange(0, BLOCK_N), -1), 0)
    begin = tl.sum(tl.where(inside, first_N * tokens + (tile - before) * BLOCK_M, 0), 0)
    end = tl.sum(tl.where(inside, last_N * tokens, 0), 0)
    return expert, begin, end


@triton.jit
def source_row(slot_ptr, token_M, mask_M, tokens, K: tl.constexpr):
    """Row of the unsorted tokens (R·S) that each sorted token comes from."""
    slot = tl.load(slot_ptr + token_M // tokens, mask=mask_M, other=0)
    return (slot // K).to(tl.int64) * tokens + token_M % tokens


def expert_block(num_experts: int) -> int:
    """Length of a kernel's vector with an entry for each expert."""
    return triton.next_power_of_2(num_experts)


def most_tiles(sorted_tokens: int, num_experts: int, block_m: int) -> int:
    """Upper bound of Σₙ ⌈tokens of expert n / block_m⌉."""
    return sorted_tokens // block_m + num_experts
