"""Policies with random weights, for measurements: times do not depend on the values."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch

from mode_policy.checkpoint import load_policy
from mode_policy.config import PolicyConfig, build
from mode_policy.normalization import compute_statistics
from mode_policy.policy import MoDEPolicy
from mode_policy.types import (
    ACTION,
    IMAGE_PREFIX,
    STATE,
    Feature,
    Features,
    InstructionTable,
    Observation,
    feature_kind,
)


class Size(NamedTuple):
    """Width, layers and heads of a denoiser."""

    dim: int
    layers: int
    heads: int


#: As in ``conf/model``; ``full`` is ``paper_pretrained``, the published network.
SIZES = {
    "full": Size(1024, 12, 8),
    "small": Size(256, 6, 8),
    "tiny": Size(64, 4, 4),
    "debug": Size(16, 2, 2),
}

STATE_DIM, GOAL_DIM, ACTION_DIM, CHUNK = 1024, 512, 7, 10
CAMERAS = {"static": 224, "gripper": 112}


def random_policy(size: Size, *, cameras: bool = False, steps: int = 10) -> MoDEPolicy:
    """Return a policy in evaluation mode whose sequence has 14 tokens, as published.

    Args:
        size: of the denoiser.
        cameras: whether its two observation tokens come from a FiLM-ResNet-50 each; otherwise they are two
            steps of a state.
        steps: of the sampler.
    """
    features: Features = {ACTION: Feature(shape=(ACTION_DIM,))}
    more: dict[str, object] = {}
    if cameras:
        features |= {
            IMAGE_PREFIX + name: Feature(shape=(side, side, 3), dtype="uint8")
            for name, side in CAMERAS.items()
        }
        vision = {"network": "resnet50", "size": tuple(CAMERAS.values())}
        more = {"cameras": tuple(CAMERAS), "vision": vision}
    else:
        features[STATE] = Feature(shape=(STATE_DIM,))
    config = build(
        PolicyConfig,
        {
            "chunk": CHUNK,
            "execute": CHUNK,
            "history": 1 if cameras else 2,
            "sampler": {"steps": steps},
            "denoiser": {"dim": size.dim, "num_layers": size.layers, "num_heads": size.heads},
            **more,
        },
    )
    rng = np.random.default_rng(0)
    samples = {
        key: rng.normal(size=(50, *feature.shape)).astype(np.float32)
        for key, feature in features.items()
        if feature_kind(key) != "image"
    }
    assert config.language is not None
    table = InstructionTable(
        encoder=config.language, instructions=("go",), embeddings=torch.randn(1, GOAL_DIM)
    )
    return MoDEPolicy(config, features, compute_statistics(samples), table).eval()


def policy_of(size: str, checkpoint: str | None, cameras: bool, steps: int | None, device: str) -> MoDEPolicy:
    """Return the policy that a benchmark's settings ask for.

    Args:
        size: of a policy with random weights, one of `SIZES`.
        checkpoint: a policy to load instead.
        cameras: of the random policy; see `random_policy`.
        steps: of the sampler; None for the policy's own.
        device: "cpu" or "cuda".
    """
    if checkpoint is None:
        policy = random_policy(SIZES[size], cameras=cameras).to(device)
    else:
        policy = load_policy(checkpoint, device=torch.device(device))
    if steps is not None:
        policy.config = replace(policy.config, sampler=replace(policy.config.sampler, steps=steps))
    return policy


def random_observation(policy: MoDEPolicy, batch: int, seed: int = 0) -> Observation:
    """Return observations that fit a policy, on its device."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {key: (batch, policy.config.history, *f.shape) for key, f in policy.features.items()}
    images = {
        key: torch.randint(256, shape, dtype=torch.uint8, generator=generator)
        for key, shape in shapes.items()
        if feature_kind(key) == "image"
    }
    states = {
        key: torch.randn(shape, generator=generator)
        for key, shape in shapes.items()
        if feature_kind(key) == "state"
    }
    table = policy.instructions
    embedded = None if table is None else table.embeddings[torch.arange(batch) % len(table.embeddings)]
    return Observation(states=states, images=images, instruction=embedded).to(policy.device)
