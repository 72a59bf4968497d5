"""A plan gives the policy's own actions, and refuses what it was not made for."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mode_policy.config import SamplerConfig
from mode_policy.diffusion.prefix import Prefix
from mode_policy.diffusion.samplers import SAMPLERS
from mode_policy.errors import PlanError
from mode_policy.inference.cpu import CpuEngine
from mode_policy.inference.engine import CompileEngine, EagerEngine, Engine, noise_draws
from mode_policy.inference.levels import network_calls
from mode_policy.inference.plan import InferencePlan
from mode_policy.policy import MoDEPolicy
from mode_policy.types import Observation
from tests import published, toy

#: Rounding of float32 through two layers and ten steps: the plan adds the same numbers in another order.
TOLERANCE = {"rtol": 2e-4, "atol": 2e-5}


def trained(**changes) -> MoDEPolicy:
    """A policy whose routers decide clearly, and differently at different noise levels."""
    policy = toy.policy(**changes).eval()
    with torch.no_grad():
        for block in policy.denoiser.blocks:
            for parameter in block.router.parameters():
                parameter.mul_(4)
    return policy


def observation(batch: int, history: int = 1) -> Observation:
    return toy.batch(3, batch, history).observation


def draws(plan: InferencePlan, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (plan.batch, plan.policy.config.chunk, plan.policy.action_dim)
    return [torch.randn(shape, generator=generator) for _ in range(1 + noise_draws(plan))]


def plain(plan: InferencePlan, seen: Observation, noise: list[torch.Tensor], prefix: Prefix | None = None):
    """Actions of the policy itself."""
    policy = plan.policy
    policy.config = replace(policy.config, sampler=plan.sampler)
    given = iter(noise)
    return policy.act(seen, noise=lambda: next(given), prefix=prefix)


def same(
    policy: MoDEPolicy, sampler: SamplerConfig | None = None, batch: int = 2, make: type[Engine] = EagerEngine
):
    plan = InferencePlan(policy, sampler, batch)
    noise, seen = draws(plan), observation(batch, policy.config.history)
    torch.testing.assert_close(
        make(plan).act(seen, noise=noise).actions_BCA, plain(plan, seen, noise), **TOLERANCE
    )


@pytest.mark.parametrize("batch", [1, 2, 7, 64])
@pytest.mark.parametrize("steps", [1, 3, 10])
def test_it_equals_the_policy(batch: int, steps: int) -> None:
    same(trained(), SamplerConfig(steps=steps), batch)


NETWORKS = {
    "top 1": {"experts": {"active": 1}},
    "top 3": {"experts": {"active": 3}},
    "shared": {"experts": {"num": 4, "active": 2, "shared": True}},
    "not normalised": {"router": {"normalize": False}},
    "linear router": {"router": {"num_layers": 1}},
    "goal in the router": {"router": {"goal": True}},
    "goal and shared": {"router": {"goal": True}, "experts": {"num": 5, "active": 3, "shared": True}},
    "prenorm": {"residual": "prenorm"},
    "paper": {"residual": "paper"},
    "paper with goal": {"residual": "paper", "router": {"goal": True}},
    "no noise token": {"noise_token": False},
}


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("network", NETWORKS)
def test_it_equals_every_form_of_the_network(network: str, batch: int) -> None:
    denoiser = {"dim": 16, "num_layers": 2, "num_heads": 2} | NETWORKS[network]
    same(trained(denoiser=denoiser), batch=batch)


@pytest.mark.parametrize("name", SAMPLERS)
def test_it_equals_every_sampler(name: str) -> None:
    same(trained(), SamplerConfig(name=name, steps=5))


@pytest.mark.parametrize("goal", [False, True])
def test_it_equals_guidance(goal: bool) -> None:
    denoiser = {"dim": 16, "num_layers": 2, "num_heads": 2, "router": {"goal": goal}}
    same(trained(denoiser=denoiser), SamplerConfig(steps=4, guidance=2.5), 3)


def test_it_equals_other_policies() -> None:
    same(trained(history=3))
    same(trained(language=None))


@pytest.mark.parametrize("case", published.CASES)
def test_it_equals_the_golden_cases(case: str) -> None:
    """Row by row: a plan has one noise level at a time."""
    golden = published.golden(case)
    policy = toy.policy().eval()
    policy.denoiser = published.denoiser(case)
    for i, sigma in enumerate(golden["sigma"].tolist()):
        plan = InferencePlan(policy, SamplerConfig(steps=1, sigma_max=sigma, sigma_min=sigma / 2))
        engine = EagerEngine(plan)
        plan.set_goal(golden["goals"][i])
        prefix = engine.network.prefix(golden["state_images"][i : i + 1])
        found = engine.network.predict(golden["actions"][i : i + 1], plan.level(plan.sigmas[0]), prefix)
        torch.testing.assert_close(found, golden["output"][i : i + 1], rtol=1e-4, atol=1e-5)


def test_damaged_tables_are_noticed() -> None:
    """The comparisons above can fail."""
    for name in ("expert_VK", "weight_VK", "qkv_bias_VE", "qkv_weight_ED"):
        plan = InferencePlan(trained(), batch=2)
        table = getattr(plan.layers[1], name)
        table[:] = (table + 1) % 4 if name == "expert_VK" else table * 1.01
        noise, seen = draws(plan), observation(2)
        found = EagerEngine(plan).act(seen, noise=noise).actions_BCA
        with pytest.raises(AssertionError):
            torch.testing.assert_close(found, plain(plan, seen, noise), **TOLERANCE)


def test_a_prefix_is_held() -> None:
    plan = InferencePlan(trained(), batch=2)
    noise, seen = draws(plan), observation(2)
    prefix = Prefix(actions=torch.full((2, 4, 2), 0.3), weights=torch.tensor([[1.0, 0.5, 0.0, 0.0]] * 2))
    found = EagerEngine(plan).act(seen, noise=noise, prefix=prefix).actions_BCA
    torch.testing.assert_close(found, plain(plan, seen, noise, prefix), **TOLERANCE)
    assert torch.equal(found[:, 0], prefix.actions[:, 0])


@pytest.mark.parametrize("network", ["default", "goal in the router"])
def test_another_instruction_rewrites_only_small_tensors(network: str) -> None:
    denoiser = {"dim": 16, "num_layers": 2, "num_heads": 2} | NETWORKS.get(network, {})
    plan = InferencePlan(trained(denoiser=denoiser))
    weights = [layer.qkv_weight_ED for layer in plan.layers]
    tables = [layer.qkv_bias_VE.data_ptr() for layer in plan.layers]
    engine = EagerEngine(plan)
    for instruction in toy.INSTRUCTIONS.embeddings:
        noise = draws(plan)
        seen = replace(observation(1), instruction=instruction[None])
        found = engine.act(seen, noise=noise).actions_BCA
        torch.testing.assert_close(found, plain(plan, seen, noise), **TOLERANCE)
    assert all(layer.qkv_weight_ED is w for layer, w in zip(plan.layers, weights, strict=True))
    assert [layer.qkv_bias_VE.data_ptr() for layer in plan.layers] == tables


def test_no_expert_is_copied() -> None:
    policy = trained()
    plan = InferencePlan(policy)
    experts = {p.data_ptr() for block in policy.denoiser.blocks for p in block.experts.parameters()}
    held = {
        value.data_ptr()
        for layer in plan.layers
        for value in vars(layer).values()
        if isinstance(value, torch.Tensor)
    }
    assert not experts & held
    size = sum(
        v.numel() for layer in plan.layers for v in vars(layer).values() if isinstance(v, torch.Tensor)
    )
    assert size < sum(p.numel() for block in policy.denoiser.blocks for p in block.experts.parameters())


@pytest.mark.parametrize("change", ["optimizer", "load", "in place"])
def test_stale_weights_are_refused(change: str) -> None:
    policy = trained()
    engine = EagerEngine(InferencePlan(policy))
    engine.act(observation(1))
    if change == "optimizer":
        optimizer = torch.optim.AdamW(policy.parameters(), fused=True)
        policy(toy.batch(0)).total.backward()
        optimizer.step()
    elif change == "load":
        policy.load_state_dict(policy.state_dict())
    else:
        with torch.no_grad():
            policy.denoiser.out.bias.add_(1)
    with pytest.raises(PlanError, match="weights have changed"):
        engine.act(observation(1))


def test_unknown_noise_levels_are_refused() -> None:
    plan = InferencePlan(trained(), SamplerConfig(steps=4))
    with pytest.raises(
        PlanError, match=r"no noise level 0.5; it was made for ddim with 4 steps from 80 to 0.001"
    ):
        plan.level(0.5)


def test_other_batches_are_refused() -> None:
    engine = EagerEngine(InferencePlan(trained(), batch=2))
    with pytest.raises(PlanError, match="3 observations for a plan of batch 2"):
        engine.act(observation(3))
    with pytest.raises(PlanError, match="batch=0"):
        InferencePlan(trained(), batch=0)


def test_training_mode_is_refused() -> None:
    with pytest.raises(PlanError, match="training mode"):
        InferencePlan(toy.policy().train())


def test_routers_that_look_at_tokens_are_refused() -> None:
    policy = trained()
    policy.denoiser.blocks[1].router.scope = "token"
    with pytest.raises(PlanError, match=r"layer 1 looks at the tokens \(ConditionRouter"):
        InferencePlan(policy)


def test_too_little_noise_is_refused() -> None:
    plan = InferencePlan(trained(), SamplerConfig(name="euler_ancestral", steps=4))
    with pytest.raises(PlanError, match="1 noise tensors; euler_ancestral with 4 steps takes 4"):
        EagerEngine(plan).act(observation(1), noise=[torch.zeros(1, 4, 2)])


def test_the_levels_are_those_that_samplers_visit() -> None:
    assert len(network_calls(SamplerConfig(name="ddim"), [4.0, 2.0, 1.0, 0.0])) == 3
    assert network_calls(SamplerConfig(name="dpm_2"), [4.0, 1.0, 0.0]) == [4.0, 2.0, 1.0]
    assert network_calls(SamplerConfig(name="heun"), [4.0, 1.0, 0.0]) == [4.0, 1.0]


def test_unused_experts_are_known() -> None:
    policy = trained()
    plan = InferencePlan(policy)
    for used, block in zip(plan.used_experts(), policy.denoiser.blocks, strict=True):
        assert 2 <= len(used) <= 4
        with torch.no_grad():
            for n in set(range(4)) - used:
                block.experts.up_weight_NED[n] = torch.nan
    assert torch.isfinite(EagerEngine(InferencePlan(policy)).act(observation(1)).actions_BCA).all()


@pytest.mark.parametrize("network", ["default", "goal in the router"])
def test_the_whole_loop_compiles_into_one_graph(network: str) -> None:
    denoiser = {"dim": 16, "num_layers": 2, "num_heads": 2} | NETWORKS.get(network, {})
    same(trained(denoiser=denoiser), SamplerConfig(steps=2), 2, CompileEngine)


def test_time_is_told() -> None:
    assert EagerEngine(InferencePlan(trained())).act(observation(1)).seconds > 0


@pytest.mark.parametrize("batch", [1, 3, 64])
@pytest.mark.parametrize("network", ["default", *NETWORKS])
def test_the_engine_for_processors_equals_every_form(network: str, batch: int) -> None:
    denoiser = {"dim": 16, "num_layers": 2, "num_heads": 2} | NETWORKS.get(network, {})
    same(trained(denoiser=denoiser), SamplerConfig(steps=3), batch, CpuEngine)


def test_the_engine_for_processors_guides() -> None:
    same(trained(), SamplerConfig(steps=3, guidance=2.0), 2, CpuEngine)
