"""Plans in fewer bits: the same network, to the rounding of its weights."""

from __future__ import annotations

import pytest
import torch

from mode_policy.config import SamplerConfig
from mode_policy.errors import PlanError
from mode_policy.inference import cpu
from mode_policy.inference.cpu import CpuEngine
from mode_policy.inference.engine import EagerEngine
from mode_policy.inference.plan import InferencePlan
from mode_policy.inference.weights import PRECISIONS, Matrix, cast
from tests.inference.test_plan import NETWORKS, TOLERANCE, draws, observation, trained

SAMPLER = SamplerConfig(steps=3, sigma_min=0.1)

#: Largest difference of actions (which go to 3) from float32's that rounding may make in this network. As
#: many bits as a format has, or fewer: bfloat16 rounds activations too, fp8 (e4m3) has 3 bits of mantissa.
ROUNDING = {"bfloat16": 0.1, "int8": 0.05, "fp8": 0.2}


def actions(plan: InferencePlan, engine: type = EagerEngine) -> torch.Tensor:
    return engine(plan).act(observation(plan.batch), noise=draws(plan)).actions_BCA


@pytest.mark.parametrize("precision", ROUNDING)
def test_rounding_moves_actions_a_little(precision):
    policy = trained()
    exact = actions(InferencePlan(policy, SAMPLER, 2))
    error = (actions(InferencePlan(policy, SAMPLER, 2, precision)) - exact).abs().max()
    assert 1e-5 < error < ROUNDING[precision]


@pytest.mark.parametrize("network", ["default", "shared", "prenorm", "paper", "no noise token"])
def test_the_engine_for_processors_equals_the_plain_one_in_int8(network, monkeypatch):
    monkeypatch.setattr(cpu, "PIECE", 200)  # so that a weight is widened in several pieces, the last one cut
    denoiser = {"dim": 16, "num_layers": 2, "num_heads": 2} | NETWORKS.get(network, {})
    plan = InferencePlan(trained(denoiser=denoiser), SAMPLER, 3, "int8")
    torch.testing.assert_close(actions(plan, CpuEngine), actions(plan), **TOLERANCE)


def test_float32_weights_are_the_policys_own():
    policy = trained()
    plan = InferencePlan(policy)
    for i, block in enumerate(policy.denoiser.blocks):
        weights = plan.weights(i)
        assert weights.experts.up_NED.value is block.experts.up_weight_NED
        assert weights.experts.down_NDH.value is block.experts.down_weight_NDH
        assert weights.projection_DD.value is block.attention.proj.weight


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_cast_weight_stands_for_the_weight(precision):
    weight = torch.randn(3, 8, 16)
    whole = cast(weight, precision)
    assert isinstance(whole, Matrix)
    assert (whole.dense(torch.float32) - weight).abs().max() <= 0.07 * weight.abs().max()
    assert torch.equal(whole.expert(1).dense(torch.float32), whole.dense(torch.float32)[1])
    assert whole.value.element_size() == {"float32": 4, "bfloat16": 2}.get(precision, 1)


@pytest.mark.parametrize("goal", [False, True])
@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_consumed_weights_are_not_needed(goal, precision):
    denoiser = {"dim": 16, "num_layers": 2, "num_heads": 2, "router": {"goal": goal}}
    expected = actions(InferencePlan(trained(denoiser=denoiser), SAMPLER, 2, precision), CpuEngine)
    policy = trained(denoiser=denoiser)
    plan = InferencePlan(policy, SAMPLER, 2, precision, consume=True)
    before = actions(plan, CpuEngine), actions(plan.for_batch(3), CpuEngine)
    assert all(p.numel() == 0 for b in policy.denoiser.blocks for p in b.experts.parameters() if p.ndim == 3)
    after = actions(plan, CpuEngine), actions(plan.for_batch(3), CpuEngine)
    assert torch.equal(before[0], expected)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    with pytest.raises(PlanError, match="were freed for another plan; load the checkpoint again"):
        InferencePlan(policy)


def test_an_engine_of_plain_products_finds_no_packed_weights():
    plan = InferencePlan(trained(), SAMPLER, consume=True)
    CpuEngine(plan)
    with pytest.raises(PlanError, match="were freed for another plan; load the checkpoint again"):
        actions(plan)


def test_weights_in_use_are_not_consumed():
    policy = trained()
    before = actions(InferencePlan(policy, SAMPLER, consume=True))
    assert torch.equal(before, actions(InferencePlan(policy, SAMPLER)))


def test_unknown_precisions_are_refused():
    with pytest.raises(PlanError, match=r"unknown precision 'int4'\. Did you mean 'int8'"):
        InferencePlan(trained(), precision="int4")


def test_the_engine_for_processors_names_the_precisions_that_it_knows():
    with pytest.raises(PlanError, match="knows the precisions float32 and int8, not bfloat16"):
        CpuEngine(InferencePlan(trained(), precision="bfloat16"))


def test_plans_for_other_batches_share_what_is_large():
    plan = InferencePlan(trained(), SAMPLER, 1, "int8")
    other = plan.for_batch(5)
    assert other.batch == 5
    assert other.layers is plan.layers
    assert other.weights(0).experts.up_NED.value is plan.weights(0).experts.up_NED.value
    whole = InferencePlan(plan.policy, SAMPLER, 5, "int8")
    assert torch.equal(actions(other), actions(whole))
    with pytest.raises(PlanError, match="batch=0"):
        plan.for_batch(0)
