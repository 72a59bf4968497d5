"""Robots behind the protocol: LeRobot's, and a recorded episode."""

import time
from pathlib import Path

import numpy as np
import pytest
import torch

from mode_policy.apps.control import run
from mode_policy.apps.control_loop import ControlConfig
from mode_policy.apps.robots import RobotConfig, driven, lerobot_stopper
from mode_policy.deploy.config import ActionConfig, LateConfig, LoopConfig, SafetyConfig, StrategyConfig
from mode_policy.deploy.policy_service import PolicyService
from mode_policy.deploy.robots.lerobot import LeRobotRobot
from mode_policy.deploy.robots.replay import ReplayRobot
from mode_policy.errors import DataError, RobotError
from mode_policy.normalization import compute_statistics
from mode_policy.policy import MoDEPolicy
from mode_policy.types import ACTION, STATE, Feature
from tests import toy
from tests.deploy.conftest import Running, wait_for

MOTORS = ("shoulder.pos", "elbow.pos", "gripper.pos")
DIM = len(MOTORS)


@pytest.fixture
def plugin():
    """A robot type that is registered with LeRobot, as plug-ins do."""
    pytest.importorskip("lerobot")
    from tests.deploy.lerobot_arm import TestArm

    return TestArm


@pytest.fixture
def settings(tmp_path):
    return {"type": "mode_test_arm", "diary": str(tmp_path / "diary"), "calibration_dir": str(tmp_path)}


@pytest.fixture
def arm(plugin, settings, tmp_path):
    config = plugin.config_class(diary=settings["diary"], calibration_dir=tmp_path)
    made = plugin(config)
    made.connect()
    return made


def test_a_lerobot_arm_is_driven_by_vectors(arm):
    robot = LeRobotRobot(arm, 30.0, MOTORS)
    seen = robot.observe()
    np.testing.assert_array_equal(seen.arrays["observation.state"], [0.5, 0.5, 0.5])
    assert seen.arrays["observation.images.front"].shape == (4, 6, 3)
    assert set(seen.arrays) == {"observation.state", "observation.images.front"}
    assert abs(seen.time - time.monotonic()) < 5
    robot.act(np.array([1.0, 2.0, 3.0]))
    np.testing.assert_array_equal(robot.observe().arrays["observation.state"], [1, 2, 3])


def test_stopping_makes_the_present_the_goal(arm):
    robot, sent = LeRobotRobot(arm, 30.0), []
    send = arm.send_action
    arm.send_action = lambda action: sent.append(action) or send(action)
    robot.stop()
    robot.stop()
    assert sent == [dict.fromkeys(MOTORS, 0.5)] * 2


def test_a_policy_of_another_arm_is_refused(arm):
    with pytest.raises(DataError, match=r"the policy's actions are \['elbow.pos', 'shoulder.pos'\]"):
        LeRobotRobot(arm, 30.0, ("elbow.pos", "shoulder.pos"))


def test_a_cable_that_fell_out(arm):
    robot = LeRobotRobot(arm, 30.0)
    robot.observe()
    arm.disconnect()
    for call in (robot.observe, robot.stop, lambda: robot.act(np.zeros(3))):
        with pytest.raises(RobotError, match="could not be"):
            call()


@pytest.mark.parametrize("error", [TimeoutError("frame is too old"), RuntimeError("thread is not running")])
def test_a_camera_that_hangs_leaves_an_observation_without_anything(arm, error):
    """LeRobot reads all or nothing; the loop then holds the robot, see `mode_policy.deploy.guard`."""
    robot = LeRobotRobot(arm, 30.0)
    before = robot.observe()
    arm.fault = error
    seen = robot.observe()
    assert dict(seen.arrays) == {}
    assert str(error) in seen.trouble
    assert seen.time >= before.time
    arm.fault = None
    assert set(robot.observe().arrays) == set(before.arrays), "and it comes back"


def test_a_broken_camera_does_not_keep_a_robot_from_stopping(arm):
    robot, sent = LeRobotRobot(arm, 30.0), []
    robot.observe()
    robot.act(np.array([1.0, 2.0, 3.0]))
    send = arm.send_action
    arm.send_action = lambda action: sent.append(dict(action)) or send(action)
    for error in (TimeoutError("frame is too old"), OSError("no answer")):
        arm.fault = error
        robot.stop()
    assert sent == [dict.fromkeys(MOTORS, 0.5)] * 2, "where it was read last"


def test_a_robot_that_was_never_read_is_not_told_to_go_anywhere(arm):
    arm.fault = TimeoutError("frame is too old")
    arm.send_action = pytest.fail
    LeRobotRobot(arm, 30.0).stop()


def test_a_missing_camera_is_left_out(arm):
    get = arm.get_observation
    arm.get_observation = lambda: {k: v for k, v in get().items() if k != "front"}
    assert set(LeRobotRobot(arm, 30.0).observe().arrays) == {"observation.state"}


