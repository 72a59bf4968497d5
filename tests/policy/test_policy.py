"""The policy from observation to actions, and its loss."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mode_policy.config import PolicyConfig, build
from mode_policy.errors import CheckpointError, ConfigError, DataError
from mode_policy.evaluation.runner import PolicyRunner
from mode_policy.normalization import compute_statistics
from mode_policy.policy import MoDEPolicy
from mode_policy.types import ACTION, STATE, Feature, InstructionTable, Observation, UnknownInstructionError
from tests import toy


def test_actions_are_reproducible_and_in_range():
    policy, observation = toy.policy().eval(), toy.batch(0).observation
    noise = torch.randn(16, 4, 2, generator=torch.Generator().manual_seed(0))
    actions = policy.act(observation, noise=noise)
    assert torch.equal(actions, policy.act(observation, noise=noise))
    assert not torch.equal(actions, policy.act(observation, noise=noise + 1))
    assert actions.shape == (16, 4, 2)
    data = toy.arrays()[ACTION]
    slack = 1e-5
    assert (actions >= torch.from_numpy(data.min(0)) - slack).all()
    assert (actions <= torch.from_numpy(data.max(0)) + slack).all()


@pytest.mark.parametrize("sampler", ["heun", "dpmpp_2m", "euler_ancestral", "dpmpp_sde", "lms"])
def test_every_sampler_acts(sampler):
    policy = toy.policy(sampler={"name": sampler, "steps": 3}).eval()
    draws = [
        policy.act(toy.batch(0).observation, generator=torch.Generator().manual_seed(1)) for _ in range(2)
    ]
    assert torch.isfinite(draws[0]).all()
    assert torch.equal(*draws)


def test_padding_does_not_teach():
    policy, batch = toy.policy().eval(), toy.batch(0)
    pad = batch.action_is_pad.clone()
    pad[:, 2:] = True
    sigma, noise = torch.full((16,), 0.5), torch.randn(16, 4, 2)
    wild = replace(batch, actions=torch.where(pad[..., None], 1e3, batch.actions), action_is_pad=pad)

    def error_of_first(b):
        return policy(b, sigma=sigma, noise=noise).denoising

    # Actions attend to earlier ones only, so what stands in the padding cannot reach the loss.
    torch.testing.assert_close(error_of_first(wild), error_of_first(replace(batch, action_is_pad=pad)))
    assert not torch.allclose(error_of_first(wild), error_of_first(replace(wild, action_is_pad=~pad)))


def test_the_total_is_the_sum_of_its_terms():
    policy = toy.policy(loss={"load_balance": 0.5, "router_z": 0.25}).eval()
    loss = policy(toy.batch(0), sigma=torch.full((16,), 0.5), noise=torch.zeros(16, 4, 2))
    expected = loss.denoising + 0.5 * loss.load_balance + 0.25 * loss.router_z
    torch.testing.assert_close(loss.total, expected)


def test_guidance_one_is_plain_and_others_differ():
    observation, noise = toy.batch(0).observation, torch.randn(16, 4, 2)
    plain, guided = (
        toy.policy(sampler={"guidance": g}).eval().act(observation, noise=noise) for g in (1.0, 4.0)
    )
    assert not torch.allclose(plain, guided)


def test_goal_dropout_is_for_training_only():
    for form in ("feature", "vector"):
        policy = toy.policy(goal_dropout=0.5, goal_dropout_form=form)
        goal = torch.ones(400, 8)
        assert torch.equal(policy.eval()._drop_goal(goal, None), goal)
        dropped = policy.train()._drop_goal(goal, torch.Generator().manual_seed(0))
        assert dropped.mean().item() == pytest.approx(0.5, abs=0.06)
        whole = (dropped == dropped[:, :1]).all(1).float().mean().item()
        assert (whole == 1.0) == (form == "vector")


def test_instructions_matter():
    policy, batch = toy.policy().eval(), toy.batch(0)
    noise = torch.randn(16, 4, 2)
    other = replace(batch.observation, instruction=batch.observation.instruction.flip(1))
    assert not torch.allclose(policy.act(batch.observation, noise=noise), policy.act(other, noise=noise))


def test_a_policy_without_language():
    policy = toy.policy(language=None).eval()
    observation = Observation(states=toy.batch(0).observation.states)
    assert policy.act(observation).shape == (16, 4, 2)


def test_history_is_seen():
    policy, batch = toy.policy(history=2).eval(), toy.batch(0, history=2)
    noise = torch.randn(16, 4, 2)
    state = batch.observation.states[STATE].clone()
    state[:, 0] += 0.5
    changed = replace(batch.observation, states={STATE: state})
    assert not torch.allclose(policy.act(batch.observation, noise=noise), policy.act(changed, noise=noise))


def test_angles_wrap_smoothly():
    policy, observation = toy.policy().eval(), toy.batch(0).observation
    noise = torch.randn(16, 4, 2)
    turned = replace(
        observation, states={STATE: observation.states[STATE] + torch.tensor([0, 0, 2 * torch.pi])}
    )
    torch.testing.assert_close(
        policy.act(observation, noise=noise), policy.act(turned, noise=noise), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_sde"])
def test_episodes_do_not_depend_on_their_neighbours(sampler):
    runner = PolicyRunner(toy.policy(sampler={"name": sampler}))
    rng = np.random.default_rng(0)
    observations = [{STATE: rng.normal(size=(1, 3)).astype(np.float32)} for _ in range(3)]
    seeds = [(1, 0), (2, 0), (3, 5)]
    together = runner.act(observations, ["go left"] * 3, seeds)
    alone = [runner.act([o], ["go left"], [s])[0] for o, s in zip(observations, seeds, strict=True)]
    np.testing.assert_allclose(together, alone, rtol=1e-3, atol=1e-4)
    other = runner.act(observations, ["go left"] * 3, [(1, 0), (2, 0), (4, 5)])
    assert np.abs(other[2] - together[2]).max() > 1e-3


def test_unknown_instruction_names_the_closest():
    with pytest.raises(
        UnknownInstructionError, match=r"unknown instruction 'go lefft'. Did you mean 'go left'"
    ):
        PolicyRunner(toy.policy()).act([{STATE: np.zeros((1, 3), np.float32)}], ["go lefft"], [(0, 0)])


def test_wrong_observations_are_named():
    runner = PolicyRunner(toy.policy())
    with pytest.raises(
        DataError, match=r"gives \['observation.pose'\], the policy needs 'observation.state'"
    ):
        runner.act([{"observation.pose": np.zeros((1, 3))}], ["go left"], [(0, 0)])
    with pytest.raises(DataError, match=r"has shape \(5,\) in the environment, \(3,\) in the policy"):
        runner.act([{STATE: np.zeros((1, 5))}], ["go left"], [(0, 0)])


def test_what_cannot_be_a_policy_is_refused():
    statistics, config = compute_statistics(toy.arrays()), toy.config()
    with pytest.raises(DataError, match="no 'action'"):
        MoDEPolicy(config, {STATE: toy.FEATURES[STATE]}, statistics, toy.INSTRUCTIONS)
    with pytest.raises(CheckpointError, match="no statistics for"):
        MoDEPolicy(config, toy.FEATURES, {STATE: statistics[STATE]}, toy.INSTRUCTIONS)
    with pytest.raises(CheckpointError, match=r"have \(3,\) values, the feature has 4 dimensions"):
        MoDEPolicy(config, toy.FEATURES | {STATE: Feature(shape=(4,))}, statistics, toy.INSTRUCTIONS)
    clip = InstructionTable(encoder="clip-vit-b32", instructions=("a",), embeddings=torch.zeros(1, 512))
    with pytest.raises(DataError, match="embedded by 'clip-vit-b32', the policy uses 'minilm-l6-v2'"):
        MoDEPolicy(config, toy.FEATURES, statistics, clip)
    with pytest.raises(DataError, match="no instruction embeddings"):
        MoDEPolicy(config, toy.FEATURES, statistics, None)
    with pytest.raises(ConfigError, match="execute=9 actions of a chunk of 4"):
        build(PolicyConfig, {"chunk": 4, "execute": 9})
