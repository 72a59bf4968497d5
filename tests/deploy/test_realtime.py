"""The simulated robot: its own process, its own clock, and its own idea of standing still."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from mode_envs.realtime import RealtimeRobot, RealtimeSpec, stopper
from mode_policy.errors import ConfigError, RobotError
from mode_policy.types import STATE
from tests.deploy import point_env
from tests.deploy.conftest import wait_for

RATE = 25.0


def make(**changes):
    return RealtimeRobot(RealtimeSpec(env_id=point_env.ID, rate=RATE, **({"measured": (0, 1)} | changes)))


def steps(robot):
    return robot.observe().info["steps"]


def position(robot):
    return robot.observe().arrays[STATE][:2].astype(float)


def test_it_steps_whether_or_not_it_is_commanded():
    with make() as robot:
        robot.reset(0)
        start = position(robot)
        first, began = robot.observe(), time.monotonic()
        wait_for(lambda: steps(robot) >= 12)
        last = robot.observe()
        assert last.time - first.time == pytest.approx((steps(robot) - first.info["steps"]) / RATE, abs=1e-3)
        assert abs(time.monotonic() - began - (last.time - first.time)) < 2.0
        np.testing.assert_array_equal(position(robot), start), "it stays where it began"
        assert last.info["unheard"] >= 10
        robot.act(np.array([0.5, -0.5]))
        wait_for(lambda: position(robot)[0] == 0.5)
        count = steps(robot)
        wait_for(lambda: steps(robot) > count + 3)
        np.testing.assert_array_equal(position(robot), [0.5, -0.5])


def test_a_displacement_is_executed_once():
    with make(kind="delta", options={"delta": True}) as robot:
        robot.reset(0)
        start = position(robot)
        robot.act(np.array([0.25, 0.0]))
        wait_for(lambda: position(robot)[0] != start[0])
        count = steps(robot)
        wait_for(lambda: steps(robot) > count + 5)
        np.testing.assert_allclose(position(robot), start + np.array([0.25, 0.0]), atol=1e-6)


def test_without_a_dead_mans_switch_it_goes_on_until_somebody_stops_it():
    with make(kind="delta", options={"delta": True}, dead_man=False) as robot:
        robot.reset(0)
        robot.act(np.array([0.01, 0.0]))
        start = position(robot)[0]
        wait_for(lambda: position(robot)[0] > start + 0.04)
        stopper(robot.stop_address)()
        count = steps(robot)
        wait_for(lambda: steps(robot) > count + 2)
        stopped = position(robot)
        robot.act(np.array([0.5, 0.0]))
        count = steps(robot)
        wait_for(lambda: steps(robot) > count + 3)
        np.testing.assert_array_equal(position(robot), stopped), "commands are ignored from then on"
        robot.reset(1)
        robot.act(np.array([0.5, 0.0]))
        start = position(robot)[0]
        wait_for(lambda: position(robot)[0] > start + 0.4)


def test_a_reset_begins_anew_and_repeats_itself():
    with make() as robot:
        robot.reset(3)
        first = position(robot)
        robot.act(np.array([0.9, 0.9]))
        wait_for(lambda: position(robot)[0] > 0.8)
        robot.reset(3)
        np.testing.assert_array_equal(position(robot), first)
        assert steps(robot) <= 2


def test_an_episode_ends_and_is_held():
    with make(max_steps=5) as robot:
        robot.reset(0)
        wait_for(lambda: robot.observe().done)
        assert steps(robot) == 5
        time.sleep(3 / RATE)
        assert steps(robot) == 5


def test_a_robot_that_died():
    with make() as robot:
        robot.reset(0)
        os.kill(robot.pid, signal.SIGKILL)
        wait_for(lambda: robot._lost)
        for call in (robot.observe, lambda: robot.act(np.zeros(2)), robot.stop):
            with pytest.raises(RobotError, match="the simulated robot is gone"):
                call()


def test_it_ends_with_its_owner():
    owner = """import time
from tests.deploy.test_realtime import make
print(make().pid, flush=True)
time.sleep(600)"""
    with subprocess.Popen([sys.executable, "-c", owner], stdout=subprocess.PIPE, text=True) as process:
        pid = int(process.stdout.readline())
        os.kill(pid, 0)
        process.kill()
    wait_for(lambda: not running(pid))


def running(pid):
    """Whether a process, not necessarily a child of this one, is alive."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def test_it_ends_when_it_is_closed():
    robot = make()
    robot.close()
    assert robot._process.returncode == 0, "it went by itself"


def test_what_cannot_be_simulated(capfd):
    with pytest.raises(ConfigError, match="needs to know where it is"):
        RealtimeSpec(env_id=point_env.ID)
    with pytest.raises(RobotError, match="ended while starting"):
        RealtimeRobot(RealtimeSpec(env_id="mode/none-v0", kind="delta"))
    assert "none" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("task", "kind", "measured"),
    [("mode/pusht-v0", "position", (0, 1)), ("mode/metaworld-reach-v3", "delta", ())],
)
def test_the_tasks_of_this_package(task, kind, measured):
    with RealtimeRobot(RealtimeSpec(env_id=task, kind=kind, measured=measured, max_steps=20)) as robot:
        assert robot.rate == {"position": 10.0, "delta": 80.0}[kind]
        robot.reset(0)
        before = robot.observe().arrays[STATE]
        robot.act(np.array([300.0, 300.0]) if kind == "position" else np.array([1.0, 0, 0, -1]))
        wait_for(lambda: robot.observe().done)
        assert np.abs(robot.observe().arrays[STATE] - before).max() > 1e-3
        assert robot.observe().info["success"] is False
