"""Bytes and multiply-adds are counted as a person would."""

from __future__ import annotations

import pytest

from mode_policy.config import SamplerConfig
from mode_policy.inference.cost import multiply_adds, weight_bytes
from mode_policy.inference.plan import InferencePlan
from tests.inference.test_plan import NETWORKS, observation, trained

D, LAYERS, CHUNK = 16, 2, 4


def large(active: float) -> float:
    """Numbers of the large weights of a network call: attention, and so many experts."""
    return LAYERS * (4 * D * D + active * 12 * D * D)


@pytest.mark.parametrize(("network", "active"), [("default", 2), ("top 3", 3), ("shared", 2), ("top 1", 1)])
def test_bytes(network, active):
    denoiser = {"dim": D, "num_layers": LAYERS, "num_heads": 2} | NETWORKS.get(network, {})
    plan = InferencePlan(trained(denoiser=denoiser), SamplerConfig(steps=3))
    assert weight_bytes(plan) == 3 * 4 * large(active)


def test_fewer_bits_are_fewer_bytes():
    policy, sampler = trained(), SamplerConfig(steps=3)
    full = 3 * large(2)
    assert weight_bytes(InferencePlan(policy, sampler, precision="bfloat16")) == 2 * full
    scales = 3 * 4 * LAYERS * (4 * D + 2 * 9 * D)  # four bytes for each output
    assert weight_bytes(InferencePlan(policy, sampler, precision="int8")) == full + scales


def test_samples_with_experts_of_their_own_read_more():
    denoiser = {"dim": D, "num_layers": LAYERS, "num_heads": 2} | NETWORKS["goal in the router"]
    plan = InferencePlan(trained(denoiser=denoiser), SamplerConfig(steps=2), 4)
    plan.set_goal(observation(4).instruction)
    assert 2 * 4 * large(2) <= weight_bytes(plan) <= 2 * 4 * large(4)


def test_every_call_counts():
    policy = trained()
    once, twice = (InferencePlan(policy, SamplerConfig(name=n, steps=5)) for n in ("ddim", "heun"))
    assert weight_bytes(twice) == weight_bytes(once) * 9 / 5


def test_multiply_adds():
    plan = InferencePlan(trained(), SamplerConfig(steps=3), 2)
    tokens = plan.sequence
    assert tokens == 2 + 1 + CHUNK
    qkv, projection, expert = 3 * D * D, D * D, 12 * D * D
    first, last = tokens * (qkv + projection + 2 * expert), tokens * qkv + CHUNK * (projection + 2 * expert)
    found = multiply_adds(plan, observation(2))
    # The rest: scores, embeddings, the encoder and the output, small even in a network of this size.
    assert 3 * 2 * (first + last) < found < 1.1 * 3 * 2 * (first + last)
