"""The virtual clock: the loop unchanged, and nothing but its seed decides what happens."""

import importlib.util
import sys
import threading

import numpy as np
import pytest

from mode_envs.plant import VirtualRobot
from mode_envs.realtime import RealtimeRobot, RealtimeSpec
from mode_policy.apps.control_loop import fit
from mode_policy.deploy.clock import VirtualClock
from mode_policy.deploy.config import ActionConfig
from mode_policy.deploy.policy_service import LocalEndpoint
from mode_policy.deploy.virtual import VirtualInference
from mode_policy.errors import InferenceError
from mode_policy.types import STATE
from tests.conftest import ROOT
from tests.deploy import point_env
from tests.deploy.conftest import wait_for
from tests.deploy.test_programs import config

RATE = 25.0


def spec(**changes):
    return RealtimeSpec(env_id=point_env.ID, **({"measured": (0, 1), "rate": RATE} | changes))


def loop(*overrides):
    return config("server=ws://x", f"robot.task={point_env.ID}", "prompt=go left", *overrides)


def run(service, *overrides, seconds=0.0, ticks=60, seed=5, **changes):
    """Drive the point with the toy policy; return the telemetry."""
    clock = VirtualClock()
    robot = VirtualRobot(spec(**changes), clock)
    robot.reset(seed)
    fitted = fit(loop(*overrides), service.metadata, robot)
    telemetry = fitted.telemetry(shared=False)
    inference = VirtualInference(LocalEndpoint(service), clock, seconds)
    robot.reset(seed)
    summary = fitted.controller(robot, inference, telemetry, 0, clock=clock).run(ticks)
    return summary, telemetry


@pytest.mark.parametrize("strategy", ["synchronous", "asynchronous", "ensembling", "rtc"])
def test_a_run_repeats_itself_to_the_bit(service, strategy):
    first, second = (run(service, f"strategy.name={strategy}", seconds=0.1)[1] for _ in range(2))
    assert first.ticks.tobytes() == second.ticks.tobytes()
    assert first.chunks.tobytes() == second.chunks.tobytes()
    other = run(service, f"strategy.name={strategy}", seconds=0.1, seed=6)[1]
    assert other.ticks.tobytes() != first.ticks.tobytes()


@pytest.mark.parametrize(("seconds", "ticks"), [(0.001, 1), (0.039, 1), (0.041, 2), (0.121, 4)])
def test_delays_are_what_they_are_said_to_be(service, seconds, ticks):
    """A tick lasts 40 ms."""
    summary, telemetry = run(service, "strategy.name=asynchronous", seconds=seconds)
    chunks = telemetry.chunks_since(0)[0]
    assert set(chunks["arrived"][1:] - chunks["observed"][1:]) == {ticks}
    rows = telemetry.since(0)[0]
    np.testing.assert_allclose(np.diff(rows["due"]), 1 / RATE)
    assert (rows["started"] - rows["due"]).max() < 1e-9, "no tick is late"
    assert summary.skipped == 0


def test_a_first_chunk_may_come_within_the_tick_that_waits_for_it(service):
    summary, telemetry = run(service, "strategy.name=synchronous", "loop.wait=0.3", seconds=0.01)
    assert summary.interventions.get("late", 0) == 0
    rows = telemetry.since(0)[0]
    assert (rows["finished"] - rows["due"]).max() == pytest.approx(0.01)


def test_what_the_policy_refuses_ends_the_run(service):
    summary, _ = run(service, "prompt=dance")
    assert summary.outcome == "inference failed"
    assert "unknown instruction 'dance'" in summary.error


def test_inference_is_busy_until_its_answer_is_due():
    class Counting:
        asked = 0

        def infer(self, request):
            self.asked += 1
            return {"actions": np.full((2, 1), self.asked)}

    clock = VirtualClock()
    inference = VirtualInference(Counting(), clock, 1.0)
    assert inference.ready
    assert inference.submit(7, {})
    assert not inference.submit(8, {})
    assert inference.poll() is None
    inference.wait(0.5)
    assert clock.now() == 0.5
    inference.discard()
    assert inference.pending, "as a thread that cannot be interrupted"
    inference.wait(9.0)
    assert clock.now() == 1.0
    assert inference.poll() is None
    assert inference.submit(9, {})
    clock.sleep_until(2.0)
    assert inference.poll().tick == 9
    assert inference.poll() is None
    inference.error = InferenceError("no more")
    assert not inference.ready


