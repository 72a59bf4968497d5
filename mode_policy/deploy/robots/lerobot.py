"""Every robot that LeRobot drives (``lerobot.robots.Robot``), behind our protocol.

LeRobot names each motor; we carry one vector. The order of its names is the order of its features, and it is
compared with the names in the policy's features, so that a policy never drives another arm's joints.
Nothing of LeRobot is imported here: the caller makes and connects the robot.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from mode_policy.deploy.robots.base import RobotObservation
from mode_policy.errors import DataError, RobotError

STATE = "observation.state"
IMAGE_PREFIX = "observation.images."


class LeRobotLike(Protocol):
    """The part of ``lerobot.robots.Robot`` that is used."""

    @property
    def observation_features(self) -> Mapping[str, Any]:
        """Motor → float, camera → shape."""

    @property
    def action_features(self) -> Mapping[str, Any]:
        """Motor → float."""

    def get_observation(self) -> Mapping[str, Any]:
        """Read motors and cameras."""

    def send_action(self, action: dict[str, Any]) -> Mapping[str, Any]:
        """Write goal positions."""


class LeRobotRobot:
    """A connected LeRobot robot.

    Args:
        robot: made and connected by LeRobot.
        rate: control rate of the demonstrations, in Hz.
        action_names: names of the policy's action dimensions; empty if its data had none.

    Raises:
        DataError: if the policy's names are not those of the robot, in the same order.
    """

    def __init__(self, robot: LeRobotLike, rate: float, action_names: Sequence[str] = ()) -> None:
        self.rate = rate
        self._robot = robot
        self._motors = [key for key, kind in robot.observation_features.items() if kind is float]
        self._cameras = [  # colour only; depth has one channel
            key
            for key, kind in robot.observation_features.items()
            if isinstance(kind, tuple) and kind[-1] == 3
        ]
        self._actions = list(robot.action_features)
        self._positions: dict[str, Any] = {}  # as they were read last
        if action_names and list(action_names) != self._actions:
            raise DataError(
                f"the policy's actions are {list(action_names)}, the robot takes {self._actions}; "
                "they were made for different robots"
            )

    def observe(self) -> RobotObservation:
        """Read motors and cameras.

        LeRobot reads all or nothing, so a camera that hangs leaves an observation without anything in it: the
        robot is held until it comes back.

        Raises:
            RobotError: if the motors cannot be read.
        """
        try:
            raw = self._robot.get_observation()
        except (TimeoutError, RuntimeError) as error:  # of a camera; those of motors are ConnectionErrors
            return RobotObservation(arrays={}, time=time.monotonic(), trouble=f"the robot says: {error}")
        except OSError as error:
            raise RobotError(f"the robot could not be read: {error}") from error
        self._positions = {name: float(raw[name]) for name in self._actions if name in raw}
        arrays = {
            IMAGE_PREFIX + name: np.asarray(raw[name], np.uint8) for name in self._cameras if name in raw
        }
        if all(name in raw for name in self._motors):
            arrays[STATE] = np.array([raw[name] for name in self._motors], np.float32)
        return RobotObservation(arrays=arrays, time=time.monotonic())

    def act(self, action: np.ndarray) -> None:
        """Write goal positions.

        Raises:
            RobotError: if LeRobot cannot write them.
        """
        self._send({name: float(value) for name, value in zip(self._actions, action, strict=True)})

    def stop(self) -> None:
        """Make the present positions the goal: position-controlled motors then stay where they are.

        If they cannot be read, those that were read last: a broken camera must not keep a robot moving.
        """
        with contextlib.suppress(RobotError):
            self.observe()
        if self._positions:  # else it was never read, and so never moved
            self._send(self._positions)

    def _send(self, action: dict[str, Any]) -> None:
        try:
            self._robot.send_action(action)
        except (OSError, RuntimeError) as error:
            raise RobotError(f"the robot could not be commanded: {error}") from error
