"""Tensor names of the authors' published checkpoints, mapped to ours and back.

Their experts are separate modules and their query, key and value separate layers; ours are stacked tensors.
Their image encoders have the modulation either after each stage or inside each block, under other names.
The maps are exact: no arithmetic, only concatenation, and every tensor is accounted for.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mode_policy.config import DenoiserConfig
from mode_policy.encoders.vision_config import VisionConfig
from mode_policy.errors import CheckpointError

#: ours → theirs, outside the blocks
_TOP = {
    "sigma_embedding.0.weight": "sigma_emb.weight",
    "sigma_embedding.0.bias": "sigma_emb.bias",
    "sigma_embedding.1.weight": "sigma_linear.weight",
    "observation_embedding.weight": "tok_emb.weight",
    "goal_embedding.weight": "goal_emb.weight",
    "action_embedding.weight": "action_emb.weight",
    "norm.gain": "ln.g",
    "out.weight": "out.weight",
    "out.bias": "out.bias",
}

#: ours → theirs, within a block; a list is concatenated along the first axis
_BLOCK: dict[str, str | list[str]] = {
    "attention_norm.gain": "ln_1.g",
    "attention.qkv.weight": ["attn.query.weight", "attn.key.weight", "attn.value.weight"],
    "attention.qkv.bias": ["attn.query.bias", "attn.key.bias", "attn.value.bias"],
    "attention.proj.weight": "attn.c_proj.weight",
    "expert_norm.gain": "ln_2.g",
    "router.net.0.weight": "router.router.mlp.0.weight",
    "router.net.0.bias": "router.router.mlp.0.bias",
    "router.net.2.weight": "router.router.mlp.3.weight",
    "router.net.2.bias": "router.router.mlp.3.bias",
}

_QK_NORM = ("q_norm", "k_norm")

_EXPERT = {
    "up_weight_NED": "mlp.0.project.weight",
    "up_bias_NE": "mlp.0.project.bias",
    "down_weight_NDH": "mlp.2.weight",
}

#: theirs that their forward never uses (a second camera's embedding, the broken proprioception path)
UNUSED = ("gripper_embed.weight", "state_embed.weight", "combine_embed.weight", "combine_embed.bias")


def from_published(published: Mapping[str, Tensor], config: DenoiserConfig) -> dict[str, Tensor]:
    """Turn the authors' denoiser tensors (names without prefix) into our state dict.

    Raises:
        CheckpointError: listing tensors that are missing or left over.
    """
    remaining = dict(published)
    missing: list[str] = []

    def take(name: str) -> Tensor:
        if name not in remaining:
            missing.append(name)
            return torch.empty(0)
        return remaining.pop(name)

    ours = {name: take(theirs) for name, theirs in _TOP.items()}
    ours["position"] = take("pos_emb").squeeze(0)
    routed = config.experts.num - config.experts.shared
    for layer in range(config.num_layers):
        prefix = f"blocks.{layer}."
        for name, theirs in _BLOCK.items():
            parts = [theirs] if isinstance(theirs, str) else theirs
            ours[prefix + name] = torch.cat([take(prefix + part) for part in parts])
        gains = [take(f"{prefix}attn.{name}.g") for name in _QK_NORM]
        ours[f"{prefix}attention.qk_norm.gain"] = torch.cat(gains).view(2, 1, -1)
        for name, theirs in _EXPERT.items():
            stack = [take(f"{prefix}experts.expert_{n}.{theirs}") for n in range(routed)]
            if not missing:
                ours[f"{prefix}experts.{name}"] = torch.stack(stack)
            if config.experts.shared:
                ours[f"{prefix}shared.{name}"] = take(f"{prefix}shared_mlp.{theirs}").unsqueeze(0)
    left = sorted(set(remaining) - set(UNUSED))
    if missing or left:
        raise CheckpointError(
            f"published tensors do not fit this architecture: missing {missing[:8]}, not used {left[:8]} "
            f"({len(missing)} and {len(left)} in all)"
        )
    return ours


def to_published(state: Mapping[str, Tensor], config: DenoiserConfig) -> dict[str, Tensor]:
    """Turn our state dict into the authors' names; inverts `from_published` but for unused tensors."""
    theirs = {name: state[ours] for ours, name in _TOP.items()}
    theirs["pos_emb"] = state["position"].unsqueeze(0)
    for layer in range(config.num_layers):
        prefix = f"blocks.{layer}."
        for ours, names in _BLOCK.items():
            parts = [names] if isinstance(names, str) else names
            theirs |= {
                prefix + n: t for n, t in zip(parts, state[prefix + ours].chunk(len(parts)), strict=True)
            }
        for name, gain in zip(_QK_NORM, state[f"{prefix}attention.qk_norm.gain"], strict=True):
            theirs[f"{prefix}attn.{name}.g"] = gain.squeeze(0)
        for ours, name in _EXPERT.items():
            for n, tensor in enumerate(state[f"{prefix}experts.{ours}"]):
                theirs[f"{prefix}experts.expert_{n}.{name}"] = tensor
            if config.experts.shared:
                theirs[f"{prefix}shared_mlp.{name}"] = state[f"{prefix}shared.{ours}"][0]
    return theirs


