"""The full-size network as fake tensors: 14 tokens, width 1024, 8 heads, 4 experts of which 2 are active."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mode_kernels.attention import attention
from mode_kernels.expert_down import expert_down
from mode_kernels.expert_up import expert_up
from mode_kernels.grouped import grouped_experts, grouped_experts_backward
from mode_kernels.launch import QUANTISED, product_dtype
from mode_kernels.norm_linear import norm_linear
from mode_kernels.step_tail import step_tail

S, D, A, H, N, K, STEPS, CHUNK, ACTION = 14, 1024, 8, 4096, 4, 2, 10, 10, 7


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(*shape, dtype=dtype, device="cuda")


def table(*shape: int) -> Tensor:
    return empty(*shape, dtype=torch.int32)


def inference(
    batch: int, weight: torch.dtype, activation: torch.dtype | None = None
) -> dict[Any, tuple[tuple[Any, ...], dict[str, Any]]]:
    """For each operation of a step, its arguments.

    Activations have the type of the weights, and bfloat16 beside quantised ones, unless one is given.
    """
    act = activation or (torch.bfloat16 if weight in QUANTISED else weight)
    x, counter = empty(batch, S, D, dtype=act), table(batch * S * D // 16)

    def scale(*shape: int) -> Tensor | None:
        return empty(*shape) if weight in QUANTISED else None

    return {
        norm_linear: (
            (x, empty(3 * D, D, dtype=weight), empty(STEPS, 3 * D), table(1), empty(D)),
            {"scale_E": scale(3 * D)},
        ),
        attention: (
            (empty(batch, S, 3 * D, dtype=act), x, empty(D, D, dtype=weight), empty(2, D // A), counter, A),
            {"scale_D": scale(D)},
        ),
        expert_up: (
            (
                x,
                empty(N, 2 * H, D, dtype=weight),
                empty(N, 2 * H),
                table(STEPS, K),
                empty(STEPS, K),
                table(1),
            ),
            {"gain_D": empty(D), "scale_NE": scale(N, 2 * H)},
        ),
        expert_down: (
            (
                empty(batch, S, K, H, dtype=product_dtype(act, weight)),
                x,
                empty(N, D, H, dtype=weight),
                table(STEPS, K),
                table(1),
                counter,
                empty(batch * S),
                empty(D),
            ),
            {"scale_ND": scale(N, D)},
        ),
        step_tail: (
            (
                empty(batch, CHUNK, D, dtype=act),
                empty(batch, CHUNK, ACTION),
                empty(STEPS, 5),
                table(1),
                empty(D),
                empty(ACTION, D, dtype=act),
                empty(ACTION),
                empty(D, ACTION, dtype=act),
                empty(CHUNK, D),
                empty(batch, S - CHUNK - 1, D, dtype=act),
                empty(STEPS, D),
            ),
            {},
        ),
    }


def training(batch: int, dtype: torch.dtype) -> dict[Any, tuple[tuple[Any, ...], dict[str, Any]]]:
    """Forward and backward of the grouped experts; the result and its gradient are float32 (autocast)."""
    x, route = empty(batch, S, D, dtype=dtype), empty(batch, K)
    up, bias, down = empty(N, 2 * H, D, dtype=dtype), empty(N, 2 * H), empty(N, D, H, dtype=dtype)
    J = batch * K
    kept = (empty(J * S, 2 * H, dtype=dtype), table(J), table(J), table(N + 1))
    return {
        grouped_experts: ((x, table(batch, K).long(), route, up, bias, down), {}),
        grouped_experts_backward: ((empty(batch, S, D), x, route, up, bias, down, *kept), {}),
    }
