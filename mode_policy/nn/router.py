"""Routers: who chooses the experts, and what the balancing losses need to know about it.

A router is pure: it returns everything that losses and plots need and leaves nothing behind on the module.
It declares its *scope*, the thing its choice depends on. A choice that depends on the noise level alone is
known before the denoising loop begins; one that depends on the tokens is not. Other routers plug in by
implementing `Router`.

Legend: B batch, S sequence, D width, R routed rows, N experts, K active experts.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Scope = Literal["noise", "task", "token"]


class Routing(NamedTuple):
    """The experts of each routed row. R is B for the scopes noise and task, B·S for tokens.

    Attributes:
        expert_RK: int64, distinct within a row, best first in evaluation.
        weight_RK: weights of the chosen experts.
        probs_RN: the full softmax.
        logits_RN: shifted so that each row's maximum is 0, divided by the temperature.
    """

    expert_RK: Tensor
    weight_RK: Tensor
    probs_RN: Tensor
    logits_RN: Tensor


class Router(Protocol):
    """Chooses ``num_active`` of ``num_experts`` experts.

    Attributes:
        scope: What the choice depends on.
    """

    scope: Scope
    num_experts: int
    num_active: int

    def __call__(
        self, condition_BD: Tensor, x_BSD: Tensor, generator: torch.Generator | None = None
    ) -> Routing:
        """Route by the condition (noise embedding, with the goal's where configured) and the tokens."""
        ...


class ConditionRouter(nn.Module):
    """MoDE's router: the noise embedding alone decides, once for each sample and layer.

    Training draws K experts without replacement from the softmax, evaluation takes the K most probable.
    The authors' code draws anew for every token; as all tokens of a sample share one noise level, we draw
    once for the sample, so that its tokens stay together in one matrix product.

    Args:
        dim: width D of the condition.
        num_experts: N.
        num_active: K.
        num_layers: 2 for Linear(D, 2D)-GELU-Linear(2D, N) as published, 1 for the paper's linear layer.
        temperature: divides the logits.
        normalize: rescale the chosen probabilities to sum to 1.
        scope: ``"noise"``, or ``"task"`` where the goal is part of the condition.
    """

    def __init__(
        self,
        dim: int,
        num_experts: int,
        num_active: int,
        *,
        num_layers: int = 2,
        temperature: float = 1.0,
        normalize: bool = True,
        scope: Scope = "noise",
    ) -> None:
        super().__init__()
        self.scope: Scope = scope
        self.num_experts = num_experts
        self.num_active = num_active
        self.temperature = temperature
        self.normalize = normalize
        if num_layers == 1:
            self.net: nn.Module = nn.Linear(dim, num_experts)
        else:
            self.net = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, num_experts))

    def forward(
        self, condition_BD: Tensor, x_BSD: Tensor, generator: torch.Generator | None = None
    ) -> Routing:
        """Route each sample; see `Routing` (R = B). ``x_BSD`` is not looked at."""
        # float32 whatever the autocast: the choice must not depend on the rounding of a half type.
        with torch.autocast(condition_BD.device.type, enabled=False):
            logits_BN = self.net(condition_BD.float())
            logits_BN = (logits_BN - logits_BN.amax(-1, keepdim=True)) / self.temperature
            probs_BN = logits_BN.softmax(-1).clamp(1e-9, 1 - 1e-9)
        score_BN = probs_BN.detach()
        if self.training:
            # p / Exponential(1), largest K: a draw without replacement, as torch.multinomial does it.
            score_BN = score_BN / torch.empty_like(score_BN).exponential_(generator=generator)
        expert_BK = score_BN.topk(self.num_active, dim=-1).indices
        weight_BK = probs_BN.gather(1, expert_BK)
        if self.normalize:
            weight_BK = weight_BK / weight_BK.sum(-1, keepdim=True)
        return Routing(expert_BK, weight_BK, probs_BN, logits_BN)


def load_balancing_loss(
    routings: list[Routing], form: Literal["code", "paper"] = "code", shares_LN: Tensor | None = None
) -> Tensor:
    """N·Σₙ fₙPₙ, averaged over layers; K at uniform routing (Switch Transformer, arXiv 2101.03961, eq. 4).

    ``f`` is the share of rows that chose expert n: of these rows, or ``shares_LN`` where they are a part of a
    larger batch. ``P`` is the mean weight given to it (``"code"``, the authors' implementation) or its mean
    softmax (``"paper"``).
    """
    probs_LRN = torch.stack([r.probs_RN for r in routings])
    expert_LRK = torch.stack([r.expert_RK for r in routings])
    if shares_LN is None:
        shares_LN = torch.zeros_like(probs_LRN).scatter(2, expert_LRK, 1.0).mean(1)
    if form == "code":
        weight_LRK = torch.stack([r.weight_RK for r in routings])
        weight_LRN = torch.zeros_like(probs_LRN).scatter(2, expert_LRK, weight_LRK)
    else:
        weight_LRN = probs_LRN
    return probs_LRN.shape[2] * (shares_LN * weight_LRN.mean(1)).sum(1).mean()


def router_z_loss(routings: list[Routing]) -> Tensor:
    """Mean of log²Σ exp(logit) over rows and layers (ST-MoE, arXiv 2202.08906, eq. 5)."""
    logits_LRN = torch.stack([r.logits_RN for r in routings])
    return (logits_LRN.exp().sum(-1) + 1e-6).log().square().mean()


def expert_shares(routings: list[Routing]) -> Tensor:
    """Share of the rows that chose each expert, ``(layers, N)``; rows sum to K."""
    return torch.stack([F.one_hot(r.expert_RK, r.probs_RN.shape[1]).sum(1).float().mean(0) for r in routings])
