"""What the loop does when robot, inference or the machine fail it."""

import dataclasses
import signal
import time

import numpy as np
import pytest

from mode_policy.deploy.interventions import BLIND
from mode_policy.deploy.strategies import Asynchronous, RealTimeChunking, Synchronous
from mode_policy.errors import InferenceError, RobotError
from mode_policy.types import STATE
from tests.deploy.scene import RATE, TOP, Scene


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
    scene.run(130)
    asked = [tick for tick, _ in scene.inference.requests]
    assert scene.summary.interventions == {"observation_invalid": 5}
    assert not any(9 <= tick < 14 for tick in asked), "the policy does not see it"
    assert all(np.isfinite(r[STATE]).all() for _, r in scene.inference.requests)
    held = scene.sent[8:14]
    assert len(set(held)) == 1, "held meanwhile"
    assert 14 in asked, "afterwards a new chunk is asked for at once"
    assert "is not finite" in scene.lines[0]
    assert scene.lines[1:] == ["all is well again"]


def test_troubles_that_come_and_go_are_told_of_once():
    scene, n = Scene(), [0]
    observe = scene.robot.observe

    def observed():
        n[0] += 1
        if n[0] == 60:
            scene.inference.trouble = "the plug was pulled"
        if n[0] == 80:
            scene.inference.trouble = ""
        return dataclasses.replace(observe(), **({"arrays": {}} if n[0] % 2 and n[0] < 100 else {}))

    scene.robot.observe = observed
    scene.run(300)
    assert len(scene.lines) == 3
    assert scene.lines[0] == "observation.state is missing"
    assert "inference lost: the plug was pulled" in scene.lines[1], "what is new is told of"
    assert scene.lines[2] == "all is well again"


def test_what_follows_a_blindness_does_not_continue_what_was_before():
    """Neither observations of before, nor a chunk that was asked for before, are used afterwards."""
    scene, n = Scene(history=3, delay=4), [0]
    observe = scene.robot.observe

    def observed():
        n[0] += 1
        seen = observe()
        return dataclasses.replace(
            seen, arrays={} if 16 <= n[0] <= 17 else seen.arrays, trouble="dark" * (n[0] == 16)
        )

    scene.robot.observe = observed
    scene.run(40)
    chunks = scene.telemetry.chunks_since(0)[0]
    dark = scene.ticks["tick"][scene.ticks["interventions"] & BLIND != 0]
    before = [tick for tick, _ in scene.inference.requests if tick < dark[0]][-1]
    assert dark[0] - before < 4, "one was on its way"
    assert before not in chunks["observed"]
    after = next(request for tick, request in scene.inference.requests if tick > dark[-1])
    np.testing.assert_array_equal(after[STATE], after[STATE][-1:].repeat(3, 0))
    assert scene.lines[0].startswith("dark; observation.state is missing")


def test_the_policy_sees_no_observation_twice():
    """A robot that is slower than the loop shows the same one again."""
    scene, n = Scene(Synchronous(execute=1), history=2), [0]
    observe, last = scene.robot.observe, [None]

    def observed():
        n[0] += 1
        if n[0] % 2:
            last[0] = observe()
        return last[0]

    scene.robot.observe = observed
    scene.run(20)
    for _, request in scene.inference.requests[3:]:
        first, second = request[STATE][:, 0]
        assert first != second


def test_a_robot_with_another_clock_is_held_and_does_not_hang_the_loop():
    scene = Scene(stop_after=0.2)
    scene.robot.time = lambda: 1.7e9
    summary = scene.run(None)
    assert summary.outcome == "no action"
    assert "is it another clock's?" in summary.error
    assert scene.sent == []


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
    assert "has not changed for" in scene.lines[1]


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


@pytest.mark.parametrize("when", ["observe", "stop"])
def test_an_interrupt_in_the_tick_that_ends_an_episode_is_not_lost(when):
    """Otherwise the next episode would begin."""
    scene, n = Scene(), [0]
    observe, stop = scene.robot.observe, scene.robot.stop

    def interrupt():
        signal.raise_signal(signal.SIGINT)

    def observed():
        n[0] += 1
        if n[0] == 12 and when == "observe":
            interrupt()
        return dataclasses.replace(observe(), done=n[0] == 12)

    def stopped():
        if when == "stop":
            interrupt()
        stop()

    scene.robot.observe, scene.robot.stop = observed, stopped
    summary = scene.run(None)
    assert (summary.outcome, summary.ticks) == ("interrupted", 11)
    assert scene.robot.stops == 1


def test_a_chunk_that_is_not_finite_is_not_continued():
    scene = Scene(RealTimeChunking(execute=5), delay=2)
    poll = scene.inference.poll

    def broken():
        answer = poll()
        if answer is not None and len(scene.inference.requests) == 3:
            answer.actions[4:] = np.nan
        return answer

    scene.inference.poll = broken
    scene.run(60)
    assert all(np.isfinite(r["rtc"]["actions"]).all() for _, r in scene.inference.requests if "rtc" in r)
    assert scene.summary.interventions["action_invalid"] > 0
    assert np.isfinite(scene.robot.commands).all()


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