def test_the_virtual_robot_does_what_the_real_one_does():
    """The same commands in the same periods: the same observations."""
    commands = {3: [0.5, -0.5], 4: [0.6, -0.4], 8: [0.0, 0.1]}
    clock = VirtualClock()
    virtual, seen = VirtualRobot(spec(), clock), []
    virtual.reset(4)
    for period in range(12):
        clock.sleep_until((period + 0.5) / RATE)
        seen.append(virtual.observe())
        if period in commands:
            virtual.act(np.array(commands[period]))
    assert [round(o.time * RATE) for o in seen] == list(range(12))
    with RealtimeRobot(spec(rate=4.0)) as real:
        real.reset(4)
        for period in range(12):
            wait_for(lambda p=period: real.observe().info["steps"] >= p)
            observation = real.observe()
            if observation.info["steps"] != period:
                pytest.skip("this machine is too busy for four periods a second")
            np.testing.assert_array_equal(observation.arrays[STATE], seen[period].arrays[STATE])
            assert observation.info["unheard"] == seen[period].info["unheard"]
            if period in commands:
                real.act(np.array(commands[period]))


def test_the_virtual_robot_stops_and_its_episode_ends():
    clock = VirtualClock()
    robot = VirtualRobot(spec(kind="delta", options={"delta": True}, max_steps=20), clock)
    robot.reset(0)
    robot.act(np.array([0.25, 0.0]))
    clock.sleep_until(5 / RATE)
    moved = robot.observe().arrays[STATE]
    robot.stop()
    robot.act(np.array([0.25, 0.0]))
    clock.sleep_until(10 / RATE)
    np.testing.assert_array_equal(robot.observe().arrays[STATE], moved)
    clock.sleep_until(30 / RATE)
    assert robot.observe().done
    assert robot.observe().info["steps"] == 20
    robot.close()


# What the benchmark measures


@pytest.fixture(scope="module")
def benchmark_code():
    path = ROOT / "benchmarks" / "_realtime.py"
    described = importlib.util.spec_from_file_location("_realtime", path)
    module = importlib.util.module_from_spec(described)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "_realtime", module)  # dataclasses look there
        described.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def moving_sizes(benchmark_code):
    return benchmark_code.moving_sizes


def rows(commands, chunks):
    n = len(commands)
    due = np.arange(n) / RATE
    return {
        "action": np.array(commands, float)[:, None] * [1, 9],
        "chunk": np.array(chunks),
        "tick": np.arange(n),
        "delay": np.full(n, 2),
        "skipped": np.zeros(n, int),
        "due": due,
        "finished": due + 0.001,
    }


def test_jumps_are_told_apart(moving_sizes):
    action, scale = ActionConfig(kind="position", gripper=(1,)), np.array([1000.0, 1.0])
    #              two chunks ......... held .... the next
    found = moving_sizes(
        rows([np.nan, 0, 1, 2, 7, 8, 8, 8, 12, 13], [-1, 0, 0, 0, 5, 5, -1, -1, 9, 9]), action, scale
    )
    assert (found["seam n"], found["seam sum"]) == (2, 5 + 4), "a robot that stays is no jump"
    assert (found["inside n"], found["inside sum"]) == (4, 4)
    assert (found["held n"], found["held sum"]) == (9, 2)
    assert found["missed"] == 0
    delta = moving_sizes(
        rows([3, 3, 0, 0, 3, 3], [0, 0, -1, -1, 4, 4]), ActionConfig(kind="delta", gripper=(1,)), scale
    )
    assert (delta["seam n"], delta["seam sum"]) == (2, 6), "it stops, and sets off again"
    assert delta["jerk n"] == 3
    np.testing.assert_allclose(delta["jerk sum"], 3 + 3 + 3)


