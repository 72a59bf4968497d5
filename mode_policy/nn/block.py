"""One transformer block: noise-conditioned attention, then routed experts.

Legend: B batch, S sequence, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mode_policy.nn.attention import CausalSelfAttention
from mode_policy.nn.experts import ExpertBank
from mode_policy.nn.norm import RMSNorm
from mode_policy.nn.router import Router, Routing

Residual = Literal["normed", "prenorm", "paper"]


class MoDEBlock(nn.Module):
    """Attention and mixture of experts, conditioned on the noise embedding c.

    The three forms of the residual stream::

        normed   u = x + SA(RMS₁(x) + c)    v = RMS₂(u)    out = v + MoE(v)        (default)
        prenorm  u = x + SA(RMS₁(x) + c)    out = u + MoE(RMS₂(u))
        paper    u = x + SA(RMS₁(x + c))    out = u + MoE(RMS₂(u))

    ``normed`` is what the authors' code does (the residual carries the *normed* stream) and what published
    checkpoints need; the paper (section 4) writes the noise as added to the tokens themselves and
    has an ordinary residual around the experts. Where ``shared`` is given, that expert is always on with
    weight 1.

    Attributes:
        recompute: in training, keep no activations of attention and experts but compute them again in the
            backward pass (arXiv 1604.06174). The routing, which may be drawn, is kept.
    """

    def __init__(
        self,
        attention: CausalSelfAttention,
        router: Router,
        experts: ExpertBank,
        shared: ExpertBank | None,
        dim: int,
        residual: Residual = "normed",
    ) -> None:
        super().__init__()
        self.residual = residual
        self.attention_norm = RMSNorm(dim)
        self.attention = attention
        self.expert_norm = RMSNorm(dim)
        self.router = router
        self.experts = experts
        self.shared = shared
        self.recompute = False

    def forward(
        self,
        x_BSD: Tensor,
        condition_BD: Tensor,
        generator: torch.Generator | None = None,
        last: int | None = None,
    ) -> tuple[Tensor, Routing]:
        """Return the new tokens ``(B, S, D)`` and the routing that was used.

        ``last`` limits the result to that many last tokens: after the final block nobody reads the others.
        """
        u_BSD = self._run(self._attend, x_BSD, condition_BD[:, None], last)
        v_BSD = self.expert_norm(u_BSD)
        routing = self.router(condition_BD, v_BSD, generator)
        mixed_BSD = self._run(self._mix, v_BSD, routing)
        return (v_BSD if self.residual == "normed" else u_BSD) + mixed_BSD, routing

    def _attend(self, x_BSD: Tensor, c_B1D: Tensor, last: int | None) -> Tensor:
        if self.residual == "paper":
            attended_BSD = self.attention(self.attention_norm(x_BSD + c_B1D), last)
        else:
            attended_BSD = self.attention(self.attention_norm(x_BSD) + c_B1D, last)
        return attended_BSD + (x_BSD if last is None else x_BSD[:, -last:])

    def _mix(self, v_BSD: Tensor, routing: Routing) -> Tensor:
        mixed_BSD = self.experts(v_BSD, routing)
        return mixed_BSD if self.shared is None else mixed_BSD + self.shared(v_BSD, _always(routing))

    def _run(self, part: Callable[..., Tensor], *inputs: Any) -> Tensor:
        if self.recompute and torch.is_grad_enabled():
            recomputed: Tensor = checkpoint(part, *inputs, use_reentrant=False)
            return recomputed
        return part(*inputs)


def _always(routing: Routing) -> Routing:
    """The routing of a single expert that every row uses with weight 1."""
    rows = routing.expert_RK[:, :1]
    return routing._replace(
        expert_RK=torch.zeros_like(rows), weight_RK=torch.ones_like(routing.weight_RK[:, :1])
    )