def test_mode_control_drives_whatever_lerobot_drives(plugin, settings):
    """The whole program, from LeRobot's own configuration to its ``send_action``."""
    described = {
        STATE: Feature(shape=(DIM,), names=MOTORS),
        ACTION: Feature(shape=(DIM,), names=MOTORS),
    }
    arrays = {k: np.linspace(0, 1, 20 * DIM, dtype=np.float32).reshape(20, DIM) for k in described}
    torch.manual_seed(0)
    policy = MoDEPolicy(
        toy.config(chunk=10, execute=6), described, compute_statistics(arrays), toy.INSTRUCTIONS
    )
    server = Running(PolicyService(policy))
    config = ControlConfig(
        robot=RobotConfig(kind="lerobot", rate=30.0, lerobot=settings),
        action=ActionConfig(gripper=(2,), measured=(0, 1, 2)),
        strategy=StrategyConfig(),
        late=LateConfig(),
        safety=SafetyConfig(velocity=2.0, acceleration=40.0, stale_after=20.0),
        loop=LoopConfig(watchdog=None),
        server=server.address,
        prompt="go left",
        seconds=3.0,
    )
    (summary,) = run(config)
    server.close()
    assert summary.outcome == "ticks"
    assert summary.chunks > 0
    lines = Path(settings["diary"]).read_text().splitlines()
    assert (lines[0], lines[-1]) == ("connect True", "disconnect")
    sent = np.array([[float(x) for x in line.split()] for line in lines[1:-1]])
    assert len(sent) > 10
    np.testing.assert_array_equal(sent[-1], sent[-2]), "stopped where it was"
    steps = np.diff(np.concatenate([[[0.5, 0.5]], sent[:, :2]]), axis=0)
    assert np.abs(steps).max() <= 2.0 / 30 * 1.01


def test_an_arm_that_cannot_be_connected_is_let_go(plugin, settings):
    config = RobotConfig(kind="lerobot", rate=30.0, lerobot={**settings, "broken": True})
    with (
        pytest.raises(RobotError, match="could not be connected: no motor 3"),
        driven(config, ActionConfig(), MOTORS, 0),
    ):
        pass
    assert Path(settings["diary"]).read_text().splitlines() == ["connect True", "disconnect"]


def test_the_watchdog_stops_an_arm_over_a_connection_of_its_own(plugin, settings):
    stop = lerobot_stopper(settings, 30.0)
    assert not Path(settings["diary"]).exists(), "nothing is touched before it counts"
    stop()
    lines = Path(settings["diary"]).read_text().splitlines()
    assert lines == ["connect False", "0.5000 0.5000 0.5000"]


def test_the_watchdog_connects_motors_alone_where_it_can(plugin, settings, monkeypatch):
    """Connecting a robot configures its motors, which lets go of them; and its cameras may be what failed."""

    class Bus:
        def __init__(self, arm):
            self.arm = arm

        def connect(self):
            self.arm._write("bus connected")
            self.arm.connected = True

    monkeypatch.setattr(plugin, "bus", property(Bus), raising=False)
    stop = lerobot_stopper({**settings, "cameras": {"front": {"type": "none"}}}, 30.0)
    stop()
    lines = Path(settings["diary"]).read_text().splitlines()
    assert lines == ["bus connected", "0.5000 0.5000 0.5000"]


def test_an_arm_keeps_its_torque_when_it_is_let_go(plugin, settings):
    """LeRobot's own default is to release it, and an arm without torque falls."""
    with driven(RobotConfig(kind="lerobot", rate=30.0, lerobot=settings), ActionConfig(), MOTORS, 0) as arm:
        assert arm.robot._robot.config.disable_torque_on_disconnect is False
    asked = RobotConfig(kind="lerobot", rate=30.0, lerobot={**settings, "disable_torque_on_disconnect": True})
    with driven(asked, ActionConfig(), MOTORS, 0) as arm:
        assert arm.robot._robot.config.disable_torque_on_disconnect is True


def test_a_replay_shows_the_episode_in_real_time():
    arrays = {"observation.state": np.arange(8, dtype=np.float32)[:, None], "action": np.zeros((8, 1))}
    robot = ReplayRobot(arrays, 50.0)
    assert robot.observe().arrays["observation.state"] == [0.0]
    robot.act(np.array([5.0]))
    shown = []
    wait_for(lambda: shown.append(robot.observe()) or shown[-1].done)
    values = [int(o.arrays["observation.state"][0]) for o in shown]
    assert values == sorted(values)
    assert values[-1] == 7
    assert shown[-1].time - shown[0].time >= 7.9 / 50
    step, action = robot.actions[0]
    assert (step, action) == (0, [5.0]) or step > 0
    robot.stop()
    assert robot.stopped


def test_what_is_no_episode():
    with pytest.raises(DataError, match="arrays of one length"):
        ReplayRobot({"a": np.zeros(3), "b": np.zeros(4)}, 10.0)
    with pytest.raises(DataError, match="at least 1"):
        ReplayRobot({}, 10.0)
