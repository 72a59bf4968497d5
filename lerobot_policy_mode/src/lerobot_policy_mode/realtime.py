"""LeRobot's real-time chunking in the terms of `mode_policy.diffusion.prefix`.

LeRobot's own guidance is written for flow matching; here the prefix is held in the denoiser that the sampler
calls, so ``max_guidance_weight`` has no meaning.
"""

from __future__ import annotations

import torch
from lerobot.configs import RTCAttentionSchedule
from lerobot.policies.rtc.configuration_rtc import RTCConfig
from torch import Tensor

from mode_policy.diffusion.prefix import MaskForm, Prefix, soft_mask
from mode_policy.errors import DataError

MASKS: dict[RTCAttentionSchedule, MaskForm] = {
    RTCAttentionSchedule.EXP: "exponential",
    RTCAttentionSchedule.LINEAR: "linear",
    RTCAttentionSchedule.ZEROS: "none",
}


def left_over_prefix(
    left_over: Tensor | None,
    delay: int,
    horizon: int | None,
    config: RTCConfig | None,
    *,
    shape: tuple[int, int, int],
    device: torch.device,
) -> Prefix | None:
    """Return the prefix that a chunk continues.

    Args:
        left_over: actions ``(T, A)`` or ``(B, T, A)`` that are not executed yet, raw units. LeRobot fills
            them up with rows of zeros to a fixed length; these are left out.
        delay: so many of them will have been executed when the chunk arrives: they are fixed.
        horizon: from there on the chunk is free; by default as ``config`` says, else the end of
            ``left_over``.
        config: LeRobot's; the form of the mask and whether there is a prefix at all.
        shape: B, C, A of the chunk.
        device: of the policy.

    Raises:
        DataError: if the actions have another shape.
    """
    if left_over is None or left_over.numel() == 0 or (config is not None and not config.enabled):
        return None
    batch, chunk, dim = shape
    actions = left_over if left_over.ndim == 3 else left_over[None]
    if actions.ndim != 3 or actions.shape[2] != dim or actions.shape[0] not in (1, batch):
        raise DataError(
            f"prev_chunk_left_over has the shape {tuple(left_over.shape)}; it needs to be (T, {dim}) or "
            f"({batch}, T, {dim}), in raw units"
        )
    filled = actions.abs().sum((0, 2)).nonzero()
    length = min(int(filled.max()) + 1 if len(filled) else 0, chunk)
    if length == 0:
        return None
    if horizon is None:
        horizon = length if config is None else config.execution_horizon
    overlap = min(length, horizon)
    schedule = RTCAttentionSchedule.EXP if config is None else config.prefix_attention_schedule
    fixed = overlap if schedule is RTCAttentionSchedule.ONES else min(delay, length)
    weights = soft_mask(chunk, fixed, overlap, MASKS.get(schedule, "none"))
    held = torch.zeros(shape, device=device)
    held[:, :length] = actions[:, :length].to(held)
    return Prefix(actions=held, weights=torch.tensor(weights, device=device).expand(batch, chunk))
