"""Plain PyTorch forms of the kernels: the oracle of their tests, slow and obvious.

Legend: R routed rows, S tokens per row, D width, H hidden width of an expert, N experts, K active experts.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def expert_mlp_reference(
    x_RSD: Tensor,
    expert_RK: Tensor,
    weight_RK: Tensor,
    up_weight_NED: Tensor,
    up_bias_NE: Tensor,
    down_weight_NDH: Tensor,
    dropout: float = 0.0,
) -> Tensor:
    """Weighted sum of the chosen SwiGLU experts, by running every expert on every token.

    ``out[r] = Σₖ weight[r, k] · expert[r, k](x[r])`` with ``expert(x) = W₂(a · silu(b)) and
    (a, b) = W₁x + b₁`` split in halves (E = 2H), as in the authors' implementation.
    The number of multiply-adds is N/K times that of `expert_mlp`, but nothing depends on the values of the
    routing: this is also the form that `torch.compile` can fuse and that carries dropout on the hidden units.

    Returns:
        ``(R, S, D)``.
    """
    weight_RN = torch.zeros(
        x_RSD.shape[0], up_weight_NED.shape[0], dtype=weight_RK.dtype, device=x_RSD.device
    ).scatter(1, expert_RK, weight_RK)
    out_RSD = torch.zeros_like(x_RSD)
    for n in range(up_weight_NED.shape[0]):
        linear_RSH, gate_RSH = F.linear(x_RSD, up_weight_NED[n], up_bias_NE[n]).chunk(2, dim=-1)
        hidden_RSH = F.dropout(linear_RSH * F.silu(gate_RSH), dropout, training=dropout > 0)
        out_RSD = out_RSD + weight_RN[:, n, None, None] * F.linear(hidden_RSH, down_weight_NDH[n])
    return out_RSD
