"""The policy server among clients that are many, slow, gone, or mean harm."""

import concurrent.futures
import contextlib
import gc
import os
import re
import signal
import socket
import subprocess
import sys
import threading

import numpy as np
import pytest
from websockets.sync.client import connect

from mode_policy.deploy.client import PolicyClient, RefusedError, pack
from mode_policy.deploy.policy_service import PolicyService
from mode_policy.errors import InferenceError
from tests import toy
from tests.conftest import ROOT
from tests.deploy.conftest import CHUNK, request, wait_for
from tests.deploy.test_server import get

# Servers that are closed in the middle of something leave tasks that asyncio remarks upon.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(autouse=True)
def _collected():
    """The remarks are made here, and not in the middle of another test."""
    yield
    gc.collect()


HANDSHAKE = (
    b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


def raw(server, stack, data=HANDSHAKE):
    """A connection whose other end does nothing by itself."""
    connection = stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
    connection.sendall(data)
    return connection


def is_answered(server):
    with PolicyClient(server.address) as client:
        return client.infer(request())["actions"].shape == (CHUNK, 2)


def test_twenty_clients_at_once_get_their_own_answers(serve, service):
    server = serve(max_sessions=20, batch_size=8)
    values = np.linspace(-0.9, 0.9, 20)

    def converse(value):
        with PolicyClient(server.address, timeout=120) as client:
            return [client.infer(request(value=value, seed=[3, i]))["actions"] for i in range(4)]

    with concurrent.futures.ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(converse, values))
    for value, found in zip(values, answers, strict=True):
        for i, actions in enumerate(found):
            (expected,) = service.infer([request(value=value, seed=[3, i])])
            np.testing.assert_allclose(actions, expected, rtol=1e-3, atol=1e-3)
    metrics = server.server.metrics
    assert (metrics.requests, metrics.opened, dict(metrics.errors)) == (80, 20, {})
    assert sum(metrics.batch.counts) < 80, "they shared inferences"


def test_fifty_at_once_where_five_may_come(serve):
    server = serve(max_sessions=5)
    most = []

    def call(value):
        with PolicyClient(server.address, timeout=60) as client:
            actions = client.infer(request(value=value), retry_for=100)["actions"]
            most.append(len(server.server._open))
            return actions.shape

    with concurrent.futures.ThreadPoolExecutor(50) as pool:
        assert set(pool.map(call, np.linspace(-0.9, 0.9, 50))) == {(CHUNK, 2)}, "in the end all are served"
    assert max(most) <= 5
    assert server.server.metrics.requests == 50
    assert set(server.server.metrics.errors) <= {"unavailable"}


def test_clients_that_hang_in_every_phase_disturb_nobody(serve):
    server = serve()
    with contextlib.ExitStack() as stack:
        for data in (b"", b"G", HANDSHAKE[:-2], HANDSHAKE, HANDSHAKE + b"\x82", HANDSHAKE + b"\x82\xfe\x00"):
            raw(server, stack, data)
        assert is_answered(server)
        server.close()  # which does not wait for them


def test_draining_does_not_wait_for_one_vanished_client_after_the_other(serve):
    """Twelve that never answer the farewell, each of which is given two seconds."""
    server = serve()
    with contextlib.ExitStack() as stack:
        for _ in range(12):
            raw(server, stack)
        wait_for(lambda: server.server.metrics.sessions == 12)
        server.close()  # fails after 20 seconds; one after the other would take 24
        assert server.server.metrics.sessions == 0


class Hanging(PolicyService):
    """A policy that never answers once it is told to hang."""

    def __init__(self):
        super().__init__(toy.policy(chunk=CHUNK, execute=6))
        self.hangs = threading.Event()
        self.ends = threading.Event()

    def infer(self, requests):
        if self.hangs.is_set():
            self.ends.wait(600)
        return super().infer(requests)


def test_an_inference_that_hangs_is_reported_to_whoever_asks(serve):
    service = Hanging()
    server = serve(service, request_seconds=0.3)
    assert get(server, "/readyz") == (200, "OK\n")
    service.hangs.set()
    with pytest.raises(RefusedError, match=r"no answer within 0\.3 s"):
        PolicyClient(server.address).infer(request())
    wait_for(lambda: get(server, "/readyz") == (503, "hanging\n"))
    assert get(server, "/healthz")[0] == 200, "the server itself is alive"
    service.ends.set()
    service.hangs.clear()
    wait_for(lambda: get(server, "/readyz")[0] == 200)
    assert is_answered(server)


