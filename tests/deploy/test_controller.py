"""The loop itself: what it asks, what it sends, and that the robot always ends stopped."""

import gc
import subprocess
import sys

import numpy as np
import pytest

from mode_policy.deploy.clock import Pacer, use_real_time_priority
from mode_policy.deploy.config import ActionConfig, LateConfig, LoopConfig, SafetyConfig
from mode_policy.deploy.controller import Controller
from mode_policy.deploy.guard import ObservationGuard
from mode_policy.deploy.inference import Inference
from mode_policy.deploy.interventions import Intervention
from mode_policy.deploy.policy_service import LocalEndpoint
from mode_policy.deploy.safety import SafetyFilter
from mode_policy.deploy.strategies import RealTimeChunking, Synchronous
from mode_policy.deploy.telemetry import Telemetry
from mode_policy.errors import ConfigError
from mode_policy.types import STATE
from tests import toy
from tests.conftest import ROOT
from tests.deploy.conftest import CHUNK, EXECUTE, DiaryRobot
from tests.deploy.scene import RATE, Scene, VirtualClock


def test_commands_are_the_chunks_actions_one_a_tick():
    scene = Scene(Synchronous(execute=4))
    summary = scene.run(12)
    assert scene.sent == [n + i / 100 for n in (1, 2, 3) for i in range(4)]
    assert (summary.outcome, summary.ticks, summary.chunks) == ("ticks", 12, 3)
    assert summary.interventions == {}
    assert scene.robot.stops == 1


def test_a_delay_is_bridged_by_the_old_chunk():
    scene = Scene(delay=2)
    scene.run(20)
    # Held for two ticks, then chunk 1 until chunk 2, asked for at its fourth action, takes over at its third.
    assert scene.sent[:8] == [1.0, 1.01, 1.02, 1.03, 1.04, 1.05, 2.02, 2.03]
    assert scene.summary.interventions == {"late": 2}
    assert all(round(x * 100) % 100 >= 2 for x in scene.sent[6:])


def test_requests_say_what_will_be_executed_meanwhile():
    scene = Scene(RealTimeChunking(execute=5), delay=3)
    scene.run(40)
    assert "rtc" not in scene.inference.requests[0][1]
    for number, (tick, request) in enumerate(scene.inference.requests[2:], 3):
        rtc = request["rtc"]
        assert (rtc["fixed"], rtc["mask"]) == (3, "exponential")
        executed = scene.ticks["action"][tick : tick + 3, 0]
        np.testing.assert_allclose(rtc["actions"][:3, 0], executed, rtol=1e-6)
        assert number > executed[0] > 0


def test_the_policy_sees_the_last_observations_and_the_instruction():
    scene = Scene(Synchronous(execute=2), history=3)
    scene.run(8)
    first, second = (request for _, request in scene.inference.requests[:2])
    assert first["prompt"] == "go left"
    np.testing.assert_array_equal(first[STATE][:, 0], [0, 0, 0])
    np.testing.assert_allclose(second[STATE][:, 0], [0, 1.0, 1.01])


def test_telemetry_has_every_tick():
    scene = Scene(delay=2)
    scene.run(30)
    rows = scene.ticks
    np.testing.assert_array_equal(rows["tick"], np.arange(30))
    np.testing.assert_allclose(np.diff(rows["due"]), 1 / RATE)
    sent = rows["action"][:, 0]
    np.testing.assert_allclose(sent[np.isfinite(sent)], [c[0] for c in scene.robot.commands], rtol=1e-6)
    np.testing.assert_allclose(rows["state"][5:, 0], sent[4:-1], rtol=1e-6)
    chunks, _ = scene.telemetry.chunks_since(0)
    assert len(chunks) == scene.summary.chunks
    assert chunks["observed"][0] == 0
    assert (chunks["start"][0], chunks["arrived"][0]) == (2, 2), "held until it arrived"
    assert (chunks["arrived"][1:] - chunks["observed"][1:] == 2).all()


