"""What a plan asks of its policy, and an inference of its inputs; each is refused by name before it runs.

Legend: B batch, H history, C chunk, A action dimension, G goal width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mode_policy.diffusion.prefix import Prefix
from mode_policy.encoders.vision import check_images
from mode_policy.errors import DataError, PlanError
from mode_policy.inference.weights import bank_of
from mode_policy.nn.block import MoDEBlock
from mode_policy.nn.denoiser import Denoiser
from mode_policy.policy import MoDEPolicy
from mode_policy.types import Observation, feature_kind


def blocks_of(denoiser: Denoiser) -> list[MoDEBlock]:
    """Return a denoiser's layers."""
    return [block for block in denoiser.blocks if isinstance(block, MoDEBlock)]


def check_policy(policy: MoDEPolicy, batch: int) -> None:
    """Hold a policy to what a plan can be made of.

    Raises:
        PlanError: see `InferencePlan`.
    """
    if not isinstance(batch, int) or batch < 1:
        raise PlanError(f"batch={batch!r}; give the number of samples per call, at least 1")
    check_mode(policy)
    if policy.device.type == "meta":
        raise PlanError(
            "the policy is on the device 'meta', which holds no weights; load a checkpoint into it"
        )
    for name, weight in policy.named_parameters():
        if weight.dtype != torch.float32:
            raise PlanError(
                f"{name} is {str(weight.dtype).removeprefix('torch.')}; plans are made from float32 weights: "
                "call policy.float(), and give the plan a precision"
            )
    for i, block in enumerate(blocks_of(policy.denoiser)):
        bank_of(block)
        if block.router.scope == "token":
            raise PlanError(
                f"the router of layer {i} looks at the tokens ({type(block.router).__name__}, scope "
                "'token'), so its choice is not known beforehand; call the policy itself"
            )


def check_mode(policy: MoDEPolicy) -> None:
    """Raise `PlanError` if a policy is in training mode."""
    if policy.training:
        raise PlanError("the policy is in training mode, where routers draw; call policy.eval() first")


def check_there(block: MoDEBlock) -> None:
    """Raise `PlanError` if a layer's weights were freed."""
    if block.attention.proj.weight.numel() == 0:
        raise PlanError("the policy's weights were freed for another plan; load the checkpoint again")


def check_inputs(
    policy: MoDEPolicy, batch: int, observation: Observation, draws: Sequence[Tensor], prefix: Prefix | None
) -> None:
    """Hold what an inference is given to the policy and the plan's batch; no values are looked at.

    Args:
        policy: that acts.
        batch: B of the plan.
        observation: what it sees; features that it does not read are ignored.
        draws: noise, each ``(B, C, A)``.
        prefix: committed actions.

    Raises:
        PlanError: if the batch is another.
        DataError: naming the tensor that is missing or has another type, shape or device.
    """
    history = policy.config.history
    for key, feature in policy.features.items():
        if (kind := feature_kind(key)) == "action":
            continue
        given = observation.images if kind == "image" else observation.states
        if kind == "image":
            check_images(given, key, history, feature.shape)
        if key not in given:
            raise DataError(f"the observation has {sorted(given)}; the policy needs {key!r}")
        value = given[key]
        if value.ndim and len(value) != batch:
            raise PlanError(
                f"{len(value)} observations for a plan of batch {batch}; make a plan for that batch"
            )
        dtype = torch.uint8 if kind == "image" else torch.float32
        _fits(key, value, (batch, history, *feature.shape), dtype, policy.device)
    goal_BG = observation.instruction
    if policy.instructions is not None and goal_BG is not None:
        if goal_BG.ndim and len(goal_BG) != batch:
            raise PlanError(f"{len(goal_BG)} instructions for a plan of batch {batch}; make another plan")
        _fits("instruction", goal_BG, (batch, policy.goal_dim), torch.float32, policy.device)
    chunk = (batch, policy.config.chunk, policy.action_dim)
    for draw in draws:
        _fits("noise", draw, chunk, torch.float32, policy.device)
    if prefix is not None:
        _fits("prefix", prefix.actions, chunk, torch.float32, policy.device)
        _fits("prefix weights", prefix.weights, chunk[:2], torch.float32, policy.device)


def _fits(name: str, value: Tensor, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
    if (value.dtype, tuple(value.shape)) != (dtype, shape):
        given, needed = (str(d).removeprefix("torch.") for d in (value.dtype, dtype))
        raise DataError(f"{name!r} is {given} {tuple(value.shape)}; the plan takes {needed} {shape}")
    if value.device != device:
        raise DataError(f"{name!r} is on {value.device}, the policy on {device}; move it there")
