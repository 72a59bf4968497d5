"""The loss of the global batch, of which each process has computed its share.

Legend: B batch, C chunk, L layers, N experts.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mode_policy.config import LossConfig
from mode_policy.nn.router import expert_shares, load_balancing_loss, router_z_loss
from mode_policy.policy import PolicyLoss
from mode_policy.training.processes import Processes


class StepLoss(NamedTuple):
    """What metrics need to know of a step; detached.

    Attributes:
        denoising: of the global batch.
        load_balance: of which the mean over processes is that of the global batch.
        shares_LN: share of the global batch that chose each expert.
    """

    denoising: Tensor
    load_balance: Tensor
    shares_LN: Tensor


def of_all_processes(
    loss: PolicyLoss, is_pad_BC: Tensor, weights: LossConfig, processes: Processes
) -> tuple[Tensor, StepLoss]:
    """Return what this process minimises, and what is kept of the step.

    The mean over processes of the former is the loss of the global batch, and so is the gradient: the mean
    over actions that are not padding is weighted by how many of them a process has, and experts are balanced
    by how often all processes together chose them (the global batch of arXiv 2501.11873).
    """
    shares_LN = expert_shares(loss.routings)
    if processes.count == 1:
        return loss.total, StepLoss(loss.denoising, loss.load_balance, shares_LN)
    actions = (~is_pad_BC).sum().to(shares_LN.dtype)
    # In one message: the number of actions, the sum of their losses, and the experts' shares.
    local = torch.cat([torch.stack([actions, actions * loss.denoising]), shares_LN.flatten()])
    total = processes.sum(local)
    all_actions = total[0].clamp(min=1)
    shares_LN = (total[2:] / processes.count).view_as(shares_LN)

    form, routings = weights.load_balance_form, loss.routings
    balance = load_balancing_loss(routings, form, shares_LN)
    router_z = weights.router_z * router_z_loss(routings)
    regular = weights.load_balance * load_balancing_loss(routings, form) + router_z
    denoising = (loss.total - regular) * (processes.count * actions / all_actions)
    kept = StepLoss(total[1] / all_actions, balance.detach(), shares_LN)
    return denoising + weights.load_balance * balance + router_z, kept
