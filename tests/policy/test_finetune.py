"""Training that starts from a checkpoint: same network, new data."""

from dataclasses import replace

import pytest
import torch

from mode_policy.checkpoint import save_checkpoint
from mode_policy.errors import CheckpointError
from mode_policy.normalization import compute_statistics
from mode_policy.policy import MoDEPolicy
from mode_policy.training.finetune import start_from
from mode_policy.types import STATE, Feature, InstructionTable
from tests import toy


@pytest.fixture
def checkpoint(tmp_path):
    policy = toy.image_policy(seed=1)
    policy(toy.image_batch(0))
    raw = {k: v + 1 for k, v in policy.state_dict().items()}
    save_checkpoint(tmp_path / "c", policy, raw, about={})
    return tmp_path / "c", policy


def test_weights_are_taken_and_the_data_stay_our_own(checkpoint):
    path, source = checkpoint
    statistics = compute_statistics({k: 2 * v for k, v in toy.arrays().items()})
    table = InstructionTable(encoder="minilm-l6-v2", instructions=("new",), embeddings=torch.randn(1, 8))
    config = replace(
        source.config,
        goal_dropout=0.2,
        loss=replace(source.config.loss, load_balance=0.0),
        vision=replace(source.config.vision, shift=2, color=0.1, weights="elsewhere.pth"),
    )
    policy = MoDEPolicy(config, toy.FEATURES | toy.IMAGES, statistics, table)
    start_from(policy, path)
    assert all(torch.equal(v, source.state_dict()[k]) for k, v in policy.state_dict().items())
    assert policy.statistics == statistics
    assert policy.instructions.instructions == ("new",)
    assert torch.equal(policy.action_normalizer.scale, 2 * source.action_normalizer.scale)
    start_from(policy, path, weights="raw")
    assert torch.equal(policy.denoiser.out.bias, source.denoiser.out.bias + 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vision": toy.VISION | {"width": 8}}, r"policy.vision.width=4$"),
        ({"vision": toy.VISION | {"normalize": "imagenet"}}, r"policy.vision.normalize=clip$"),
        ({"cameras": toy.CAMERAS[::-1]}, r"policy.cameras=\[static,gripper\]$"),
        ({"chunk": 5, "sigma_data": 1.0}, r"policy.chunk=4 policy.sigma_data=0.5$"),
        ({"normalize_action": "mean_std"}, r"policy.normalize_action=min_max$"),
    ],
)
def test_another_network_is_refused_with_the_settings_that_fit(checkpoint, changes, message):
    with pytest.raises(CheckpointError, match=message):
        start_from(toy.image_policy(**changes), checkpoint[0])


def test_other_states_are_refused(checkpoint):
    features = toy.FEATURES | toy.IMAGES | {STATE: Feature(shape=(4,))}
    data = toy.arrays() | {STATE: toy.arrays()[STATE][:, [0, 1, 2, 2]]}
    config = toy.config(cameras=toy.CAMERAS, vision=toy.VISION)
    policy = MoDEPolicy(config, features, compute_statistics(data), toy.INSTRUCTIONS)
    with pytest.raises(CheckpointError, match=r"observation.state \(3,\), this run's .*dataset.state_keys"):
        start_from(policy, checkpoint[0])


def test_a_blind_policy_does_not_care_about_vision(tmp_path):
    source = toy.policy(seed=1)
    save_checkpoint(tmp_path / "c", source, source.state_dict(), about={})
    policy = toy.policy(vision={"width": 32})
    start_from(policy, tmp_path / "c")
    assert all(torch.equal(v, source.state_dict()[k]) for k, v in policy.state_dict().items())