def test_anybody_with_the_telemetry_can_stop_it(service):
    """A real loop on a real clock with the real policy, stopped from another process."""
    robot = DiaryRobot()
    telemetry = Telemetry.create(rate=RATE, actions=["x", "y"], states=["x", "y", "a"], chunk=CHUNK)
    config = SafetyConfig()
    with Inference(LocalEndpoint(service)) as inference:
        inference.wait_until_ready(60)
        controller = Controller(
            robot,
            inference,
            RealTimeChunking(execute=EXECUTE),
            SafetyFilter(ActionConfig(), config, LateConfig(), dim=2, rate=RATE, low=[-3, -1], high=[3, 1]),
            ObservationGuard({STATE: (3,)}, config),
            rate=RATE,
            prompt="go left",
            telemetry=telemetry,
        )
        code = (
            "import sys, time; from pathlib import Path\n"
            "from mode_policy.deploy.telemetry import Telemetry\n"
            "telemetry = Telemetry.attach(Path(sys.argv[1]))\n"
            "while telemetry.control['chunks'][0] < 4: time.sleep(0.01)\n"
            "telemetry.request_stop()"
        )
        other = subprocess.Popen([sys.executable, "-c", code, str(telemetry.path)], cwd=ROOT)
        summary = controller.run(ticks=60 * int(RATE))
        assert other.wait(60) == 0
    telemetry.finish()
    assert summary.outcome == "emergency stop"
    assert summary.interventions["emergency_stop"] == 1
    last = telemetry.since(0)[0][-1]
    assert last["interventions"] == Intervention.EMERGENCY_STOP
    assert np.isnan(last["action"]).all()
    assert robot.stops == 1
    data = toy.arrays()["action"]
    commands = np.stack(robot.commands)
    assert (commands >= data.min(0) * 1.2 - 0.2).all()
    assert (commands <= data.max(0) * 1.2 + 0.2).all()


def test_the_loop_makes_no_garbage():
    """Nothing in a tick needs the collector, which is off while the loop runs."""
    found = []
    for ticks in (20, 600):
        scene = Scene(RealTimeChunking(execute=5), delay=2)
        gc.collect()
        scene.run(ticks)
        found.append(gc.collect())
    assert found[1] <= found[0] + 5
    assert gc.isenabled()


# The clock


def test_deadlines_are_absolute():
    clock = VirtualClock()
    pacer = Pacer(clock.now(), 50.0)
    dues = []
    for k in range(100):
        tick, due = pacer.next(clock)
        assert tick == k
        dues.append(due)
        clock.time += 0.004 + 0.012 * (k % 2)  # a late tick does not shift the next
    np.testing.assert_allclose(dues, 1000.0 + np.arange(100) / 50)
    assert pacer.skipped == 0


def test_ticks_that_were_missed_altogether_are_left_out():
    clock = VirtualClock()
    pacer = Pacer(clock.now(), 50.0)
    assert pacer.next(clock)[0] == 0
    clock.time += 0.095
    assert pacer.next(clock)[0] == 4
    assert pacer.skipped == 3  # 1, 2 and 3
    assert clock.now() == pytest.approx(1000.095), "that one is late, but within its period"
    tick, due = pacer.next(clock)
    assert (tick, due) == (5, pytest.approx(1000.1))


def test_priorities_that_are_not_granted_are_explained(monkeypatch):
    import os

    def forbidden(*_):
        raise PermissionError("Operation not permitted")

    monkeypatch.setattr(os, "sched_setscheduler", forbidden)
    with pytest.raises(ConfigError, match=r"loop.priority=50 is not allowed here .* use loop.priority=null"):
        use_real_time_priority(50)
    scene = Scene()
    scene.controller.loop = LoopConfig(priority=50)
    with pytest.raises(ConfigError):
        scene.run()
    assert scene.robot.stops == 1
