"""The monitor: its data, its locks, and the page in a real browser."""

import http.client
import json
import socket
import struct
import threading
import time

import numpy as np
import pytest

from mode_envs.realtime import RealtimeRobot, RealtimeSpec
from mode_policy.deploy.config import ActionConfig, LateConfig, SafetyConfig
from mode_policy.deploy.controller import Controller
from mode_policy.deploy.guard import ObservationGuard
from mode_policy.deploy.inference import Inference
from mode_policy.deploy.interventions import Intervention
from mode_policy.deploy.monitor.page import PAGE, SCRIPT, STYLE
from mode_policy.deploy.monitor.server import MonitorServer
from mode_policy.deploy.monitor.state import Watched
from mode_policy.deploy.policy_service import LocalEndpoint
from mode_policy.deploy.safety import SafetyFilter
from mode_policy.deploy.strategies import RealTimeChunking
from mode_policy.deploy.telemetry import Telemetry
from mode_policy.errors import ConfigError
from mode_policy.types import STATE
from tests.deploy import point_env
from tests.deploy.browser import Browser
from tests.deploy.conftest import CHUNK, EXECUTE, wait_for

#: Shows a page ticks and chunks of two episodes, as one that opens late gets them.
SEVERAL = """fetch('/state').then(answer => answer.json()).then(s => {
    const row = (episode, n) => ({...s.ticks[0], ...s.chunks.at(-1), episode, tick: n, start: n});
    show({...s, run: 'another', ticks: [row(0, 7), row(1, 0)], chunks: [row(0, 7)]});
    return [ticks.length, ticks[0].tick, chunks.length];
})"""


@pytest.fixture
def telemetry():
    made = Telemetry.create(
        rate=50.0, actions=["x", "y"], states=["a"], chunk=4, cameras={"top": (2, 3, 3)}, title="a title"
    )
    yield made
    made.finish()


