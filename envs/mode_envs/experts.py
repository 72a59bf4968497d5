"""Scripted experts: policies that solve a task by looking at the simulator's state."""

from __future__ import annotations

import warnings
from typing import Protocol

import numpy as np

from mode_envs.contract import STATE, ObservationDict
from mode_envs.registration import ENTRIES, entry, require
from mode_policy.errors import ConfigError


class Expert(Protocol):
    """Solves one task."""

    def reset(self) -> None:
        """Forget the episode so far."""

    def act(self, observation: ObservationDict) -> np.ndarray:
        """Return the action for an observation of the environment, within the bounds of its action space."""


class MetaWorldExpert:
    """Meta-World's scripted policy of a task.

    Needs ``observation.state``; acts with float32 ``(4,)`` in [-1, 1].
    """

    def __init__(self, task: str) -> None:
        self._make_policy = require("metaworld.policies", "metaworld").ENV_POLICY_MAP[task]
        self.reset()

    def reset(self) -> None:
        """Forget the episode so far."""
        self._policy = self._make_policy()

    def act(self, observation: ObservationDict) -> np.ndarray:
        """Return the action for an observation."""
        with warnings.catch_warnings():
            # "Constant(s) may be too high": its controllers saturate by design, and we clip.
            warnings.simplefilter("ignore")
            action = self._policy.get_action(observation[STATE].astype(np.float64))
        return np.clip(action, -1.0, 1.0).astype(np.float32)


def make_expert(env_id: str) -> Expert:
    """Make the expert of an environment, given by gymnasium id or task name.

    Raises:
        ConfigError: if the task is unknown or has no expert.
        SimulatorError: if its simulator is not installed.
    """
    task = entry(env_id)
    if not task.has_expert:
        able = ", ".join(e.task for e in ENTRIES.values() if e.has_expert)
        raise ConfigError(f"{task.task!r} has no scripted expert; these have one: {able}")
    if "suite" in task.kwargs:
        from mode_envs.libero_expert import LiberoExpert

        return LiberoExpert(task.kwargs["suite"], task.task)
    return MetaWorldExpert(task.task)
