"""The loop itself: what it asks, what it sends, and that the robot always ends stopped."""

import dataclasses
import gc
import subprocess
import sys
import time

import numpy as np
import pytest

from mode_policy.deploy.clock import Pacer, use_real_time_priority
from mode_policy.deploy.config import ActionConfig, LateConfig, LoopConfig, SafetyConfig
from mode_policy.deploy.controller import Controller
from mode_policy.deploy.guard import ObservationGuard
from mode_policy.deploy.inference import Answer, Inference
from mode_policy.deploy.policy_service import LocalEndpoint
from mode_policy.deploy.safety import SafetyFilter
from mode_policy.deploy.strategies import Asynchronous, RealTimeChunking, Strategy, Synchronous
from mode_policy.deploy.telemetry import Telemetry
from mode_policy.errors import ConfigError, InferenceError, RobotError
from mode_policy.types import STATE
from tests import toy
from tests.conftest import ROOT
from tests.deploy.conftest import CHUNK, EXECUTE, DiaryRobot

RATE = 100.0
TOP = "observation.images.top"


class VirtualClock:
    """Time that passes when somebody sleeps; jumps where a test says so."""

    def __init__(self) -> None:
        self.time = 1000.0
        self.jumps: dict[int, float] = {}
        self.sleeps = 0

    def now(self) -> float:
        return self.time

    def sleep_until(self, deadline: float) -> None:
        self.sleeps += 1
        self.time = max(self.time, deadline) + self.jumps.pop(self.sleeps, 0.0)


class TickedInference:
    """Answers a fixed number of ticks after a request: chunk n has the actions n.00, n.01, n.02, …"""

    def __init__(self, clock, delay=0, length=10) -> None:
        self.clock, self.delay, self.length = clock, delay, length
        self.requests: list[tuple[int, dict]] = []
        self.error, self.losses, self.trouble, self.up = None, 0, "", True
        self._due: tuple[int, float] | None = None

    ready = property(lambda self: self.up and self._due is None)
    pending = property(lambda self: self._due is not None)

    def submit(self, tick, request):
        assert self.ready
        self.requests.append((tick, request))
        self._due = (tick, self.clock.now() + (self.delay - 0.5) / RATE)
        return True

    def poll(self):
        if self._due is None or self.clock.now() < self._due[1]:
            return None
        tick, self._due = self._due[0], None
        number = len(self.requests)
        actions = np.stack([number + np.arange(self.length) / 100, np.zeros(self.length)], 1)
        return Answer(tick=tick, actions=actions, seconds=0.01, policy_seconds=0.01, first=number == 1)

    def wait(self, until):
        pass

    def discard(self):
        self._due = None


class Scene:
    """A loop with everything virtual but the loop."""

    def __init__(
        self,
        strategy: Strategy | None = None,
        *,
        delay=0,
        history=1,
        late=None,
        stop_after=None,
        shapes=None,
        **safety,
    ) -> None:
        self.clock, self.robot = VirtualClock(), DiaryRobot()
        self.robot.time = self.clock.now
        self.inference = TickedInference(self.clock, delay)
        self.telemetry = Telemetry.create(
            rate=RATE, actions=["x", "y"], states=["x", "y", "a"], chunk=10, shared=False
        )
        self.lines: list[str] = []
        config = SafetyConfig(dataset_bounds=False, **safety)
        self.controller = Controller(
            self.robot,
            self.inference,
            strategy or Asynchronous(execute=5),
            SafetyFilter(ActionConfig(), config, late or LateConfig(), dim=2, rate=RATE),
            ObservationGuard(shapes or {STATE: (3,)}, config),
            rate=RATE,
            history=history,
            prompt="go left",
            stop_after=stop_after,
            telemetry=self.telemetry,
            clock=self.clock,
            say=self.lines.append,
        )

    def run(self, ticks=30):
        self.summary = self.controller.run(ticks)
        return self.summary

    @property
    def sent(self):
        return [round(float(c[0]), 2) for c in self.robot.commands]

    @property
    def ticks(self):
        return self.telemetry.since(0)[0]


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


def test_inference_that_is_lost_holds_the_robot():
    scene = Scene(stop_after=0.2)
    scene.inference.up = False
    scene.inference.trouble = "the plug was pulled"
    summary = scene.run(None)
    assert summary.outcome == "no action"
    assert "the plug was pulled" in summary.error
    assert scene.sent == [], "nothing is sent before the first action"
    assert scene.lines == ["inference lost: the plug was pulled"]
    assert scene.robot.stops == 1


def test_a_chunk_is_not_played_twice():
    scene = Scene(Asynchronous(execute=5), delay=2)
    scene.inference.up = True
    original = scene.inference.submit

    def once(tick, request):
        done = original(tick, request)
        scene.inference.up = False  # nothing is answered any more
        return done

    scene.inference.submit = once
    scene.run(30)
    assert scene.sent[:10] == [1 + i / 100 for i in range(10)]
    assert set(scene.sent[10:]) == {1.09}, "held"
    assert scene.summary.interventions == {"late": 20}


