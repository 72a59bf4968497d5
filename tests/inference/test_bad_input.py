"""What a plan refuses, and what must not change its actions."""

from __future__ import annotations

import copy
import pickle
import threading
from dataclasses import replace

import pytest
import torch

from mode_policy.config import SamplerConfig
from mode_policy.diffusion.prefix import Prefix
from mode_policy.errors import DataError, PlanError
from mode_policy.inference.cpu import CpuEngine
from mode_policy.inference.engine import EagerEngine
from mode_policy.inference.plan import InferencePlan
from mode_policy.inference.pool import EnginePool
from mode_policy.types import STATE, Observation
from tests import toy
from tests.inference.test_plan import draws, observation, trained

SAMPLER = SamplerConfig(steps=2)


@pytest.mark.parametrize(
    ("seen", "words"),
    [
        (Observation(), r"has \[\]; the policy needs 'observation.state'"),
        (replace(observation(2), states={STATE: torch.zeros(2, 1, 4)}), r"takes float32 \(2, 1, 3\)"),
        (replace(observation(2), states={STATE: torch.zeros(2, 2, 3)}), r"takes float32 \(2, 1, 3\)"),
        (replace(observation(2), states={STATE: torch.zeros(2, 1, 3).double()}), "is float64"),
        (replace(observation(2), instruction=torch.zeros(2, 9)), "'instruction' is float32"),
    ],
)
def test_observations_that_do_not_fit_are_refused(seen: Observation, words: str) -> None:
    with pytest.raises(DataError, match=words):
        CpuEngine(InferencePlan(trained(), SAMPLER, 2)).act(seen)


def test_noise_and_prefixes_are_not_broadcast() -> None:
    engine = EagerEngine(InferencePlan(trained(), SAMPLER, 2))
    for noise in (torch.zeros(1, 4, 2), torch.zeros(2, 1, 2), torch.zeros(2, 4, 2).double()):
        with pytest.raises(DataError, match="'noise' is"):
            engine.act(observation(2), noise=[noise])
    with pytest.raises(DataError, match="'prefix' is"):
        engine.act(observation(2), prefix=Prefix(actions=torch.zeros(1, 4, 2), weights=torch.zeros(1, 4)))


def test_policies_that_no_plan_can_be_made_of_are_refused() -> None:
    for policy in (trained().double(), trained().bfloat16()):
        with pytest.raises(PlanError, match=r"plans are made from float32 weights: call policy.float"):
            InferencePlan(policy)
    with pytest.raises(PlanError, match="device 'meta'"):
        InferencePlan(trained().to("meta"))
    policy = trained()
    with torch.no_grad():
        policy.denoiser.blocks[0].experts.up_weight_NED[0, 0, 0] = torch.nan
    with pytest.raises(PlanError, match=r"precision 'int8': a weight .* not finite"):
        InferencePlan(policy, precision="int8")


def test_replaced_weights_are_noticed() -> None:
    policy = trained()
    policy.load_state_dict({k: v.clone() for k, v in policy.state_dict().items()}, assign=True)
    engine = EagerEngine(InferencePlan(policy, SAMPLER, 2))
    changed = {k: v.clone() for k, v in policy.state_dict().items()}
    name = "denoiser.blocks.0.attention.qkv.weight"
    policy.load_state_dict(changed | {name: changed[name] * 3}, assign=True)
    with pytest.raises(PlanError, match="weights have changed"):
        engine.act(observation(2))


@pytest.mark.parametrize("name", ["attention.qkv.weight", "experts.up_weight_NED"])
def test_writing_through_data_is_found_on_request(name: str) -> None:
    policy = trained()
    plan = InferencePlan(policy, SAMPLER, 2)
    plan.verify()
    policy.get_parameter(f"denoiser.blocks.0.{name}").data.mul_(3)
    plan.check_fresh()
    with pytest.raises(PlanError, match=f"denoiser.blocks.0.{name} has changed"):
        plan.verify()


def test_training_mode_is_refused_later_too() -> None:
    policy = trained()
    engine = EagerEngine(InferencePlan(policy, SAMPLER, 2))
    policy.train()
    with pytest.raises(PlanError, match="training mode"):
        engine.act(observation(2))


@pytest.mark.parametrize("move", [copy.deepcopy, pickle.dumps])
def test_engines_stay_in_their_process(move) -> None:
    with pytest.raises(PlanError, match="neither pickled nor deep-copied"):
        move(CpuEngine(InferencePlan(trained(), SAMPLER, 2)))


def test_a_policy_without_its_weights_says_so() -> None:
    policy = trained()
    EnginePool(policy)
    for use in (lambda: policy.act(observation(2)), policy.state_dict):
        with pytest.raises(PlanError, match="were freed for a plan"):
            use()


def test_inference_mode_and_autocast_change_nothing() -> None:
    expected_plan = InferencePlan(trained(), SAMPLER, 2)
    noise = draws(expected_plan)
    expected = EagerEngine(expected_plan).act(observation(2), noise=noise).actions_BCA
    with torch.inference_mode():
        engine = EagerEngine(InferencePlan(trained(), SAMPLER, 2))
    assert torch.equal(engine.act(observation(2), noise=noise).actions_BCA, expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(engine.act(observation(2), noise=noise).actions_BCA, expected)


def test_threads_do_not_share_an_instruction() -> None:
    engine = EagerEngine(InferencePlan(trained(), SAMPLER))
    noise = draws(engine.plan)
    texts = ("go left", "go right")
    seen = [replace(observation(1), instruction=toy.INSTRUCTIONS.embed([text])) for text in texts]
    expected = [engine.act(s, noise=noise).actions_BCA for s in seen]
    wrong: list[int] = []

    def run(i: int) -> None:
        for _ in range(60):
            if not torch.equal(engine.act(seen[i], noise=noise).actions_BCA, expected[i]):
                wrong.append(i)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
