"""What the control loop needs of a robot.

Implementations: `mode_envs.realtime.RealtimeRobot` (any task of ``mode_envs``, simulated in real time),
`mode_policy.deploy.robots.lerobot.LeRobotRobot` (every robot that LeRobot drives) and
`mode_policy.deploy.robots.replay.ReplayRobot` (a recorded episode).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np


@dataclass(frozen=True, kw_only=True)
class RobotObservation:
    """What a robot reports.

    Attributes:
        arrays: feature key → value of one time step, in raw units (`mode_policy.types` has the legend).
        time: when it was captured, in seconds of `time.monotonic`.
        trouble: why something is missing from it, or "".
        done: whether the episode is over, where a robot knows episodes.
        info: anything else, e.g. ``success``.
    """

    arrays: Mapping[str, np.ndarray]
    time: float
    trouble: str = ""
    done: bool = False
    info: Mapping[str, Any] = field(default_factory=dict)


class RobotInterface(Protocol):
    """A robot that takes one command per tick."""

    @property
    def rate(self) -> float:
        """Commands per second that it expects."""

    def observe(self) -> RobotObservation:
        """Return the newest observation without waiting for a newer one.

        Raises:
            RobotError: if the robot cannot be reached.
        """

    def act(self, action: np.ndarray) -> None:
        """Send one command ``(A,)`` in raw units.

        Raises:
            RobotError: if the robot cannot be reached.
        """

    def stop(self) -> None:
        """Bring the robot to its safe state; allowed at any time and more than once."""