def fault(scene, ticks, break_it, mend):
    """Break the robot for some ticks in the middle of a run."""
    observe, count = scene.robot.observe, iter(range(10**6))

    def observed():
        n = next(count)
        if n == ticks[0]:
            break_it()
        if n == ticks[1]:
            mend()
        return observe()

    scene.robot.observe = observed


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_state_that_is_not_finite(value):
    scene = Scene()
    observe, n = scene.robot.observe, [0]

    def observed():
        n[0] += 1
        seen = observe()
        return (
            dataclasses.replace(seen, arrays={STATE: seen.arrays[STATE] + value}) if 10 < n[0] <= 15 else seen
        )

    scene.robot.observe = observed
    scene.run(30)
    asked = [tick for tick, _ in scene.inference.requests]
    assert scene.summary.interventions == {"observation_invalid": 5}
    assert not any(9 <= tick < 14 for tick in asked), "the policy does not see it"
    assert all(np.isfinite(r[STATE]).all() for _, r in scene.inference.requests)
    held = scene.sent[8:14]
    assert len(set(held)) == 1, "held meanwhile"
    assert 14 in asked, "afterwards a new chunk is asked for at once"
    assert "is not finite" in scene.lines[0]
    assert scene.lines[1] == "all is well again"


def test_a_missing_camera_and_a_frozen_one():
    scene = Scene(shapes={STATE: (3,), TOP: (2, 2, 3)}, images_frozen_after=0.05)
    rng = np.random.default_rng(0)

    def picture():
        return rng.integers(0, 255, (2, 2, 3)).astype(np.uint8)

    observe, n = scene.robot.observe, [0]

    def observed():
        n[0] += 1
        if not 10 < n[0] <= 12 and not 20 < n[0] <= 32:
            scene.robot.extra = {TOP: picture()}
        elif n[0] == 11:
            scene.robot.extra = {}
        elif n[0] == 21:
            scene.robot.extra = {TOP: picture()}
        return observe()

    scene.robot.observe = observed
    scene.run(40)
    counts = scene.summary.interventions
    assert counts["observation_missing"] == 2
    assert 5 <= counts["observation_frozen"] <= 8
    assert scene.lines[0] == f"{TOP} is missing"
    assert "has not changed for" in scene.lines[2]


def test_an_observation_that_stays_away_is_stale():
    scene = Scene(stale_after=0.1)
    observe, n = scene.robot.observe, [0]
    last = observe()

    def observed():
        nonlocal last
        n[0] += 1
        if n[0] < 10 or n[0] > 40:
            last = observe()
        return last

    scene.robot.observe = observed
    scene.run(60)
    assert 18 <= scene.summary.interventions["observation_stale"] <= 22


def test_a_jump_of_the_clock_causes_no_burst():
    scene = Scene(Synchronous(execute=4), stale_after=0.5)
    scene.clock.jumps[10] = 3.0  # the process was suspended for three seconds
    summary = scene.run(400)
    assert summary.outcome == "ticks"
    assert summary.skipped == 300
    assert summary.ticks == 100
    assert len(scene.sent) == 100
    times = scene.ticks["started"]
    assert np.diff(times).min() > 0.9 / RATE, "never two commands in one period"
    assert scene.sent[8:10] == [3.0, 4.0], "what it was about to do belonged to the past"


def test_the_time_of_day_does_not_matter(monkeypatch):
    def jumping():
        raise AssertionError("the loop looked at the time of day")

    scene = Scene()
    monkeypatch.setattr(time, "time", jumping)
    assert scene.run(20).ticks == 20


@pytest.mark.parametrize("where", ["observe", "act"])
def test_a_robot_that_fails_is_stopped(where):
    scene, n = Scene(), [0]
    original = getattr(scene.robot, where)

    def failing(*arguments):
        n[0] += 1
        if n[0] == 7:
            raise RobotError("the cable fell out")
        return original(*arguments)

    setattr(scene.robot, where, failing)
    with pytest.raises(RobotError, match="the cable fell out"):
        scene.run()
    assert scene.robot.stops == 1


def test_a_bug_in_the_loop_stops_the_robot_too():
    scene = Scene()
    scene.controller.safety.step = lambda *_: 1 / 0
    with pytest.raises(ZeroDivisionError):
        scene.run()
    assert scene.robot.stops == 1


def test_a_policy_that_refuses_ends_the_run():
    scene = Scene()
    scene.inference.error = InferenceError("unknown instruction")
    summary = scene.run()
    assert (summary.outcome, summary.error) == ("inference failed", "unknown instruction")
    assert scene.robot.stops == 1


def test_an_episode_that_is_over_ends_the_run():
    scene = Scene()
    observe, n = scene.robot.observe, [0]

    def observed():
        n[0] += 1
        return dataclasses.replace(observe(), done=n[0] > 12, info={"success": True})

    scene.robot.observe = observed
    summary = scene.run(None)
    assert (summary.outcome, summary.ticks, summary.info) == ("done", 12, {"success": True})


def test_actions_that_make_no_sense_are_not_sent():
    scene = Scene()
    poll = scene.inference.poll

    def nonsense():
        answer = poll()
        return answer and dataclasses.replace(answer, actions=np.full((10, 2), np.nan))

    scene.inference.poll = nonsense
    summary = scene.run(20)
    assert scene.sent == []
    assert summary.interventions == {"action_invalid": 20}


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
