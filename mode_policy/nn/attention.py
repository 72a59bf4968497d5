"""Causal self-attention with per-head query and key normalisation.

Legend: B batch, S sequence, D width, A heads, P width of a head.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from mode_policy.nn.norm import RMSNorm


class CausalSelfAttention(nn.Module):
    """Multi-head causal self-attention; QKV with bias, output projection without (as published)."""

    def __init__(self, dim: int, num_heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim, bias=False)
        self.qk_norm = RMSNorm(2, 1, dim // num_heads)

    def forward(self, x_BSD: Tensor, last: int | None = None) -> Tensor:
        """Attend each token to itself and those before it.

        Args:
            x_BSD: tokens.
            last: return only the outputs of this many last tokens.

        Returns:
            ``(B, S, D)``, or ``(B, last, D)``.
        """
        B, S, D = x_BSD.shape
        qkv_BS3AP = self.qkv(x_BSD).view(B, S, 3, self.num_heads, -1)
        q_BASP, k_BASP = self.qk_norm(qkv_BS3AP[:, :, :2]).transpose(1, 3).unbind(2)
        v_BASP = qkv_BS3AP[:, :, 2].transpose(1, 2)
        y_BASP = F.scaled_dot_product_attention(
            q_BASP, k_BASP, v_BASP, dropout_p=self.dropout if self.training else 0.0, is_causal=True
        )
        y_BSD = y_BASP.transpose(1, 2).reshape(B, S, D)
        return self.proj(y_BSD if last is None else y_BSD[:, -last:])
