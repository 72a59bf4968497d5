"""Which engine is chosen, why, and what a pool of them does with batches of changing size."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest
import torch

from mode_policy.config import SamplerConfig
from mode_policy.diffusion.prefix import Prefix
from mode_policy.errors import PlanError
from mode_policy.inference import pool as pool_module
from mode_policy.inference.auto import ENGINES, NAMES, make_engine
from mode_policy.inference.plan import InferencePlan
from mode_policy.inference.pool import EngineName, EnginePool
from tests.inference.test_plan import NETWORKS, TOLERANCE, observation, trained

BY_GOAL = {"dim": 16, "num_layers": 2, "num_heads": 2} | NETWORKS["goal in the router"]


def drawer(batch: int, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(batch, 4, 2, generator=generator)


def test_a_processor_gets_its_engine():
    engine, reason = make_engine(InferencePlan(trained()))
    assert (engine.name, reason) == ("cpu", "the fastest on a processor")


def test_what_was_in_the_way_is_said():
    engine, reason = make_engine(InferencePlan(trained(), precision="bfloat16"))
    assert engine.name == "eager"
    assert "the engine 'cpu' knows the precisions float32 and int8, not bfloat16" in reason


def test_a_name_is_taken_at_its_word():
    plan = InferencePlan(trained(), precision="bfloat16")
    assert make_engine(plan, "eager").engine.name == "eager"
    with pytest.raises(PlanError, match="not bfloat16"):
        make_engine(plan, "cpu")
    with pytest.raises(PlanError, match="a cpu device; the kernels need an NVIDIA GPU"):
        make_engine(plan, "triton")
    with pytest.raises(PlanError, match=r"unknown engine 'complie'\. Did you mean 'compile'"):
        make_engine(plan, "complie")


def test_names_agree():
    assert set(get_args(EngineName)) == {*NAMES, "policy"}
    assert all(engine.name == name for name, engine in ENGINES.items())


@pytest.mark.parametrize("name", ["auto", "eager", "cpu"])
@pytest.mark.parametrize("sampler", ["ddim", "euler_ancestral"])
def test_a_pool_gives_the_policys_actions_for_every_batch(name, sampler):
    policy, same = (trained(sampler={"name": sampler, "steps": 3}) for _ in range(2))
    pool = EnginePool(same, name)  # which frees the weights of its policy
    for batch in (2, 1, 5, 2):
        found = pool.act(observation(batch), drawer(batch))
        torch.testing.assert_close(found, policy.act(observation(batch), noise=drawer(batch)), **TOLERANCE)


def test_a_pool_holds_prefixes():
    policy = trained()
    prefix = Prefix(actions=torch.full((2, 4, 2), 0.3), weights=torch.tensor([[1.0, 0.5, 0.0, 0.0]] * 2))
    found = EnginePool(trained()).act(observation(2), drawer(2), prefix)
    expected = policy.act(observation(2), noise=drawer(2), prefix=prefix)
    torch.testing.assert_close(found, expected, **TOLERANCE)


def test_the_policy_itself_is_an_engine():
    policy = trained()
    pool = EnginePool(policy, "policy")
    assert torch.equal(pool.act(observation(3), drawer(3)), policy.act(observation(3), noise=drawer(3)))
    with pytest.raises(PlanError, match="only plans have other precisions"):
        EnginePool(policy, "policy", "int8")


def test_a_pool_is_bounded(monkeypatch):
    monkeypatch.setattr(pool_module, "LIMIT", 2)
    pool = EnginePool(trained(sampler={"steps": 1}))
    for batch in (1, 2, 3, 2, 4):
        pool.act(observation(batch), drawer(batch))
    assert list(pool._engines) == [2, 4]


def test_a_pool_keeps_to_its_sampler():
    policy = trained(sampler={"steps": 1})
    pool = EnginePool(policy)
    policy.config = replace(policy.config, sampler=SamplerConfig(steps=4))
    with pytest.raises(PlanError, match="sampler was changed after its engines were made"):
        pool.act(observation(2), drawer(2))


def test_only_announced_batches_are_compiled():
    pool = EnginePool(trained(sampler={"steps": 1}), "compile")  # compiles when it first acts
    pool.prepare(3)
    pool.act(observation(2), drawer(2))
    assert {batch: engine.name for batch, engine in pool._engines.items()} == {
        1: "compile",
        3: "compile",
        2: "eager",
    }


def test_routers_that_look_at_tokens_leave_the_policy_itself():
    policy = trained()
    policy.denoiser.blocks[1].router.scope = "token"
    pool = EnginePool(policy)
    assert pool.engine == "policy"
    assert "looks at the tokens" in pool.reason
    with pytest.raises(PlanError, match="looks at the tokens"):
        EnginePool(policy, "eager")


def test_a_pool_in_fewer_bits_frees_the_policys_weights():
    policy = trained()
    exact = policy.act(observation(2), noise=drawer(2))
    pool = EnginePool(policy, precision="int8")
    assert policy.denoiser.blocks[0].experts.up_weight_NED.numel() == 0
    error = (pool.act(observation(2), drawer(2)) - exact).abs().max()
    assert 1e-5 < error < 0.1
