"""Faults as they happen: signals, killed processes, a full disk, a server that goes away."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from mode_envs.realtime import RealtimeRobot, RealtimeSpec
from mode_policy.deploy.client import PolicyClient
from mode_policy.deploy.config import ActionConfig, LateConfig, SafetyConfig
from mode_policy.deploy.controller import Controller
from mode_policy.deploy.endpoints import RemoteEndpoint
from mode_policy.deploy.guard import ObservationGuard
from mode_policy.deploy.inference import Inference
from mode_policy.deploy.inference_worker import ProcessEndpoint
from mode_policy.deploy.safety import SafetyFilter
from mode_policy.deploy.strategies import RealTimeChunking
from mode_policy.deploy.telemetry import Telemetry
from mode_policy.deploy.watchdog import Watchdog
from mode_policy.errors import RobotError
from mode_policy.types import STATE
from tests.conftest import ROOT
from tests.deploy import point_env
from tests.deploy.conftest import CHUNK, EXECUTE, Running, wait_for

RATE = 100.0


class Victim:
    """The program of `tests.deploy.victim`, running."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.diary = folder / "diary"
        command = [sys.executable, "-m", "tests.deploy.victim", str(self.diary), *options]
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    @property
    def lines(self) -> list[tuple[float, str]]:
        if not self.diary.exists():
            return []
        rows = [line.split(" ", 1) for line in self.diary.read_text().splitlines()]
        return [(float(t), what) for t, what in rows]

    def wait_for_commands(self, count: int) -> None:
        wait_for(lambda: sum(w.startswith("act") for _, w in self.lines) >= count)

    def end(self, number: int | None = None) -> tuple[int, str, str]:
        if number is not None:
            self.process.send_signal(number)
        out, err = self.process.communicate(timeout=120)
        return self.process.returncode, out, err


def test_undisturbed(tmp_path):
    victim = Victim(tmp_path, "--ticks", "60", "--watchdog", "5")
    code, out, err = victim.end()
    assert (code, err) == (0, "")
    assert out.startswith("ticks")
    assert [w for _, w in victim.lines][-1] == "stop"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupted_at_any_moment_the_robot_ends_stopped(tmp_path, number):
    rng = random.Random(number)
    for i in range(3):
        folder = tmp_path / str(i)
        folder.mkdir()
        victim = Victim(folder, "--watchdog", "5")
        victim.wait_for_commands(1)
        time.sleep(rng.uniform(0, 0.1))
        code, out, err = victim.end(number)
        assert (code, err) == (0, "")
        assert out.startswith("interrupted")
        what = [w for _, w in victim.lines]
        assert what.count("stop") == 1
        assert what[-1] == "stop", "no command after it"


def test_interrupted_again_and_again(tmp_path):
    victim = Victim(tmp_path)
    victim.wait_for_commands(3)
    for _ in range(20):
        victim.process.send_signal(signal.SIGINT)
        time.sleep(0.001)
    victim.process.communicate(timeout=120)
    assert [w for _, w in victim.lines][-1] == "stop"


def test_when_the_loop_is_killed_the_watchdog_stops_the_robot(tmp_path):
    victim = Victim(tmp_path, "--watchdog", "2")
    victim.wait_for_commands(10)
    victim.process.kill()
    _, err = victim.process.communicate(timeout=60)
    wait_for(lambda: victim.lines[-1][1] == "stopped by the watchdog")
    assert "watchdog: the control loop ended unexpectedly; stopping the robot" in err


def test_when_the_loop_hangs_the_watchdog_ends_it_first(tmp_path):
    victim = Victim(tmp_path, "--watchdog", "2")
    victim.wait_for_commands(10)
    victim.process.send_signal(signal.SIGSTOP)
    wait_for(lambda: victim.lines[-1][1] == "stopped by the watchdog")
    _, err = victim.process.communicate(timeout=60)
    assert victim.process.returncode == -signal.SIGKILL, "it cannot come back and go on"
    assert "was silent for 2 s" in err
    (stopped, _), (last, _) = victim.lines[-1], victim.lines[-3]
    assert stopped - last >= 1.8


