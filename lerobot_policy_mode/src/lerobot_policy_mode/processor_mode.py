"""LeRobot's processors for a MoDE policy: names, batch axis, device. Nothing is normalised here.

LeRobot's normaliser is among the steps, because its programs address it by name, but does nothing: the policy
normalises by itself, so that its actions are those of `mode_policy`, to the bit, angles and constant
dimensions included.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lerobot.processor import PolicyAction, PolicyProcessorPipeline, make_default_pre_post_processors

from lerobot_policy_mode.configuration_mode import ModeConfig


def make_mode_pre_post_processors(
    config: ModeConfig,
    dataset_stats: Mapping[str, Mapping[str, Any]] | None = None,
) -> tuple[
    PolicyProcessorPipeline[dict[str, Any], dict[str, Any]],
    PolicyProcessorPipeline[PolicyAction, PolicyAction],
]:
    """Return the pipelines before and after the policy.

    Args:
        config: of the policy.
        dataset_stats: saved with the pipelines, as LeRobot's tools expect it.
    """
    pipelines: tuple[Any, Any] = make_default_pre_post_processors(config, dataset_stats)
    return pipelines
