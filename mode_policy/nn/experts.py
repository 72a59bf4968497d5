"""Expert banks: N feed-forward networks in stacked tensors.

An `ExpertBank` maps tokens and a `Routing` to the weighted sum of the chosen experts. How the products are
computed is the kernels' business (`mode_kernels`); other forms of experts plug in by implementing the
protocol.

Legend: B batch, S sequence, D width, H hidden width, E = 2H, N experts, R routed rows, K active experts.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from mode_kernels import expert_mlp
from mode_policy.nn.router import Routing


class ExpertBank(Protocol):
    """Applies the experts that a router chose."""

    def __call__(self, x_BSD: Tensor, routing: Routing) -> Tensor:
        """Return the weighted sum of the chosen experts, ``(B, S, D)``."""
        ...


class SwiGLUExperts(nn.Module):
    """N SwiGLU networks D → 2·4D → D; ``linear · silu(gate)``, bias on the first projection only.

    Args:
        dim: width D.
        num_experts: N.
        dropout: on the hidden units, in training.
        expansion: H / D.
    """

    def __init__(self, dim: int, num_experts: int, dropout: float = 0.0, expansion: int = 4) -> None:
        super().__init__()
        hidden = expansion * dim
        self.dropout = dropout
        self.up_weight_NED = nn.Parameter(torch.empty(num_experts, 2 * hidden, dim))
        self.up_bias_NE = nn.Parameter(torch.zeros(num_experts, 2 * hidden))
        self.down_weight_NDH = nn.Parameter(torch.empty(num_experts, dim, hidden))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw each expert as `torch.nn.Linear` draws its own weights."""
        for weight in (self.up_weight_NED, self.down_weight_NDH):
            bound = weight.shape[-1] ** -0.5
            nn.init.uniform_(weight, -bound, bound)
        nn.init.uniform_(
            self.up_bias_NE, -(self.up_weight_NED.shape[-1] ** -0.5), self.up_weight_NED.shape[-1] ** -0.5
        )

    def forward(self, x_BSD: Tensor, routing: Routing) -> Tensor:
        """Return the weighted sum of the chosen experts, ``(B, S, D)``."""
        x_RSD = x_BSD.reshape(routing.expert_RK.shape[0], -1, x_BSD.shape[-1])
        out_RSD = expert_mlp(
            x_RSD,
            routing.expert_RK,
            routing.weight_RK.to(x_RSD.dtype),
            self.up_weight_NED.to(x_RSD.dtype),
            self.up_bias_NE.to(x_RSD.dtype),
            self.down_weight_NDH.to(x_RSD.dtype),
            self.dropout if self.training else 0.0,
        )
        return out_RSD.view_as(x_BSD)