def test_a_loop_that_was_suspended_sends_no_burst(tmp_path):
    """The clock jumps for real: without a watchdog the loop comes back after a second."""
    victim = Victim(tmp_path, "--ticks", "300")
    victim.wait_for_commands(20)
    victim.process.send_signal(signal.SIGSTOP)
    time.sleep(1.0)
    victim.process.send_signal(signal.SIGCONT)
    code, out, _ = victim.end()
    assert code == 0
    _, ticks, skipped, *_ = out.split()
    assert int(skipped) >= 95
    assert int(ticks) + int(skipped) == 300
    acts = [(t, w) for t, w in victim.lines if w.startswith("act")]
    gap = max(range(1, len(acts)), key=lambda i: acts[i][0] - acts[i - 1][0])
    assert acts[gap][0] - acts[gap - 1][0] >= 0.9
    after = [t for t, _ in acts[gap : gap + 20]]
    assert after[-1] - after[0] > 0.5 * 19 / RATE, "at the control rate, not all at once"


def test_a_stopper_that_cannot_be_made_is_noticed_before_the_run(capfd):
    with pytest.raises(RobotError, match=r"could not make its stopper tests\.deploy\.victim:broken_stopper"):
        Watchdog(1.0, "tests.deploy.victim:broken_stopper", {})
    assert "no such robot" in capfd.readouterr().err


def test_a_loop_without_its_watchdog_ends(tmp_path):
    with Watchdog(5.0, "tests.deploy.victim:stopper", {"path": str(tmp_path / "diary")}) as watchdog:
        watchdog.beat()
        os.kill(watchdog.pid, signal.SIGKILL)
        watchdog._process.wait()
        with pytest.raises(RobotError, match="the watchdog process has died"):
            watchdog.beat()


def test_a_loop_that_failed_is_stopped_by_the_watchdog_too(tmp_path):
    """Its own attempt to stop the robot may be what failed."""
    diary = tmp_path / "diary"

    def failing(watchdog):
        watchdog.beat()
        raise RobotError("it cannot be commanded any more")

    watchdog = Watchdog(60.0, "tests.deploy.victim:stopper", {"path": str(diary)})
    with pytest.raises(RobotError, match="any more"), watchdog:
        failing(watchdog)
    assert "stopped by the watchdog" in diary.read_text()


# The log


def test_a_log_is_complete(tmp_path):
    pq = pytest.importorskip("pyarrow.parquet")
    victim = Victim(tmp_path, "--ticks", "150", "--log", str(tmp_path / "run.parquet"))
    code, out, _ = victim.end()
    assert code == 0
    assert out.split()[3] == "True"
    table = pq.read_table(tmp_path / "run.parquet")
    rows = int(out.split()[1])
    assert table.num_rows == rows
    actions = np.array(table["action"].to_pylist(), float)[:, 0]
    sent = [float(w.split()[1]) for _, w in victim.lines if w.startswith("act")]
    np.testing.assert_allclose(actions[np.isfinite(actions)], sent, atol=1e-4)
    assert b'"title": "victim"' in table.schema.metadata[b"mode_policy"]


def test_a_killed_loop_leaves_its_log(tmp_path):
    pq = pytest.importorskip("pyarrow.parquet")
    victim = Victim(tmp_path, "--log", str(tmp_path / "run.parquet"))
    victim.wait_for_commands(60)
    victim.end(signal.SIGKILL)
    wait_for((tmp_path / "run.parquet").exists)
    assert pq.read_table(tmp_path / "run.parquet").num_rows >= 60


def test_a_full_disk_ends_the_log_and_not_the_loop(tmp_path):
    pytest.importorskip("pyarrow.parquet")
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("a small disk cannot be mounted here; that takes root")
    try:
        victim = Victim(tmp_path, "--ticks", "600", "--log", str(disk / "run.parquet"))
        code, out, err = victim.end()
        assert (code, err) == (0, "")
        words = out.split()
        assert words[0] == "ticks"
        assert words[3] == "False"
        assert "no space left while writing" in out
        assert [w for _, w in victim.lines][-1] == "stop"
        assert list(disk.iterdir()) == [], "nothing half-written"
    finally:
        subprocess.run(["umount", disk], check=True)


