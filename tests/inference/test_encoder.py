"""Folded image encoders give the policy's tokens, for both forms of modulation, and notice other weights."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from mode_policy.errors import PlanError
from mode_policy.inference.cpu import CpuEngine
from mode_policy.inference.encoder import FoldedNetwork
from mode_policy.inference.engine import EagerEngine
from mode_policy.inference.plan import InferencePlan
from mode_policy.policy import MoDEPolicy
from tests import toy

#: float32: a norm's factors are multiplied into weights instead of features.
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}

VISIONS = {
    "modulated after stages": {},
    "modulated inside blocks": {"film": "block"},
    "bottlenecks": {"network": "resnet50"},
}


def trained(**changes) -> MoDEPolicy:
    """An image policy whose norms and modulations are no longer the identity."""
    policy = toy.image_policy(**changes)
    with torch.no_grad():
        for module in policy.image_encoder.networks.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(std=0.3)
                module.running_var.uniform_(0.5, 2)
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(std=0.3)
        for parameter in policy.image_encoder.networks.parameters():
            if parameter.ndim < 4:
                parameter += 0.05 * torch.randn_like(parameter)
    return policy.eval()


@pytest.mark.parametrize("vision", VISIONS)
@torch.no_grad()
def test_tokens_are_the_policys(vision):
    policy = trained(vision=toy.VISION | VISIONS[vision], history=2)
    plan = InferencePlan(policy, batch=3)
    seen = toy.image_batch(1, 3, 2).observation
    for shift in (0, 1, 1, 0):  # another instruction, the same again, and back
        instruction = toy.INSTRUCTIONS.embeddings[(torch.arange(3) + shift) % 2]
        seen = replace(seen, instruction=instruction)
        for found, expected in zip(plan.encode(seen), policy.encode(seen), strict=True):
            torch.testing.assert_close(found, expected, **TOLERANCE)


@torch.no_grad()
def test_without_language_and_norms():
    policy = trained(language=None)
    seen = toy.image_batch(1, 2).observation
    plan = InferencePlan(policy, batch=2)
    torch.testing.assert_close(plan.encode(seen)[0], policy.encode(seen)[0], **TOLERANCE)
    folded = plan._observer.image_encoder.networks
    assert all(isinstance(network, FoldedNetwork) for network in folded)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())


@torch.no_grad()
def test_a_wrong_modulation_is_noticed():
    """Negative control: the instruction reaches the tokens."""
    policy = trained()
    seen = toy.image_batch(1, 2).observation
    other = replace(seen, instruction=-seen.instruction)
    assert not torch.allclose(policy.encode(seen)[0], policy.encode(other)[0], **TOLERANCE)


@pytest.mark.parametrize("engine", [EagerEngine, CpuEngine])
def test_actions_are_the_policys(engine):
    policy = trained()
    plan, seen, noise = (
        InferencePlan(policy, batch=2),
        toy.image_batch(1, 2).observation,
        torch.randn(2, 4, 2),
    )
    found = engine(plan).act(seen, noise=[noise]).actions_BCA
    torch.testing.assert_close(found, policy.act(seen, noise=noise), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("part", ["conv1.weight", "bn1.running_mean"])
@pytest.mark.parametrize("counted", [True, False])
def test_other_weights_are_noticed(part, counted):
    """Also where they changed in a way that PyTorch does not count."""
    policy = trained()
    engine = EagerEngine(InferencePlan(policy))
    state = policy.image_encoder.networks[1].resnet.state_dict(keep_vars=True)[part]
    with torch.no_grad():
        (state if counted else state.data).add_(0.1)
    with pytest.raises(PlanError, match="weights have changed"):
        engine.act(toy.image_batch(1, 1).observation)


def test_half_precision_encodes_to_float32():
    policy = trained()
    plan = InferencePlan(policy, precision="bfloat16")
    seen = toy.image_batch(1, 1).observation
    with torch.no_grad():
        found, expected = plan.encode(seen)[0], policy.encode(seen)[0]
    assert found.dtype == torch.float32
    assert (found - expected).abs().max() < 0.05 * expected.abs().max()
