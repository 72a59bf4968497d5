"""A robot of LeRobot's without hardware: ``lerobot-rollout --robot.type=mode_simulation --robot.task=pusht``.

The simulator runs in a process and at a rate of its own, like a robot: it does not wait for commands
(`mode_envs.realtime`). Its motors are the dimensions of the task's state and action, by their names.
"""

from __future__ import annotations

import logging
from functools import cached_property
from typing import Any

import numpy as np
from lerobot.robots import Robot
from lerobot.utils.errors import DeviceNotConnectedError

from lerobot_policy_mode.config_simulated_robot import SimulatedRobotConfig
from mode_envs import register
from mode_envs.features import convention, features
from mode_envs.realtime import RealtimeRobot, RealtimeSpec
from mode_envs.registration import entry
from mode_policy.errors import DataError
from mode_policy.types import ACTION, IMAGE_PREFIX, STATE

log = logging.getLogger(__name__)


class SimulatedRobot(Robot):
    """A simulated task behind LeRobot's interface.

    A dimension that is commanded to a position is called as the dimension of the state that measures it, so
    that LeRobot can move the robot back to where it began; displacements are called ``<name>.vel``.

    Args:
        config: which task, and how.

    Raises:
        ConfigError: if there is no such task.
    """

    config_class = SimulatedRobotConfig
    name = "mode_simulation"

    def __init__(self, config: SimulatedRobotConfig) -> None:
        super().__init__(config)
        self.config = config
        self._entry = entry(config.task)
        self._features = features(
            self._entry.env_id, "both" if config.images else "state", image_size=config.image_size
        )
        self._convention = convention(self._entry.env_id)
        self._positions = self._convention.action_kind == "absolute"
        self._robot: RealtimeRobot | None = None

    @cached_property
    def _motors(self) -> list[str]:
        return [f"{name}.pos" for name in self._features[STATE].names]

    @cached_property
    def _commands(self) -> list[str]:
        names = self._features[ACTION].names
        return self._motors[: len(names)] if self._positions else [f"{name}.vel" for name in names]

    @cached_property
    def observation_features(self) -> dict[str, Any]:
        """Motor → float, camera → shape."""
        cameras = {
            k.removeprefix(IMAGE_PREFIX): f.shape for k, f in self._features.items() if IMAGE_PREFIX in k
        }
        return {**dict.fromkeys(self._motors, float), **cameras}

    @cached_property
    def action_features(self) -> dict[str, Any]:
        """Motor → float."""
        return dict.fromkeys(self._commands, float)

    @property
    def is_connected(self) -> bool:
        """Whether the simulator runs."""
        return self._robot is not None

    @property
    def is_calibrated(self) -> bool:
        """There is nothing to calibrate."""
        return True

    def connect(self, calibrate: bool = True) -> None:
        """Start the simulator and begin the episode.

        Raises:
            RobotError: if the simulator does not start.
        """
        config, dim = self.config, len(self._commands)
        register()
        self._robot = RealtimeRobot(
            RealtimeSpec(
                env_id=self._entry.env_id,
                rate=config.rate or self._convention.fps,
                max_steps=config.max_steps,
                kind="position" if self._positions else "delta",
                gripper=() if self._convention.gripper == "none" else (dim - 1,),
                measured=tuple(range(dim)) if self._positions else (),
                options={"obs_mode": "both" if config.images else "state"}
                | ({"image_size": tuple(config.image_size)} if config.image_size else {}),
            )
        )
        self._robot.reset(config.seed)

    def calibrate(self) -> None:
        """Nothing to do."""

    def configure(self) -> None:
        """Nothing to do."""

    def get_observation(self) -> dict[str, Any]:
        """Return the newest observation, motor by motor.

        Raises:
            DeviceNotConnectedError: if it is not connected.
            RobotError: if the simulator is gone.
        """
        arrays = self._connected().observe().arrays
        state = dict(zip(self._motors, map(float, arrays[STATE]), strict=True))
        return {**state, **{k.removeprefix(IMAGE_PREFIX): v for k, v in arrays.items() if IMAGE_PREFIX in k}}

    def send_action(self, action: dict[str, Any]) -> dict[str, Any]:
        """Command every motor; what is no motor is passed over.

        Raises:
            DataError: if a motor has no command.
            DeviceNotConnectedError: if it is not connected.
        """
        if missing := [name for name in self._commands if name not in action]:
            raise DataError(f"the action commands {sorted(action)}; this robot needs {missing} too")
        sent = {name: float(action[name]) for name in self._commands}
        self._connected().act(np.array(list(sent.values()), np.float32))
        return sent

    def disconnect(self) -> None:
        """Say how the episode went and end the simulator.

        Raises:
            DeviceNotConnectedError: if it is not connected.
        """
        robot = self._connected()
        seen = robot.observe()
        log.info(
            "%s: success %s after %d steps, %d of them without a command",
            *(self.config.task, seen.info["success"], seen.info["steps"], seen.info["unheard"]),
        )
        robot.close()
        self._robot = None

    def _connected(self) -> RealtimeRobot:
        if self._robot is None:
            raise DeviceNotConnectedError(f"{self} is not connected; call connect() first")
        return self._robot