# Inference


def drive(endpoint, robot, ticks, during):
    """Drive the simulated point; ``during(tick)`` is called in every tick. Return summary and records."""
    config = SafetyConfig(margin=0.2, stale_after=20.0)
    telemetry = Telemetry.create(
        rate=robot.rate, actions=["x", "y"], states=["x", "y", "a"], chunk=CHUNK, shared=False
    )
    with Inference(endpoint) as inference:
        metadata = inference.wait_until_ready(120)
        safety = SafetyFilter(
            ActionConfig(measured=(0, 1)),
            config,
            LateConfig(),
            dim=2,
            rate=robot.rate,
            low=metadata["action_min"],
            high=metadata["action_max"],
        )
        controller = Controller(
            robot,
            inference,
            RealTimeChunking(execute=EXECUTE),
            safety,
            ObservationGuard({STATE: (3,)}, config),
            rate=robot.rate,
            prompt="go left",
            telemetry=telemetry,
        )
        observe, count = robot.observe, iter(range(10**6))

        def observed():
            during(next(count), telemetry)
            return observe()

        robot.observe = observed
        robot.reset(0)
        summary = controller.run(ticks)
    return summary, telemetry.since(0)[0]


@pytest.fixture
def point():
    with RealtimeRobot(RealtimeSpec(env_id=point_env.ID, measured=(0, 1), rate=20.0)) as robot:
        yield robot


def longest_hold(rows):
    """Return first and last record of the longest stretch without an action of the policy."""
    late = np.flatnonzero(~np.isfinite(rows["proposal"][:, 0]) & np.isfinite(rows["action"][:, 0]))
    stretches = np.split(late, np.flatnonzero(np.diff(late) > 1) + 1)
    stretch = max(stretches, key=len)
    return stretch[0], stretch[-1]


def check_held_and_resumed(rows):
    first, last = longest_hold(rows)
    held = rows["action"][first : last + 1]
    np.testing.assert_array_equal(held, np.broadcast_to(rows["action"][first - 1], held.shape))
    np.testing.assert_array_equal(rows["state"][first + 2 : last + 1, :2], held[2:]), "it stood still"
    after = rows["proposal"][last + 1 :]
    assert len(after) > 3
    assert np.isfinite(after[0]).all()
    assert rows["chunk"][last + 1] > rows["chunk"][first - 1], "a new chunk, from a new observation"


def test_the_inference_process_is_killed(checkpoint, point):
    endpoint = ProcessEndpoint(checkpoint)
    killed = []

    def during(tick, telemetry):
        if not killed and telemetry.control["chunks"][0] >= 3:
            killed.append(endpoint.pid)
            os.kill(endpoint.pid, signal.SIGKILL)
        if killed and telemetry.control["chunks"][0] >= 6:
            telemetry.request_stop()

    summary, rows = drive(endpoint, point, 20 * 900, during)
    assert summary.outcome == "emergency stop", "it went on long enough"
    assert summary.losses == 1
    assert summary.interventions["late"] > 0
    check_held_and_resumed(rows)


def test_the_server_goes_away_and_comes_back(service, point):
    servers = [Running(service)]
    port, gone_at = servers[0].port, []

    def during(tick, telemetry):
        chunks = telemetry.control["chunks"][0]
        if not gone_at and chunks >= 3:
            gone_at.append(tick)
            servers.pop().close()
        if gone_at and not servers and tick >= gone_at[0] + 40:
            servers.append(Running(service, port=port))
            gone_at.append(chunks)
        if len(gone_at) == 2 and chunks >= gone_at[1] + 3:
            telemetry.request_stop()

    endpoint = RemoteEndpoint(PolicyClient(f"ws://127.0.0.1:{port}"))
    summary, rows = drive(endpoint, point, 20 * 900, during)
    servers.pop().close()
    assert summary.outcome == "emergency stop"
    assert summary.losses >= 1
    check_held_and_resumed(rows)
