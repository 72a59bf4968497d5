"""Policies that see: from images to actions and back from a checkpoint."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mode_policy.checkpoint import load_policy, save_checkpoint
from mode_policy.errors import CheckpointError, DataError
from mode_policy.evaluation.runner import PolicyRunner
from mode_policy.normalization import compute_statistics
from mode_policy.policy import MoDEPolicy
from mode_policy.types import ACTION, ENVIRONMENT_STATE, IMAGE_PREFIX, STATE, Feature, Observation
from tests import toy

NOISE = torch.randn(16, 4, 2, generator=torch.Generator().manual_seed(0))
STATIC, GRIPPER = (IMAGE_PREFIX + name for name in toy.CAMERAS)


def observe(**changes) -> Observation:
    return replace(toy.image_batch(0).observation, **changes)


def test_actions_are_reproducible_and_see_every_camera():
    policy, seen = toy.image_policy().eval(), observe()
    actions = policy.act(seen, noise=NOISE)
    assert actions.shape == (16, 4, 2)
    assert torch.equal(actions, policy.act(seen, noise=NOISE))
    for key in toy.IMAGES:
        changed = observe(images=dict(seen.images) | {key: seen.images[key].flip(0)})
        assert not torch.allclose(actions, policy.act(changed, noise=NOISE))
    moved = observe(states={STATE: seen.states[STATE] + 0.5})
    assert not torch.allclose(actions, policy.act(moved, noise=NOISE))


def test_tokens_are_state_then_cameras_for_each_step():
    """The authors' order: proprioception, static camera, camera in the gripper."""
    policy, seen = toy.image_policy(history=2).eval(), toy.image_batch(0, history=2).observation
    with torch.no_grad():
        tokens, goal = policy.encode(seen)
        assert tokens.shape == (16, 6, policy.image_encoder.token_dim)
        assert torch.equal(goal, seen.instruction)
        images = policy.image_encoder(seen.images, seen.instruction)
        states = policy.state_encoder(seen.states)
    for step in range(2):
        expected = [states[:, step], images[:, step, 0], images[:, step, 1]]
        for token, part in zip(tokens[:, 3 * step : 3 * step + 3].unbind(1), expected, strict=True):
            assert torch.equal(token, part)


@pytest.mark.parametrize("language", ["minilm-l6-v2", None])
@pytest.mark.parametrize(("cameras", "states"), [(("static",), True), (("gripper", "static"), False)])
def test_any_cameras_with_and_without_state_and_language(cameras, states, language):
    torch.manual_seed(0)
    config = toy.config(cameras=cameras, vision=toy.VISION, language=language)
    keys = [IMAGE_PREFIX + name for name in cameras] + [ACTION] + ([STATE] if states else [])
    features = {k: (toy.FEATURES | toy.IMAGES)[k] for k in keys}
    table = toy.INSTRUCTIONS if language else None
    policy = MoDEPolicy(config, features, compute_statistics(toy.arrays()), table)
    loss = policy(toy.image_batch(0))
    loss.total.backward()
    assert all(p.grad is not None for p in policy.parameters())
    seen = observe() if states else observe(states={})
    assert policy.eval().act(seen, noise=NOISE).shape == (16, 4, 2)
    assert (policy.state_encoder is None) == (not states)
    assert any(".film." in name for name in policy.state_dict()) == (language is not None)


def test_images_are_encoded_once_for_a_decision():
    policy = toy.image_policy(sampler={"steps": 7}).eval()
    calls = []
    policy.image_encoder.register_forward_hook(lambda *_: calls.append(1))
    policy.act(observe(), noise=NOISE)
    assert len(calls) == 1


def test_augmentation_reaches_the_training_loss_only():
    policy, batch = toy.image_policy(vision=toy.VISION | {"shift": 3, "color": 0.5}), toy.image_batch(0)
    fixed = {"sigma": torch.full((16,), 0.5), "noise": NOISE}

    def loss(seed: int) -> float:
        return policy(batch, **fixed, generator=torch.Generator().manual_seed(seed)).denoising.item()

    policy.eval()
    assert loss(0) == loss(1)
    policy.train()
    # Routers and goal dropout draw too, so take them away.
    policy.config = replace(policy.config, goal_dropout=0.0)
    for block in policy.denoiser.blocks:
        block.eval()
    assert loss(0) == loss(0)
    assert loss(0) != loss(1)


@pytest.fixture
def saved(tmp_path):
    policy = toy.image_policy()
    policy(toy.image_batch(0))  # running statistics that are not the initial ones
    raw = {k: v + 1 for k, v in policy.state_dict().items()}
    save_checkpoint(tmp_path / "checkpoint", policy, raw, about={})
    return tmp_path / "checkpoint", policy.eval()


