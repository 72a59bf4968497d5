"""LeRobot's dictionaries as the types of `mode_policy.types`.

LeRobot gives images as float ``(B, [H,] 3, height, width)`` from 0 to 1 and everything else in raw units, as
its normaliser is the identity here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lerobot_policy_mode.instructions import Instructions
from mode_policy.errors import DataError
from mode_policy.types import ACTION, Batch, Features, Observation, feature_kind

IS_PAD = f"{ACTION}_is_pad"


def observed(batch: Mapping[str, Any], keys: Mapping[str, str], features: Features) -> dict[str, Tensor]:
    """Return what the policy observes, by our keys: vectors as they are, images as uint8, channels last.

    Args:
        batch: LeRobot's.
        keys: our key → LeRobot's.
        features: of the policy.

    Raises:
        DataError: if a feature is missing, or has another shape.
    """
    found = {}
    for ours, theirs in keys.items():
        if theirs not in batch:
            given = sorted(key for key in batch if key.startswith("observation"))
            raise DataError(
                f"the policy needs {theirs!r}, and the batch has {given}; where it only has another name, "
                f"give "
                f'--rename_map=\'{{"<its name>": "{theirs}"}}\''
            )
        value = pixels(batch[theirs]) if feature_kind(ours) == "image" else batch[theirs]
        shape = features[ours].shape
        if tuple(value.shape[-len(shape) :]) != shape:
            raise DataError(
                f"{theirs!r} has the shape {tuple(value.shape)}, and the policy needs (batch, …, "
                f"{', '.join(map(str, shape))}); it was made for other data or another environment"
            )
        found[ours] = value
    return found


def pixels(image: Tensor) -> Tensor:
    """Return images from 0 to 1, channels first, as uint8, channels last; exact for what was uint8 before."""
    if image.dtype != torch.uint8:
        image = (image * 255).round().clamp(0, 255).to(torch.uint8)
    # As cameras deliver them: the order in memory decides how convolutions round.
    return image.movedim(-3, -1).contiguous()


def with_history(values: Mapping[str, Tensor], features: Features, history: int) -> dict[str, Tensor]:
    """Give values the axis of the history, ``(B, H, …)``, where it has length 1.

    Raises:
        DataError: if they lack other observations of the history.
    """
    found = {}
    for key, value in values.items():
        single = value.ndim == 1 + len(features[key].shape)
        steps = 1 if single else value.shape[1]
        if steps != history:
            raise DataError(
                f"the policy sees {history} observations (n_obs_steps), and {key!r} comes with {steps}: "
                "whoever calls predict_action_chunk for a single one, as LeRobot's asynchronous inference "
                "and RTC do, needs a policy trained with --policy.n_obs_steps=1; lerobot-eval and "
                "--inference.type=sync keep the history"
            )
        found[key] = value[:, None] if single else value
    return found


def observation(
    values: Mapping[str, Tensor], tasks: list[str] | None, instructions: Instructions | None
) -> Observation:
    """Return an observation of `observed` values with a history."""
    by_kind: dict[str, dict[str, Tensor]] = {"state": {}, "image": {}}
    for key, value in values.items():
        by_kind[feature_kind(key)][key] = value
    embedded = None
    if instructions is not None:
        size = next(iter(values.values())).shape[0]
        embedded = instructions(tasks or [""] * size)
    states = {key: value.float() for key, value in by_kind["state"].items()}
    return Observation(states=states, images=by_kind["image"], instruction=embedded)


def tasks_of(batch: Mapping[str, Any]) -> list[str] | None:
    """Return the batch's instructions, if it has any."""
    tasks = batch.get("task")
    return [tasks] if isinstance(tasks, str) else None if tasks is None else [str(text) for text in tasks]


def training_batch(batch: Mapping[str, Any], seen: Observation, chunk: int, action_dim: int) -> Batch:
    """Return a training batch.

    Raises:
        DataError: if actions or their padding are missing, or have another shape.
    """
    for key in (ACTION, IS_PAD):
        if key not in batch:
            raise DataError(
                f"the batch has no {key!r}; LeRobotDataset gives it where delta_timestamps name the chunk's "
                f"actions"
            )
    shape = (seen.batch_size, chunk, action_dim)
    if tuple(batch[ACTION].shape) != shape or tuple(batch[IS_PAD].shape) != shape[:2]:
        raise DataError(
            f"{ACTION!r} has the shape {tuple(batch[ACTION].shape)} and its padding "
            f"{tuple(batch[IS_PAD].shape)}; the policy needs {shape} and {shape[:2]}"
        )
    return Batch(observation=seen, actions=batch[ACTION].float(), action_is_pad=batch[IS_PAD].bool())
