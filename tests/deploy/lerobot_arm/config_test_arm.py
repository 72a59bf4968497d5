from dataclasses import dataclass

from lerobot.robots import RobotConfig


@RobotConfig.register_subclass("mode_test_arm")
@dataclass(kw_only=True)
class TestArmConfig(RobotConfig):
    __test__ = False
    diary: str
    broken: bool = False
    disable_torque_on_disconnect: bool = True
