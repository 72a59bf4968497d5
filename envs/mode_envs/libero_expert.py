"""A scripted expert for LIBERO's tasks of the form "pick this up and put it in the basket"."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from mode_envs.contract import ENVIRONMENT_STATE, STATE, ObservationDict
from mode_envs.libero_tasks import LIBERO_SUITES
from mode_policy.errors import ConfigError

_UNIT = 0.05  # metres of an action of 1
_GAIN = 1.0  # of the distance, covered in one step as far as an action reaches
_OPEN, _CLOSED = -1.0, 1.0


@dataclass(frozen=True)
class _Phase:
    """A part of the motion: go to a height (m) over the object (or basket), or wait for the fingers."""

    target: str
    height: float
    gripper: float
    tolerance: float = 0.01
    steps: int = 0  # to wait, instead of going on when there


_PHASES = (
    _Phase("object", 0.12, _OPEN, tolerance=0.02),
    _Phase("object", 0.0, _OPEN),
    _Phase("object", 0.0, _CLOSED, steps=12),
    _Phase("lift", 0.30, _CLOSED, tolerance=0.03),
    _Phase("basket", 0.30, _CLOSED, tolerance=0.02),
    _Phase("basket", 0.14, _CLOSED, tolerance=0.02),
    _Phase("basket", 0.14, _OPEN, steps=16),
    _Phase("basket", 0.30, _OPEN),
)
_PATIENCE = 40  # steps in a phase, after which the next one is tried

# The hand is a bar of these half sides (m); the palm is 3.5 cm above the point between the fingertips.
_HAND_X, _HAND_Y = 0.035, 0.11
_RADIUS = 0.035  # of what stands around (m)
_FLAT = 0.03  # centres of objects below this (m) are no obstacle, and long enough to be held off centre
_SHIFTS = (0.0, 0.01, -0.01, 0.02, -0.02, 0.025, -0.025)  # along their long side (m)


class PickAndPlace:
    """Goes above the object, grasps it, carries it over the basket and lets it fall.

    Needs ``observation.state`` and ``observation.environment_state``; acts with float32 ``(7,)`` in [-1, 1].
    The wrist keeps its orientation.

    Args:
        suite: Key in `LIBERO_SUITES`.
        task: LIBERO's name of the task.

    Raises:
        ConfigError: if the task is of another form.
    """

    def __init__(self, suite: str, task: str) -> None:
        match = re.fullmatch(r"pick_up_the_(\w+)_and_place_it_in_the_basket", task)
        bodies = LIBERO_SUITES[suite].bodies
        if match is None or f"{match[1]}_1" not in bodies:
            raise ConfigError(f"{task!r} is not of the form 'pick up … and place it in the basket'")
        self._object, self._basket = bodies.index(f"{match[1]}_1"), bodies.index("basket_1")
        self._bodies = len(bodies)
        self.reset()

    def reset(self) -> None:
        """Forget the episode so far."""
        self._phase, self._steps = 0, 0
        self._grasp: np.ndarray = np.zeros(3)

    def act(self, observation: ObservationDict) -> np.ndarray:
        """Return the action for an observation."""
        hand = observation[STATE][:3].astype(np.float64)
        poses = observation[ENVIRONMENT_STATE][: 7 * self._bodies].astype(np.float64).reshape(-1, 7)
        phase = _PHASES[self._phase]
        if phase.target == "object":
            self._grasp = self._point_to_grasp(poses)
        above = poses[self._basket, :3] if phase.target == "basket" else self._grasp
        goal = above + np.array([0.0, 0.0, phase.height])
        self._steps += 1
        there = np.abs(goal - hand).max() < phase.tolerance
        done = self._steps >= phase.steps if phase.steps else there or self._steps >= _PATIENCE
        if done and self._phase + 1 < len(_PHASES):
            self._phase, self._steps = self._phase + 1, 0
        action = np.zeros(7, np.float32)
        action[:3] = np.clip(_GAIN * (goal - hand) / _UNIT, -1.0, 1.0)
        action[6] = phase.gripper
        return action

    def _point_to_grasp(self, poses: np.ndarray) -> np.ndarray:
        """Return where to close the fingers; the palm shall hit neither this nor a tall object beside."""
        item = poses[self._object, :3].copy()
        height = item[2]
        item[2] += max(0.0, 0.75 * height - 0.015)
        if height < _FLAT:
            tall = [
                pose[:3]
                for i, pose in enumerate(poses)
                if i not in (self._object, self._basket) and pose[2] > _FLAT
            ]
            free = (
                shift
                for shift in _SHIFTS
                if all(
                    abs(x - item[0] - shift) > _HAND_X + _RADIUS or abs(y - item[1]) > _HAND_Y + _RADIUS
                    for x, y, _ in tall
                )
            )
            item[0] += next(free, 0.0)
        return item
