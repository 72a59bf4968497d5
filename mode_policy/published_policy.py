"""From a published file to one of our policies: every tensor is used, or listed with the reason why not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from mode_policy.checkpoint import load_strictly
from mode_policy.config import PolicyConfig
from mode_policy.policy import MoDEPolicy
from mode_policy.published import encoder_from_published, from_published, split
from mode_policy.published_config import Images, model_name, recognise, shape_of
from mode_policy.published_files import PublishedFile
from mode_policy.types import ACTION, IMAGE_PREFIX, Feature, Features, InstructionTable


@dataclass(frozen=True)
class ImportedPolicy:
    """A policy made of published weights.

    Attributes:
        policy: carries the averaged weights where there are any.
        raw: state dict of the weights as the optimizer left them.
        known: which published model it is, by its shapes.
        used: number of tensors that the policy is made of.
        skipped: reason → names of the tensors that are not used.
    """

    policy: MoDEPolicy
    raw: dict[str, Tensor]
    known: str
    used: int
    skipped: dict[str, list[str]] = field(default_factory=dict)


def import_policy(
    published: PublishedFile,
    images: Images,
    *,
    overrides: Sequence[str] = (),
    instructions: InstructionTable | None = None,
) -> ImportedPolicy:
    """Make a policy of published weights.

    Its actions are in [−1, 1], as all published ones are, so that normalising them changes nothing.

    Args:
        published: what the file holds.
        images: of the two cameras.
        overrides: of the policy's configuration, e.g. ``["sampler.steps=5"]``.
        instructions: embedded by CLIP; none by default, which is enough for finetuning.

    Raises:
        CheckpointError: if a tensor is missing, left over or of another shape, or the settings ask for
            something that this package does not have.
        ConfigError: for an override that cannot be used.
    """
    parts, skipped = split(published.raw)
    config = recognise(parts, published.settings, images, overrides)
    goal_dim = shape_of(parts["denoiser"], "goal_emb.weight")[1]
    table = instructions or InstructionTable(
        encoder=str(config.language), instructions=(), embeddings=torch.zeros(0, goal_dim)
    )
    features = _features(images, shape_of(parts["denoiser"], "out.weight")[0])
    action_dim = features[ACTION].shape[0]
    bounds = {"min": -1.0, "max": 1.0, "mean": 0.0, "std": 1.0, "q01": -1.0, "q99": 1.0}
    statistics = {ACTION: {k: np.full(action_dim, v, dtype=np.float32) for k, v in bounds.items()}}
    policy = MoDEPolicy(config, features, statistics, table)
    raw = _state(parts, config)
    load_strictly(policy, raw, str(published.path))
    if published.averaged is not None:
        load_strictly(policy, _state(split(published.averaged)[0], config), str(published.path))
    used = len(published.raw) - sum(map(len, skipped.values()))
    return ImportedPolicy(policy.eval(), raw, model_name(config), used, skipped)


def _state(parts: Mapping[str, Mapping[str, Tensor]], config: PolicyConfig) -> dict[str, Tensor]:
    """Return our state dict."""
    state = {f"denoiser.{k}": v for k, v in from_published(parts["denoiser"], config.denoiser).items()}
    for i, camera in enumerate(("static", "gripper")):
        for name, tensor in encoder_from_published(parts[camera], config.vision).items():
            state[f"image_encoder.networks.{i}.{name}"] = tensor
    return state


def _features(images: Images, action_dim: int) -> Features:
    features = {
        IMAGE_PREFIX + name: Feature(shape=(side, side, 3), dtype="uint8")
        for name, side in zip(images.cameras, images.resolution, strict=True)
    }
    # As LIBERO's environments and CALVIN's data are named; evaluation compares the names.
    names = ("x", "y", "z", "rx", "ry", "rz", "gripper") if action_dim == 7 else ()
    return features | {ACTION: Feature(shape=(action_dim,), names=names)}