def benchmark(name, benchmark_code, monkeypatch):
    monkeypatch.setattr(sys, "path", sys.path.copy())  # the benchmark takes the repository away from it
    monkeypatch.setitem(sys.modules, "_realtime", benchmark_code)
    described = importlib.util.spec_from_file_location(name, ROOT / f"benchmarks/{name}.py")
    module = importlib.util.module_from_spec(described)
    described.loader.exec_module(module)
    return module


def test_a_cell_is_summarised(benchmark_code, monkeypatch):
    module = benchmark("realtime_delay", benchmark_code, monkeypatch)
    sizes = {f"{name} {what}": 2 for name in ("seam", "inside", "jerk", "held") for what in ("n", "sum")}
    episode = {"key": "rtc half pusht 0", "delay ticks": 5.0, "ticks": 9, "missed": 0, **sizes}
    row = module.summarise(
        [{**episode, "success": True, "coverage": 0.96}, {**episode, "success": False, "coverage": 0.0}]
    )
    assert row["coverage"] == 0.48, "a block that was never on its target counts"
    assert row["lost"] == {"pusht": 1}
    assert row["success"] == 0.5
    assert module.summarise([{**episode, "success": True, "coverage": None}])["coverage"] is None


def test_a_record_of_a_part_stands_beside_that_of_all(benchmark_code, monkeypatch):
    module = benchmark("realtime_delay", benchmark_code, monkeypatch)
    whole = module.record_name("a", module.STRATEGIES, module.DELAYS)
    part = module.record_name("a", "rtc,asynchronous", "0,half")
    assert (whole, part) == ("a", "a_rtc-asynchronous_0-half")
    report = benchmark("realtime_report", benchmark_code, monkeypatch)

    def record(episodes, half):
        row = {"strategy": "rtc", "episodes": episodes, "low": 0, "high": 1, "coverage": None, "held": 0}
        row |= dict.fromkeys(("delay ticks", "seam", "inside", "jerk", "ticks"), 1) | {"seam / inside": 0.5}
        rows = [
            {**row, "delay": "0", "delay ms": 0, "success": 0.8},
            {**row, "delay": "half", "delay ms": 50, "success": half, "lost": {"b": 2, "a": 1}},
        ]
        return {"config": {"robot": "pusht", "rate": 10.0}, "rows": rows}

    few, many = record(20, 0.4), record(300, 0.6)
    told = report.summary({"p_virtual": few, "p_virtual_rtc_0-half": many}).splitlines()
    (row,) = [line for line in told if "rtc |" in line]
    assert "300" in row, "the most episodes are told of"
    assert "**75 %**" in row
    assert report.lost(many["rows"]).endswith("lost 1 of a, 2 of b.\n")


class Counting:
    """A policy whose every answer says how many were asked together."""

    def __init__(self):
        self.together = []

    def infer(self, requests):
        self.together.append([r["tick"] for r in requests])
        if any(r["tick"] is None for r in requests):
            raise InferenceError("no tick")
        return [np.full((1, 1), len(requests)) for _ in requests]


def ask(benchmark_code, lengths, breaks=()):
    """Run episodes of so many questions each, all at once; return what they were answered."""
    together, service = benchmark_code.Together(), Counting()
    answers = [[] for _ in lengths]

    def episode(number):
        try:
            for tick in range(lengths[number]):
                asked = None if number in breaks else tick
                answers[number].append(int(together.infer(number, {"tick": asked})["actions"][0, 0]))
        except InferenceError as error:
            answers[number].append(str(error))
        finally:
            together.ended()

    threads = [threading.Thread(target=episode, args=(n,), daemon=True) for n in range(len(lengths))]
    for thread in threads:
        together.began()
        thread.start()
    together.answer_all(service)
    for thread in threads:
        thread.join(10)
    return answers, service


def test_episodes_that_run_at_once_are_answered_together(benchmark_code):
    answers, service = ask(benchmark_code, [3, 1, 2])
    assert answers == [[3, 2, 1], [3], [3, 2]]
    assert [len(asked) for asked in service.together] == [3, 2, 1]


def test_a_refusal_ends_those_who_asked_and_no_one_waits_for_ever(benchmark_code):
    answers, _ = ask(benchmark_code, [2, 2], breaks=(1,))
    assert all(isinstance(a[-1], str) for a in answers)
    assert "no tick" in "".join(a[-1] for a in answers)
