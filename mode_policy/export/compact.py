"""A policy with only the experts that are used.

Which experts run is known for each noise level of a sampler. Those that no level chooses need neither disk
nor memory; the others get new numbers.

Legend: N experts, R routed rows, K active experts, B batch, S sequence, D width.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mode_policy.inference.plan import InferencePlan
from mode_policy.inference.weights import bank_of
from mode_policy.nn.block import MoDEBlock
from mode_policy.nn.experts import SwiGLUExperts
from mode_policy.nn.router import Router, Routing
from mode_policy.policy import MoDEPolicy


class RenumberedRouter(nn.Module):
    """A router whose choice is told in the numbers of the experts that were kept.

    Args:
        router: knows all experts.
        kept: old numbers of the experts, in their new order.
    """

    new_N: Tensor

    def __init__(self, router: Router, kept: Sequence[int]) -> None:
        super().__init__()
        assert isinstance(router, nn.Module)
        self.router = router
        self.scope, self.num_experts, self.num_active = router.scope, router.num_experts, router.num_active
        # An expert that was left out gets a number that no bank has: whoever looks it up is refused.
        new_N = torch.full((router.num_experts,), len(kept), dtype=torch.int64)
        new_N[list(kept)] = torch.arange(len(kept))
        self.register_buffer("new_N", new_N, persistent=False)

    def forward(
        self, condition_BD: Tensor, x_BSD: Tensor, generator: torch.Generator | None = None
    ) -> Routing:
        """Route as the router does."""
        routing: Routing = self.router(condition_BD, x_BSD, generator)
        return routing._replace(expert_RK=self.new_N[routing.expert_RK])


def used_experts(plan: InferencePlan) -> tuple[tuple[int, ...], ...]:
    """Return the experts of each layer that a plan may run; all of them where the goal has a say."""
    if plan.uses_goal:
        return tuple(tuple(range(router.num_experts)) for router in _routers(plan.policy))
    return tuple(tuple(sorted(used)) for used in plan.used_experts())


def with_experts(policy: MoDEPolicy, kept: Sequence[Sequence[int]]) -> MoDEPolicy:
    """Return a policy that has only some of the experts, and shares all other weights with this one.

    Args:
        policy: stays as it is.
        kept: numbers of the experts of each layer, ascending.
    """
    tensors = [*policy.parameters(), *policy.buffers()]
    other = copy.deepcopy(policy, {id(t): t for t in tensors})
    for block, numbers in zip(other.denoiser.blocks, kept, strict=True):
        assert isinstance(block, MoDEBlock)
        bank = bank_of(block)
        if len(numbers) == len(bank.up_weight_NED):
            continue
        with torch.device("meta"):
            block.experts = SwiGLUExperts(bank.up_weight_NED.shape[2], len(numbers), bank.dropout)
        for name, weight in bank.named_parameters():
            setattr(block.experts, name, nn.Parameter(weight.detach()[list(numbers)], requires_grad=False))
        block.router = RenumberedRouter(block.router, numbers)
    return other.eval()


def _routers(policy: MoDEPolicy) -> list[Router]:
    return [block.router for block in policy.denoiser.blocks if isinstance(block, MoDEBlock)]
