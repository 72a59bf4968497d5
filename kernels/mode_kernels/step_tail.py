"""The end of a denoising step in one small kernel, and with it the beginning of the next.

Legend: B batch, C chunk, A action dimension, D width, F fixed tokens (goal and observation), S sequence =
[noise] + F + C, T denoising steps.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs
from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from mode_kernels import launch
from mode_kernels.device import inverse_rms
from mode_kernels.launch import check_operands, kernel_op, require, wrap_triton

BLOCK_D = 256  # a program works through a row in pieces of this size


@triton.jit
def _step_tail_kernel(
    y_ptr,  # (B, C, D), what the last block returned
    x_ptr,  # (B, C, A), noisy actions
    coefficient_ptr,  # (T, 5)
    step_ptr,  # (1,)
    gain_ptr,  # (D,)
    out_weight_ptr,  # (A, D)
    out_bias_ptr,  # (A,)
    action_weight_ptr,  # (D, A)
    position_ptr,  # (C, D)
    fixed_ptr,  # (B, F, D)
    noise_ptr,  # (T, D) or None
    x_next_ptr,  # (B, C, A)
    tokens_ptr,  # (B, S, D)
    chunk,  # C
    fixed,  # F
    steps,  # T
    eps,
    D: tl.constexpr,
    A: tl.constexpr,
    BLOCK_A: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PDL: tl.constexpr,
):
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    sample, token = tl.program_id(0), tl.program_id(1)
    step = tl.load(step_ptr)
    FIRST: tl.constexpr = 0 if noise_ptr is None else 1  # place of the first fixed token
    out_ptr = tokens_ptr + (sample * tl.num_programs(1) + token) * D
    row = token - FIRST - fixed  # of the action, negative for the tokens before
    if row < 0:
        for start in range(0, D, BLOCK_D):
            d = start + tl.arange(0, BLOCK_D)
            fixed_row = sample * fixed + token - FIRST
            in_fixed = (d < D) & (token >= FIRST)
            value = tl.load(fixed_ptr + fixed_row * D + d, mask=in_fixed, other=0.0).to(tl.float32)
            if noise_ptr is not None:
                next_step = tl.minimum(step + 1, steps - 1)
                value += tl.load(noise_ptr + next_step * D + d, mask=(d < D) & (token == 0), other=0.0)
            tl.store(out_ptr + d, value.to(out_ptr.dtype.element_ty), mask=d < D)
        return

    a = tl.arange(0, BLOCK_A)
    in_a = a < A
    action = sample * chunk + row
    square = tl.zeros([BLOCK_D], dtype=tl.float32)
    product = tl.zeros([BLOCK_A], dtype=tl.float32)
    for start in range(0, D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        y = tl.load(y_ptr + action * D + d, mask=d < D, other=0.0).to(tl.float32)
        square += y * y
        y *= tl.load(gain_ptr + d, mask=d < D, other=0.0)
        mask = in_a[:, None] & (d < D)[None, :]
        weight = tl.load(out_weight_ptr + a[:, None] * D + d[None, :], mask=mask, other=0.0).to(tl.float32)
        product += tl.sum(weight * y[None, :], 1)
    bias = tl.load(out_bias_ptr + a, mask=in_a, other=0.0)
    prediction = product * inverse_rms(tl.sum(square, 0), D, eps) + bias

    coefficient_ptr += step * 5
    x = tl.load(x_ptr + action * A + a, mask=in_a, other=0.0)
    denoised = tl.load(coefficient_ptr) * x + tl.load(coefficient_ptr + 1) * prediction
    x_next = tl.load(coefficient_ptr + 2) * x + tl.load(coefficient_ptr + 3) * denoised
    tl.store(x_next_ptr + action * A + a, x_next, mask=in_a)

    scaled = x_next * tl.load(coefficient_ptr + 4)
    for start in range(0, D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        mask = (d < D)[:, None] & in_a[None, :]
        weight = tl.load(action_weight_ptr + d[:, None] * A + a[None, :], mask=mask, other=0.0).to(tl.float32)
        embedding = tl.sum(weight * scaled[None, :], 1)
        embedding += tl.load(position_ptr + row * D + d, mask=d < D, other=0.0)
        tl.store(out_ptr + d, embedding.to(out_ptr.dtype.element_ty), mask=d < D)


@kernel_op("step_tail")
def step_tail(
    y_BCD: Tensor,
    x_BCA: Tensor,
    coefficient_T5: Tensor,
    step_1: Tensor,
    gain_D: Tensor,
    out_weight_AD: Tensor,
    out_bias_A: Tensor,
    action_weight_DA: Tensor,
    position_CD: Tensor,
    fixed_BFD: Tensor,
    noise_TD: Tensor | None = None,
    eps: float = 1e-6,
    pdl: bool = False,
) -> tuple[Tensor, Tensor]:
    """Final norm, output projection, preconditioning, sampler update and the next step's tokens.

    With F the network's prediction and the five coefficients ``(c_skip, c_out, keep, move, c_in of the
    next step)`` of this step::

        D = c_skip · x + c_out · F        x' = keep · x + move · D
        tokens = [noise of the next step] + fixed + (W_action · c_in · x' + position)

    DDIM is keep = σ'/σ, move = 1 − σ'/σ; keep = 0, move = 1 returns the denoised actions themselves.

    Args:
        y_BCD: what the last block returned for the action tokens; contiguous, as are all others.
        x_BCA: float32 noisy actions at this step's noise level.
        coefficient_T5: float32, computed in double precision.
        step_1: int32 number of this step.
        gain_D: float32 gain of the final norm.
        out_weight_AD: output projection.
        out_bias_A: float32.
        action_weight_DA: embedding of actions, in the type of the output projection.
        position_CD: float32 positions of the actions.
        fixed_BFD: goal and observation tokens with their positions, in the type of y.
        noise_TD: float32 noise token of each step; None for a network without. The last step writes its own.
        eps: smallest root mean square.
        pdl: start before the kernel before has ended.

    Returns:
        x' ``(B, C, A)`` and the next step's tokens ``(B, S, D)`` in the type of y.

    Raises:
        ValueError: for shapes, types or layouts that do not fit.
    """
    (B, C, D), A, F, T = y_BCD.shape, x_BCA.shape[2], fixed_BFD.shape[1], coefficient_T5.shape[0]
    tables = {"coefficient_T5": coefficient_T5, "step_1": step_1, "gain_D": gain_D, "out_bias_A": out_bias_A}
    tokens = {"x_BCA": x_BCA, "position_CD": position_CD, "fixed_BFD": fixed_BFD, "noise_TD": noise_TD}
    check_operands(
        "step_tail", y_BCD, out_weight_AD, None, action_weight_DA=action_weight_DA, **tables, **tokens
    )
    require(
        x_BCA.shape == (B, C, A) and out_weight_AD.shape == (A, D) and action_weight_DA.shape == (D, A),
        f"step_tail: y {tuple(y_BCD.shape)}, x {tuple(x_BCA.shape)}, output {tuple(out_weight_AD.shape)}, "
        f"embedding {tuple(action_weight_DA.shape)}",
    )
    require(
        coefficient_T5.shape == (T, 5) and (noise_TD is None or noise_TD.shape == (T, D)),
        f"step_tail: coefficients {tuple(coefficient_T5.shape)}, "
        f"noise {None if noise_TD is None else tuple(noise_TD.shape)}",
    )
    require(
        fixed_BFD.shape == (B, F, D) and position_CD.shape == (C, D) and fixed_BFD.dtype == y_BCD.dtype,
        f"step_tail: fixed tokens {tuple(fixed_BFD.shape)} of {fixed_BFD.dtype}, "
        f"positions {tuple(position_CD.shape)}",
    )
    S = (noise_TD is not None) + F + C
    x_next = x_BCA.new_empty(B, C, A)
    next_tokens = y_BCD.new_empty(B, S, D)
    kernel = wrap_triton(_step_tail_kernel)
    kernel[(B, S)](
        y_BCD,
        x_BCA,
        coefficient_T5,
        step_1,
        gain_D,
        out_weight_AD,
        out_bias_A,
        action_weight_DA,
        position_CD,
        fixed_BFD,
        noise_TD,
        x_next,
        next_tokens,
        C,
        F,
        T,
        eps,
        D=D,
        A=A,
        BLOCK_A=triton.next_power_of_2(A),
        BLOCK_D=BLOCK_D,
        **launch.launch_options(_step_tail_kernel, kernel, y_BCD.device, 4, 1, pdl),
    )
    return x_next, next_tokens
