"""Limits as they are configured, turned into one number for each action dimension."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mode_policy.deploy.config import ActionConfig, LateConfig, SafetyConfig
from mode_policy.errors import ConfigError


def vector(name: str, value: float | Sequence[float] | np.ndarray, dim: int) -> np.ndarray:
    """Return ``(dim,)`` numbers, the same for each dimension if one is given.

    Raises:
        ConfigError: if there are more or fewer, or one that is none.
    """
    numbers = np.asarray(value, np.float64)
    if numbers.ndim > 0 and numbers.shape != (dim,):
        raise ConfigError(f"{name} has {len(numbers)} numbers, the action has {dim} dimensions")
    if np.isnan(numbers).any():
        raise ConfigError(f"{name} is {numbers.tolist()}, which limits nothing")
    return np.broadcast_to(numbers, (dim,)).copy()


def bounds(
    safety: SafetyConfig,
    dim: int,
    low: Sequence[float] | np.ndarray | None,
    high: Sequence[float] | np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Intersect the demonstrations' range, widened, with the user's bounds.

    Raises:
        ConfigError: if one of them has another number of dimensions.
    """
    lower = vector("low", -np.inf if safety.low is None else safety.low, dim)
    upper = vector("high", np.inf if safety.high is None else safety.high, dim)
    if safety.dataset_bounds and low is not None and high is not None:
        smallest, largest = vector("the smallest action", low, dim), vector("the largest action", high, dim)
        wider = safety.margin * (largest - smallest)
        lower, upper = np.maximum(lower, smallest - wider), np.minimum(upper, largest + wider)
    return lower, upper


def check(action: ActionConfig, safety: SafetyConfig, late: LateConfig, dim: int) -> None:
    """Hold what is configured to the number of action dimensions, and to itself.

    Raises:
        ConfigError: saying what contradicts what.
    """
    if bad := [i for i in action.gripper if i >= dim]:
        raise ConfigError(f"action.gripper names dimension {bad[0]}, the action has {dim} (counted from 0)")
    if action.measured is not None and len(action.measured) != dim:
        raise ConfigError(
            f"action.measured has {len(action.measured)} entries, the action has {dim} dimensions; "
            "give one for each, -1 where nothing measures it"
        )
    if late.behaviour == "safe_pose":
        if action.kind == "delta":
            raise ConfigError(
                "late.behaviour=safe_pose needs actions that are positions; use hold or slow_to_stop"
            )
        if late.pose is None or len(late.pose) != dim:
            raise ConfigError(f"late.pose={late.pose} must have {dim} numbers, one for each action dimension")
        if safety.velocity is None:
            raise ConfigError(
                "late.behaviour=safe_pose needs safety.velocity: without a limit the robot would jump there"
            )
