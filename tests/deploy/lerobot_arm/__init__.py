"""A robot as somebody's plug-in for LeRobot has it: a configuration of a type, and a class named like it.

Its motors are numbers that are at once where they are told to be; each command goes to the file ``diary``.
"""

from functools import cached_property
from pathlib import Path

import numpy as np
from lerobot.robots import Robot
from lerobot.utils.errors import DeviceNotConnectedError

from tests.deploy.lerobot_arm.config_test_arm import TestArmConfig

MOTORS = ("shoulder.pos", "elbow.pos", "gripper.pos")


class TestArm(Robot):
    __test__ = False
    config_class, name = TestArmConfig, "mode_test_arm"

    def __init__(self, config: TestArmConfig) -> None:
        super().__init__(config)
        self.config = config
        self.positions = dict.fromkeys(MOTORS, 0.5)
        self.connected = False
        self.fault: Exception | None = None  # what reading it runs into
        self.diary = Path(config.diary)

    @cached_property
    def observation_features(self):
        return {**dict.fromkeys(MOTORS, float), "front": (4, 6, 3), "front_depth": (4, 6, 1)}

    @cached_property
    def action_features(self):
        return dict.fromkeys(MOTORS, float)

    is_connected = property(lambda self: self.connected)
    is_calibrated = property(lambda self: True)

    def connect(self, calibrate=True):
        self._write(f"connect {calibrate}")
        if self.config.broken:
            raise ConnectionError("no motor 3 on the bus")
        self.connected = True

    def calibrate(self):
        pass

    def configure(self):
        pass

    def get_observation(self):
        if not self.connected:
            raise DeviceNotConnectedError
        if self.fault is not None:
            raise self.fault
        return {**self.positions, "front": np.full((4, 6, 3), 7, np.uint8)}

    def send_action(self, action):
        if not self.connected:
            raise DeviceNotConnectedError
        self.positions |= action
        self._write(" ".join(f"{value:.4f}" for value in action.values()))
        return action

    def disconnect(self):
        self._write("disconnect")
        self.connected = False

    def _write(self, line):
        with self.diary.open("a") as file:
            file.write(line + "\n")