def record(telemetry, tick, interventions=0, episode=0, late=0.001, time=None, skipped=0, losses=0):
    t = tick if time is None else time
    telemetry.record(
        (
            *(episode, tick, t, t + late, t + late + 0.001, t),
            *(tick // 4, tick % 4, 2, 0.028, 0.01, interventions, skipped, losses),
            *([0.5, np.nan], [0.5, 0.25], [1.0]),
        )
    )


def ask(server, path, method="GET", headers=None):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    connection.request(method, path, headers=headers or {})
    answer = connection.getresponse()
    return answer.status, answer.read(), dict(answer.getheaders())


def test_the_state_holds_what_happened(telemetry):
    watched = Watched(telemetry.path)
    for tick in range(8):
        record(telemetry, tick, Intervention.LATE | Intervention.JERK if tick == 5 else 0)
    telemetry.record_chunk(3, 4, 4, 6, 2, np.ones((4, 2)))
    state = watched.state(0, 0)
    assert [t["tick"] for t in state["ticks"]] == list(range(8))
    assert state["ticks"][5]["interventions"] == ["jerk", "late"]
    assert state["ticks"][0]["proposal"] == [0.5, None], "JSON has no NaN"
    assert state["ticks"][0]["late"] == 1.0
    assert state["interventions"] == {"jerk": 1, "late": 1}
    assert state["chunks"] == [{"episode": 3, "start": 4, "fixed": 2, "actions": [[1.0, 1.0]] * 4}]
    assert state["latencies"]["counts"][state["latencies"]["bounds"].index(30)] == 1
    assert json.loads(json.dumps(state)) == state
    again = watched.state(state["after"], state["chunks_after"])
    assert again["ticks"] == []
    assert again["interventions"] == {"jerk": 1, "late": 1}, "counted once"


def test_it_says_what_becomes_of_the_loop(telemetry, monkeypatch):
    watched = Watched(telemetry.path)
    assert watched.state(0, 0)["status"] == "starting"
    record(telemetry, 0)
    assert watched.state(0, 0)["status"] == "silent", "its heartbeat is that of long ago"
    telemetry.rest(True)
    assert watched.state(0, 0)["status"] == "between episodes"
    telemetry.rest(False)
    assert watched.state(0, 0)["status"] == "silent"
    telemetry.request_stop()
    assert watched.state(0, 0)["status"] == "stopping"
    telemetry.finish()
    assert watched.state(0, 0)["status"] == "finished"
    monkeypatch.setattr("mode_policy.deploy.monitor.state.is_alive", lambda pid: False)
    telemetry.control["finished"] = 0
    assert watched.state(0, 0)["status"] == "died"


def test_it_says_when_the_robot_is_held_and_why(telemetry):
    watched, now = Watched(telemetry.path), time.monotonic() + 1000
    for tick, (flags, expected) in enumerate(
        [
            (Intervention(0), "running"),
            (Intervention.LATE, "holding"),
            (Intervention.OBSERVATION_FROZEN, "holding"),
            (Intervention.BOUNDS | Intervention.JERK, "running"),
        ]
    ):
        record(telemetry, tick, flags, time=now, losses=tick)
        state = watched.state(0, 0)
        assert (state["status"], state["losses"]) == (expected, tick)


def test_deadlines_are_missed_by_being_late_or_left_out(telemetry):
    watched = Watched(telemetry.path)
    for tick, (late, skipped) in enumerate([(0.001, 0), (0.0195, 0), (0.018, 0), (0.001, 3), (0.05, 3)]):
        record(telemetry, tick, late=late, skipped=skipped)
    assert watched.state(0, 0)["misses"] == 2 + 3, "a tick lasts 20 ms"
    record(telemetry, 5, skipped=4)
    assert watched.state(0, 0)["misses"] == 2 + 4
    for tick, skipped in enumerate([1, 1, 2]):
        record(telemetry, tick, episode=1, skipped=skipped)
    assert watched.state(0, 0)["misses"] == 2 + 4 + 2, "each episode counts from zero"
    record(telemetry, 0, episode=2, skipped=5)
    assert watched.state(0, 0)["misses"] == 2 + 4 + 2 + 5
    assert Watched(telemetry.path).state(0, 0)["misses"] == 2 + 4 + 2 + 5, "seen all at once"


def test_it_waits_for_a_loop_and_follows_to_the_next(tmp_path, monkeypatch):
    monkeypatch.setattr("mode_policy.deploy.runtime.folder", lambda: tmp_path)
    watched = Watched()
    assert watched.state(0, 0) == {"status": "waiting"}
    for title in ("first", "second"):
        telemetry = Telemetry.create(rate=1.0, actions=["x", "y"], states=["a"], title=title)
        record(telemetry, 0)
        assert watched.state(0, 0)["title"] == title
        telemetry.finish()


def test_the_locks(telemetry):
    with MonitorServer(Watched(telemetry.path), 0) as server:
        assert ask(server, "/stop", "POST")[0] == 403, "a form on a foreign page can send this much"
        assert not telemetry.stop_requested
        assert ask(server, "/state", headers={"Host": "evil.example:80"})[0] == 403, "rebound names"
        assert ask(server, "/state", headers={"Host": "localhost"})[0] == 200, "as for port 80"
        assert ask(server, "/nothing")[0] == 404
        assert ask(server, "/state?since=x&chunks=%00")[0] == 200
        assert ask(server, "/camera/none")[0] == 404
        assert ask(server, "/camera/top")[0] == 404, "no picture yet"
        telemetry.show("top", np.arange(18, dtype=np.uint8).reshape(2, 3, 3))
        status, body, headers = ask(server, "/camera/top")
        assert (status, headers["X-Shape"], body) == (200, "2x3x3", bytes(range(18)))
        assert "default-src 'self'" in headers["Content-Security-Policy"]
        assert ask(server, "/stop", "POST", {"X-Mode-Monitor": "stop"})[0] == 200
        assert telemetry.stop_requested
        with pytest.raises(ConfigError, match="cannot listen at port"):
            MonitorServer(Watched(telemetry.path), server.port)


def test_a_page_that_is_closed_in_the_middle_is_no_error(telemetry, capfd):
    telemetry.show("top", np.zeros((2, 3, 3), np.uint8))
    with MonitorServer(Watched(telemetry.path), 0) as server:
        for _ in range(5):
            with socket.create_connection(("127.0.0.1", server.port)) as page:
                page.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset
                page.sendall(b"GET /camera/top HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n\r\n" % server.port * 50)
        assert ask(server, "/camera/top")[0] == 200
    assert "Traceback" not in capfd.readouterr().err


def test_nothing_comes_from_elsewhere():
    for text in (PAGE, STYLE, SCRIPT):
        assert "http://" not in text
        assert "https://" not in text
    assert "innerHTML" not in SCRIPT, "names of tasks and cameras are text, not markup"


def test_the_page_in_a_browser(service, tmp_path):
    """A real loop drives a simulated robot with a camera; the page shows it, and its button stops it."""
    spec = RealtimeSpec(env_id=point_env.ID, measured=(0, 1), rate=20.0, options={"pixels": True})
    telemetry = Telemetry.create(
        rate=20.0,
        actions=["x", "y"],
        states=["x", "y", "angle"],
        chunk=CHUNK,
        cameras={"top": (24, 32, 3)},
        title="point, <b>rtc</b>",
    )
    config = SafetyConfig(low=-0.5, stale_after=20.0)
    outcome = []
    with (
        RealtimeRobot(spec) as robot,
        Inference(LocalEndpoint(service)) as inference,
        MonitorServer(Watched(telemetry.path), 0) as server,
    ):
        inference.wait_until_ready(60)
        robot.reset(0)
        controller = Controller(
            robot,
            inference,
            RealTimeChunking(execute=EXECUTE),
            SafetyFilter(
                ActionConfig(measured=(0, 1)),
                config,
                LateConfig(),
                dim=2,
                rate=20.0,
                low=[-3, -1],
                high=[3, 1],
            ),
            ObservationGuard({STATE: (3,)}, config),
            rate=20.0,
            prompt="go left",
            telemetry=telemetry,
        )
        loop = threading.Thread(target=lambda: outcome.append(controller.run(20 * 300)))
        loop.start()
        browser = Browser(tmp_path / "profile", server.address)
        try:
            browser.until("document.getElementById('status').textContent === 'running'")
            assert browser.run("document.getElementById('title').textContent") == "point, <b>rtc</b>"
            browser.until("ticks.length > 20 && chunks.length > 0")
            assert browser.run("document.querySelectorAll('#actions canvas').length") == 2
            drawn = (
                "[...document.querySelector('{}').getContext('2d')"
                ".getImageData(0, 0, {}, {}).data].some(v => v)"
            )
            assert browser.run(drawn.format("#actions canvas", 1200, 110))
            browser.until(drawn.format("#latency", 420, 160))
            assert browser.run(drawn.format("#late", 420, 160))
            bright = (
                "[...document.querySelector('canvas[data-camera=top]').getContext('2d')"
                ".getImageData(0, 0, 32, 24).data].filter((v, i) => i % 4 < 3 && v === 255).length"
            )
            assert browser.until(bright) == 3, "the white pixel where the point is"
            browser.until("document.getElementById('interventions').textContent.includes('bounds')")
            browser.screenshot(tmp_path / "page.png")
            assert browser.run(SEVERAL) == [1, 0, 0], "of several episodes only the newest"
            assert loop.is_alive()
            browser.click("#stop")
            wait_for(lambda: outcome)
            telemetry.finish()
            browser.until("document.getElementById('status').textContent === 'finished'")
        finally:
            telemetry.request_stop()
            browser.close()
            loop.join(60)
            telemetry.finish()
    assert outcome[0].outcome == "emergency stop"
