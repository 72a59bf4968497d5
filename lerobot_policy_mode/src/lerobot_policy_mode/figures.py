"""What LeRobot logs of a training step: losses and what the routers do, as plain numbers.

Legend: L layers, R routed rows, N experts.
"""

from __future__ import annotations

import math

import torch

from mode_policy.nn.router import Routing, expert_shares
from mode_policy.policy import PolicyLoss


def figures(loss: PolicyLoss) -> dict[str, float]:
    """Return the losses' terms and the routers' figures.

    ``router_entropy`` is 1 for a uniform softmax and 0 for a certain one. ``expert_<n>`` is the share of the
    routed choices that fell on expert n, over all layers; the shares sum to 1.
    """
    share_N = expert_shares(loss.routings).mean(0)
    values = [
        loss.denoising,
        loss.load_balance,
        loss.router_z,
        router_entropy(loss.routings),
        *(share_N / share_N.sum()),
    ]
    # One transfer from the device for all of them.
    numbers = torch.stack([value.detach().float() for value in values]).tolist()
    names = ["denoising_loss", "load_balance_loss", "router_z_loss", "router_entropy"]
    names += [f"expert_{n}" for n in range(len(share_N))]
    return dict(zip(names, numbers, strict=True))


def router_entropy(routings: list[Routing]) -> torch.Tensor:
    """Mean entropy of the routers' softmax, as a share of the largest possible."""
    probs_LRN = torch.stack([routing.probs_RN.detach() for routing in routings])
    entropy_LR = -(probs_LRN * probs_LRN.log()).sum(-1)
    return entropy_LR.mean() / math.log(max(probs_LRN.shape[-1], 2))
