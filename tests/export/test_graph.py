"""The function that is exported acts as the policy does."""

from __future__ import annotations

import pytest
import torch

from mode_policy.diffusion.samplers import SAMPLERS
from mode_policy.export.columns import ColumnNetwork
from mode_policy.export.compact import used_experts, with_experts
from mode_policy.export.graph import ActionGraph, inputs_of, unrolled
from mode_policy.export.write import probes
from mode_policy.inference.network import PlannedNetwork
from mode_policy.inference.plan import InferencePlan
from mode_policy.policy import MoDEPolicy
from tests.export.policies import NETWORKS, trained

#: Rounding of float32 through two layers and a few steps: the plan adds the same numbers in another order.
TOLERANCE = {"rtol": 2e-4, "atol": 2e-5}


def same(policy: MoDEPolicy, batch: int = 2, network: type[PlannedNetwork] = PlannedNetwork) -> None:
    plan = InferencePlan(policy, batch=batch)
    graph = ActionGraph(network(plan), unrolled)
    before = plan.goal_BD.clone()
    for values, expected in probes(policy, inputs_of(plan)):
        with torch.no_grad():
            found = graph(*(values[array.name] for array in inputs_of(plan)))
        torch.testing.assert_close(found, expected, **TOLERANCE)
    assert torch.equal(plan.goal_BD, before)  # nothing was written to


@pytest.mark.parametrize("network", NETWORKS)
def test_it_equals_every_form_of_the_network(network: str) -> None:
    same(trained(network))


@pytest.mark.parametrize("name", SAMPLERS)
def test_it_equals_every_sampler(name: str) -> None:
    same(trained(sampler={"name": name, "steps": 3}), batch=1)


def test_it_equals_other_policies() -> None:
    same(trained(language=None))
    same(trained(history=3))
    same(trained(images=True))
    same(trained(images=True, history=2, language=None, states=False))
    same(trained(sampler={"steps": 2, "guidance": 2.5}))
    same(trained("goal in the router", sampler={"steps": 2, "guidance": 2.5}))
    same(trained(normalize_action="mean_std"))


def test_it_equals_with_tokens_as_columns() -> None:
    same(trained(), network=ColumnNetwork)
    same(trained("shared"), network=ColumnNetwork)


def test_a_difference_is_noticed() -> None:
    """The comparisons above can fail."""
    policy = trained()
    plan = InferencePlan(policy)
    plan.layers[0].weight_VK.mul_(1.01)
    values, expected = next(probes(policy, inputs_of(plan)))
    found = ActionGraph(PlannedNetwork(plan), unrolled)(*(values[a.name] for a in inputs_of(plan)))
    with pytest.raises(AssertionError):
        torch.testing.assert_close(found, expected, **TOLERANCE)


def test_unused_experts_are_left_out() -> None:
    policy = trained()
    kept = used_experts(InferencePlan(policy))
    assert any(len(numbers) < 4 for numbers in kept)
    small = with_experts(policy, kept)
    for block, whole, numbers in zip(small.denoiser.blocks, policy.denoiser.blocks, kept, strict=True):
        assert len(block.experts.up_weight_NED) == len(numbers)
        assert torch.equal(block.experts.down_weight_NDH, whole.experts.down_weight_NDH[list(numbers)])
        assert block.attention.qkv.weight is whole.attention.qkv.weight  # the rest is shared
    for values, expected in probes(policy, inputs_of(InferencePlan(policy))):
        graph = ActionGraph(PlannedNetwork(InferencePlan(small)), unrolled)
        found = graph(*(values[array.name] for array in inputs_of(InferencePlan(small))))
        torch.testing.assert_close(found, expected, **TOLERANCE)


def test_an_expert_that_was_left_out_cannot_be_chosen() -> None:
    policy = trained()
    kept = used_experts(InferencePlan(policy))
    layer = next(i for i, numbers in enumerate(kept) if len(numbers) < 4)
    router = with_experts(policy, kept).denoiser.blocks[layer].router
    missing = min(set(range(4)) - set(kept[layer]))
    assert router.new_N[missing] == len(kept[layer])  # no such row


def test_where_the_goal_has_a_say_all_experts_stay() -> None:
    assert used_experts(InferencePlan(trained("goal in the router"))) == ((0, 1, 2, 3),) * 2
