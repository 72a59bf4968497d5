"""The loss of the global batch, of which each process computes its share, in one or more parts.

Legend: B batch, C chunk, L layers, N experts.
"""

from __future__ import annotations

from collections.abc import Sequence
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


def action_weights(is_pad_BC: Sequence[Tensor], processes: Processes) -> list[Tensor | float]:
    """Return the weight of each part's denoising loss: its share of all actions that are not padding.

    In units of an even share, so the weights of all parts of all processes are 1 on average.

    Args:
        is_pad_BC: this process's parts.
        processes: that train together.
    """
    if processes.count * len(is_pad_BC) == 1:
        return [1.0]
    actions = torch.stack([(~p).sum() for p in is_pad_BC]).float()
    all_actions = processes.sum(actions.sum()).clamp(min=1)
    return list(processes.count * len(is_pad_BC) * actions / all_actions)


def of_all_processes(
    loss: PolicyLoss, weight: Tensor | float, weights: LossConfig, processes: Processes
) -> tuple[Tensor, StepLoss]:
    """Return what this process minimises, and what is kept of the step.

    The mean over processes and parts of the former is the loss of the global batch, and so is the gradient:
    the mean over actions that are not padding is weighted by how many of them a part has (`action_weights`),
    and experts are balanced by how often all processes together chose them (the global batch of
    arXiv 2501.11873).
    """
    shares_LN = expert_shares(loss.routings)
    if processes.count * processes.parts == 1:
        return loss.total, StepLoss(loss.denoising, loss.load_balance, shares_LN)
    # In one message: the losses and the experts' shares.
    local = torch.cat([(weight * loss.denoising).reshape(1), shares_LN.flatten()])
    mean = processes.sum(local) / processes.count
    shares_LN = mean[1:].view_as(shares_LN)

    form, routings = weights.load_balance_form, loss.routings
    balance = load_balancing_loss(routings, form, shares_LN)
    router_z = weights.router_z * router_z_loss(routings)
    regular = weights.load_balance * load_balancing_loss(routings, form) + router_z
    denoising = (loss.total - regular) * weight
    kept = StepLoss(mean[0], balance.detach(), shares_LN)
    return denoising + weights.load_balance * balance + router_z, kept


def mean_of(parts: Sequence[StepLoss]) -> StepLoss:
    """Return the step's figures from those of its parts, or a record's from those of its steps."""
    return StepLoss(*(torch.stack(list(values)).mean(0) for values in zip(*parts, strict=True)))