def test_a_checkpoint_holds_the_encoders(saved):
    path, policy = saved
    loaded = load_policy(path)
    assert loaded.config.cameras == toy.CAMERAS
    assert loaded.features == policy.features
    assert torch.equal(loaded.act(observe(), noise=NOISE), policy.act(observe(), noise=NOISE))
    raw = load_policy(path, weights="raw").image_encoder.networks[1].resnet.bn1.running_mean
    assert torch.equal(raw, policy.image_encoder.networks[1].resnet.bn1.running_mean + 1)


def test_the_order_of_states_survives_a_checkpoint(tmp_path):
    """Files keep names in alphabetical order, and the encoder concatenates in the order of the features."""
    features = {
        STATE: Feature(shape=(3,)),
        ENVIRONMENT_STATE: Feature(shape=(3,)),
        ACTION: toy.FEATURES[ACTION],
    }
    data = toy.arrays() | {ENVIRONMENT_STATE: toy.arrays(seed=1)[STATE]}
    policy = MoDEPolicy(toy.config(), features, compute_statistics(data), toy.INSTRUCTIONS).eval()
    save_checkpoint(tmp_path / "c", policy, policy.state_dict(), about={})
    seen = toy.batch(0).observation
    seen = replace(seen, states={STATE: seen.states[STATE], ENVIRONMENT_STATE: -seen.states[STATE]})
    assert torch.equal(load_policy(tmp_path / "c").act(seen, noise=NOISE), policy.act(seen, noise=NOISE))


def test_a_runner_hands_images_on():
    policy = toy.image_policy()
    runner = PolicyRunner(policy)
    state = toy.arrays()[STATE][:3]
    pictures = toy.pictures(state)
    observations = [
        {STATE: s[None], **{k: v[i][None] for k, v in pictures.items()}} for i, s in enumerate(state)
    ]
    seeds = [(1, 0), (2, 0), (3, 0)]
    together = runner.act(observations, ["go left"] * 3, seeds)
    assert together.shape == (3, 4, 2)
    alone = [runner.act([o], ["go left"], [s])[0] for o, s in zip(observations, seeds, strict=True)]
    # Convolutions of another batch size take another path through their kernels.
    np.testing.assert_allclose(together, alone, rtol=1e-3, atol=1e-4)
    del observations[0][GRIPPER]
    with pytest.raises(DataError, match=r"the policy needs 'observation.images.gripper'"):
        runner.act(observations[:1], ["go left"], seeds[:1])
    observations[1][GRIPPER] = observations[1][GRIPPER][:, :8]
    with pytest.raises(
        DataError, match=r"gripper' has shape \(8, 16, 3\) in the environment, \(16, 16, 3\) in the policy"
    ):
        runner.act(observations[1:2], ["go left"], seeds[:1])


@pytest.mark.parametrize(
    ("cameras", "features", "message"),
    [
        (("left",), toy.IMAGES, r"names \['left'\], but the dataset's cameras are \['gripper', 'static'\]"),
        (("static",), toy.IMAGES, r"hold cameras \['gripper'\] that policy.cameras=\['static'\] leaves out"),
        ((), toy.IMAGES, r"hold cameras \['static', 'gripper'\] that policy.cameras=\[\]"),
        (("static",), {STATIC: Feature(shape=(3, 8, 8), dtype="uint8")}, r"images are \(height, width, 3\)"),
        ((), {}, "no observation among the features"),
    ],
)
def test_what_cannot_be_a_policy_is_refused(cameras, features, message):
    config = toy.config(cameras=cameras, vision=toy.VISION)
    with pytest.raises(DataError, match=message):
        MoDEPolicy(
            config,
            {ACTION: toy.FEATURES[ACTION], **features},
            compute_statistics(toy.arrays()),
            toy.INSTRUCTIONS,
        )


def test_images_need_no_statistics_but_states_do():
    statistics = compute_statistics(toy.arrays())
    config = toy.config(cameras=toy.CAMERAS, vision=toy.VISION)
    MoDEPolicy(config, toy.FEATURES | toy.IMAGES, statistics, toy.INSTRUCTIONS)
    with pytest.raises(CheckpointError, match=r"no statistics for \['observation.state'\]"):
        MoDEPolicy(config, toy.FEATURES | toy.IMAGES, {ACTION: statistics[ACTION]}, toy.INSTRUCTIONS)


def test_an_observation_without_instruction_is_refused():
    with pytest.raises(DataError, match="carries no instruction"):
        toy.image_policy().eval().act(observe(instruction=None), noise=NOISE)