def encoder_from_published(published: Mapping[str, Tensor], config: VisionConfig) -> dict[str, Tensor]:
    """Turn the tensors of one of the authors' image encoders (names without prefix) into our state dict.

    `FiLMResNet.load_state_dict` then says what is missing or left over.
    """
    return {_encoder_name(name, config): tensor for name, tensor in published.items()}


def _encoder_name(theirs: str, config: VisionConfig) -> str:
    """Name of an image encoder's tensor in our state dict."""
    first, _, rest = theirs.partition(".")
    if config.film == "stage":
        stage = first.removeprefix("film")
        return f"film.{int(stage) - 1}.{rest}" if stage != first and stage.isdigit() else theirs
    stage = first.removeprefix("film_module")
    if stage != first and stage.isdigit():
        return f"film.{int(stage) - 1}.{rest.replace('modulation.1', 'linear')}"
    return f"proj.{rest}" if first == "fc" else f"resnet.{theirs}"


def encoder_to_published(state: Mapping[str, Tensor], config: VisionConfig) -> dict[str, Tensor]:
    """Turn an image encoder's state dict into the authors' names; inverts `encoder_from_published`."""
    theirs = {}
    for name, tensor in state.items():
        first, _, rest = name.partition(".")
        if first == "film":
            stage, _, rest = rest.partition(".")
            if config.film == "block":
                name = f"film_module{int(stage) + 1}.{rest.replace('linear', 'modulation.1')}"
            else:
                name = f"film{int(stage) + 1}.{rest}"
        elif config.film == "block":
            name = f"fc.{rest}" if first == "proj" else rest
        theirs[name] = tensor
    return theirs


#: The authors' prefixes → part of the policy. The pretraining code named the cameras after their data sets.
PARTS = {
    "model.inner_model.": "denoiser",
    "static_resnet.": "static",
    "img_encoder_image_primary.": "static",
    "img_encoder_image_secondary.": "static",
    "gripper_resnet.": "gripper",
    "img_encoder_image_wrist.": "gripper",
    "language_goal.": "language",
}

#: What the authors' two wrappers of CLIP put before its names.
CLIP_PREFIXES = ("language_goal.clip_rn50.", "language_goal.text_encoder.")

#: Names of what CLIP needs for images, or for comparing them with texts.
CLIP_IMAGES = ("visual.", "logit_scale", "input_resolution", "context_length", "vocab_size")

#: Why tensors are not used.
REASONS = {
    "language": "the frozen CLIP text encoder; its embeddings are stored with the policy instead",
    "images": "the image half of CLIP, which embeds no instructions",
    "unused": "their own forward pass never uses it",
}


def split(tensors: Mapping[str, Tensor]) -> tuple[dict[str, dict[str, Tensor]], dict[str, list[str]]]:
    """Split by part of the policy; return the parts, and the names that are not used by reason.

    Raises:
        CheckpointError: listing names that belong to no part, or parts that occur twice.
    """
    parts: dict[str, dict[str, Tensor]] = {"denoiser": {}, "static": {}, "gripper": {}}
    skipped: dict[str, list[str]] = {}
    unknown = []
    for name, tensor in tensors.items():
        prefix = next((p for p in PARTS if name.startswith(p)), None)
        rest = name.removeprefix(prefix or "")
        if prefix is None or rest in parts.get(PARTS[prefix], {}):
            unknown.append(name)
        elif PARTS[prefix] == "language":
            half = "images" if name.split(".", 2)[-1].startswith(CLIP_IMAGES) else "language"
            skipped.setdefault(REASONS[half], []).append(name)
        elif PARTS[prefix] == "denoiser" and rest in UNUSED:
            skipped.setdefault(REASONS["unused"], []).append(name)
        else:
            parts[PARTS[prefix]][rest] = tensor.float() if tensor.is_floating_point() else tensor
    if unknown:
        raise CheckpointError(
            f"{len(unknown)} tensors belong to no part of a MoDE policy: {sorted(unknown)[:6]}; expected are "
            f"names that begin with {', '.join(p for p in PARTS)}"
        )
    return parts, skipped
