"""Plain PyTorch forms of the inference kernels: the oracles of their tests, slow and obvious.

They take what the kernels take, except for tiles, counters and launch options, and any floating-point type;
tests call them in float64. Quantised weights are given as `dequantize` returns them.

Legend: R rows (tokens), G groups of consecutive rows, D width, E outputs or 2H, H hidden width, N experts,
K active experts, T rows of the tables, B batch, S sequence, A heads or actions, P width of a head, C chunk,
F fixed tokens, L last tokens.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def rms_norm(x: Tensor, eps: float) -> Tensor:
    """``x / max(‖x‖ / √width, eps)`` over the last axis."""
    return x / x.square().mean(-1, keepdim=True).sqrt().clamp(min=eps)


def _for_each_row(row_G: Tensor, x: Tensor) -> Tensor:
    """The table's row of every token of x, (R,)."""
    return row_G.long().repeat_interleave(x.numel() // x.shape[-1] // row_G.numel())


def norm_linear_reference(
    x: Tensor,
    weight_ED: Tensor,
    bias_TE: Tensor,
    row_G: Tensor,
    gain_D: Tensor | None = None,
    shift_TD: Tensor | None = None,
    eps: float = 1e-6,
) -> Tensor:
    """See `mode_kernels.norm_linear.norm_linear`."""
    table_row_R = _for_each_row(row_G, x)
    x_RD = x.reshape(-1, x.shape[-1])
    if shift_TD is not None:
        x_RD = x_RD + shift_TD[table_row_R]
    unit_RD = rms_norm(x_RD, eps)
    if gain_D is not None:
        unit_RD = unit_RD * gain_D
    return (F.linear(unit_RD, weight_ED) + bias_TE[table_row_R]).view(*x.shape[:-1], -1)


def attention_reference(
    qkv_BSE: Tensor,
    x_BSD: Tensor,
    weight_DD: Tensor,
    gain_2P: Tensor,
    num_heads: int,
    last: int | None = None,
    eps: float = 1e-6,
) -> Tensor:
    """See `mode_kernels.attention.attention`."""
    B, S, D = x_BSD.shape
    L = S if last is None else last
    q_BASP, k_BASP, v_BASP = qkv_BSE.view(B, S, 3, num_heads, -1).permute(2, 0, 3, 1, 4)
    q_BASP, k_BASP = rms_norm(q_BASP, eps) * gain_2P[0], rms_norm(k_BASP, eps) * gain_2P[1]
    score_BASS = q_BASP @ k_BASP.transpose(-1, -2) * q_BASP.shape[-1] ** -0.5
    later_SS = torch.ones(S, S, dtype=torch.bool, device=x_BSD.device).triu(1)
    y_BASP = score_BASS.masked_fill(later_SS, float("-inf")).softmax(-1) @ v_BASP
    y_BSD = y_BASP.transpose(1, 2).reshape(B, S, D)
    return (x_BSD + F.linear(y_BSD, weight_DD))[:, S - L :]


def expert_up_reference(
    x: Tensor,
    weight_NED: Tensor,
    bias_NE: Tensor,
    expert_TK: Tensor,
    route_TK: Tensor,
    row_G: Tensor,
    gain_D: Tensor | None = None,
    eps: float = 1e-6,
) -> tuple[Tensor, Tensor]:
    """See `mode_kernels.expert_up.expert_up`."""
    table_row_R = _for_each_row(row_G, x)
    x_RD = x.reshape(-1, x.shape[-1])
    inverse_R = 1 / x_RD.square().mean(-1).sqrt().clamp(min=eps)
    unit_RD = x_RD * inverse_R[:, None] * (1 if gain_D is None else gain_D)
    expert_RK = expert_TK[table_row_R].long()
    h_RNE = torch.einsum("rd,ned->rne", unit_RD, weight_NED) + bias_NE
    h_RKE = h_RNE.gather(1, expert_RK[:, :, None].expand(-1, -1, h_RNE.shape[2]))
    linear_RKH, gate_RKH = h_RKE.chunk(2, dim=-1)
    hidden_RKH = linear_RKH * F.silu(gate_RKH) * route_TK[table_row_R][:, :, None]
    return hidden_RKH.view(*x.shape[:-1], *hidden_RKH.shape[1:]), inverse_R


def expert_down_reference(
    hidden: Tensor,
    x: Tensor,
    weight_NDH: Tensor,
    expert_TK: Tensor,
    row_G: Tensor,
    inverse_R: Tensor | None = None,
    gain_D: Tensor | None = None,
) -> Tensor:
    """See `mode_kernels.expert_down.expert_down`."""
    expert_RK = expert_TK[_for_each_row(row_G, x)].long()
    hidden_RKH = hidden.reshape(*expert_RK.shape, -1)
    residual_RD = x.reshape(-1, x.shape[-1])
    if inverse_R is not None:
        residual_RD = residual_RD * inverse_R[:, None]
    if gain_D is not None:
        residual_RD = residual_RD * gain_D
    y_RKND = torch.einsum("rkh,ndh->rknd", hidden_RKH, weight_NDH)
    y_RKD = y_RKND.gather(2, expert_RK[:, :, None, None].expand(-1, -1, 1, y_RKND.shape[3]))[:, :, 0]
    return (residual_RD + y_RKD.sum(1)).view_as(x)


def step_tail_reference(
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
) -> tuple[Tensor, Tensor]:
    """See `mode_kernels.step_tail.step_tail`."""
    skip, out, keep, move, into_next = coefficient_T5[step_1.long()][0]
    prediction_BCA = F.linear(rms_norm(y_BCD, eps) * gain_D, out_weight_AD, out_bias_A)
    denoised_BCA = skip * x_BCA + out * prediction_BCA
    next_BCA = keep * x_BCA + move * denoised_BCA
    after = (step_1.long() + 1).clamp(max=len(coefficient_T5) - 1)
    return next_BCA, embed_tokens(
        next_BCA * into_next,
        action_weight_DA,
        position_CD,
        fixed_BFD,
        None if noise_TD is None else noise_TD[after],
    )


def embed_tokens(
    scaled_BCA: Tensor,
    action_weight_DA: Tensor,
    position_CD: Tensor,
    fixed_BFD: Tensor,
    noise_1D: Tensor | None = None,
) -> Tensor:
    """Tokens of a step, ``[noise] + fixed + actions``; `step_tail` writes those of the next step.

    Args:
        scaled_BCA: noisy actions times c_in.
        action_weight_DA: embedding of actions.
        position_CD: their positions.
        fixed_BFD: goal and observation tokens; the result has their type.
        noise_1D: the step's noise token, if the network has one.
    """
    action_BCD = F.linear(scaled_BCA.to(action_weight_DA.dtype), action_weight_DA) + position_CD
    tokens = [fixed_BFD, action_BCD.to(fixed_BFD.dtype)]
    if noise_1D is not None:
        tokens.insert(0, noise_1D.to(fixed_BFD.dtype).expand(len(fixed_BFD), 1, -1))
    return torch.cat(tokens, dim=1)