def test_a_hanging_inference_does_not_keep_the_program_from_ending(checkpoint, tmp_path):
    code = (
        "import sys, time\n"
        "import mode_policy.apps.serve as serve\n"
        "load = serve.load_service\n"
        "def hanging(*a, **k):\n"
        "    service = load(*a, **k)\n"
        "    warm_up = service.warm_up\n"
        "    def warmed():\n"
        "        seconds = warm_up()\n"
        "        service.infer = lambda requests: time.sleep(600)\n"
        "        return seconds\n"
        "    service.warm_up = warmed\n"
        "    return service\n"
        "serve.load_service = hanging\n"
        f"sys.argv = ['serve', 'checkpoint={checkpoint}', 'port=0', 'drain_seconds=0.5', 'threads=1']\n"
        "serve.main()\n"
    )
    log = tmp_path / "log"
    with log.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=ROOT,
            stdout=out,
            stderr=subprocess.STDOUT,
            env=os.environ | {"COLUMNS": "300", "PYTHONUNBUFFERED": "1"},
        )
    try:
        wait_for(lambda: "serving" in log.read_text() or process.poll() is not None)
        address = re.search(r" at (ws://\S+?),", log.read_text()).group(1)
        with connect(address) as ws:
            ws.recv()
            ws.send(pack(request()))
            wait_for(lambda: "1" in _metric(address, "mode_sessions"))
            process.send_signal(signal.SIGTERM)
            assert process.wait(120) == 1
    finally:
        process.kill()
    assert "an inference did not end in time; leaving it" in log.read_text()


def _metric(address, name):
    port = int(address.rsplit(":", 1)[1])

    class At:
        pass

    At.port = port
    return re.search(rf"^{name} (\S+)$", get(At, "/metrics")[1], re.M).group(1)


@pytest.mark.parametrize(
    "headers",
    [
        b"Authorization: Api-Key \xff\xfe\xfd\r\n",
        b"Authorization: Api-Key a-secret-of-enough-length\r\nAuthorization: Bearer x\r\n",
        b"Authorization:\r\n",
        b"Authorization: Api-Key\r\n",
        b"Authorization: api-key a-secret-of-enough-lengt\r\n",
    ],
)
def test_strange_tokens_are_no_tokens(serve, tmp_path, headers):
    secret = tmp_path / "token"
    secret.write_text("a-secret-of-enough-length\n")
    server = serve(token_file=str(secret))
    with contextlib.ExitStack() as stack:
        connection = raw(server, stack, HANDSHAKE[:-2] + headers + b"\r\n")
        assert b" 401 " in connection.recv(4096).split(b"\r\n")[0]


@pytest.mark.parametrize(
    "values",
    [list(range(150_000)), {str(i): 0 for i in range(120_000)}, [[[]] * 10] * 20_000],
    ids=["list", "map", "lists"],
)
def test_a_message_of_very_many_values_is_refused(serve, values):
    """A few megabytes of them would take gigabytes, and seconds in which nobody else is served."""
    server = serve()
    with connect(server.address, max_size=None) as ws:
        ws.recv()
        ws.send(pack({"x": values}))
        assert re.search(r"100000", ws.recv())
    assert server.server.metrics.errors == {"malformed": 1}


def test_two_that_break_the_policy_at_once_leave_the_third_served(serve):
    class Fragile(PolicyService):
        def infer(self, requests):
            if len(requests) > 1 or requests[0]["observation.state"].max() > 0.9:
                raise InferenceError("not together")
            return super().infer(requests)

    server = serve(Fragile(toy.policy(chunk=CHUNK, execute=6)), batch_window_ms=500.0)
    clients = [PolicyClient(server.address) for _ in range(3)]
    assert all(c.metadata for c in clients)
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        asked = [
            pool.submit(c.infer, request(value=v)) for c, v in zip(clients, (1.0, 0.1, 1.0), strict=True)
        ]
    assert asked[1].result()["actions"].shape == (CHUNK, 2)
    assert all(isinstance(asked[i].exception(), RefusedError) for i in (0, 2))
    for client in clients:
        client.close()
