"""The policy server: openpi's protocol, batches, sessions, limits, and strangers."""

import concurrent.futures
import http.client
import random
import re
import shutil
import socket
import ssl
import subprocess
import time

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
from websockets.sync.client import connect

from mode_policy.config import build
from mode_policy.deploy.client import ConnectionLostError, PolicyClient, RefusedError, pack, unpack
from mode_policy.deploy.policy_service import PolicyService
from mode_policy.deploy.server.access import RateLimit, is_admitted, read_token
from mode_policy.deploy.server.config import ServerConfig
from mode_policy.deploy.server.server import PolicyServer
from mode_policy.deploy.server.session import Session
from mode_policy.errors import ConfigError, DataError
from mode_policy.types import STATE, Feature
from tests import toy
from tests.deploy.conftest import CHUNK, request, wait_for


def get(server, path, headers=None):
    """Return status and body of a plain HTTP request."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    connection.request("GET", path, headers=headers or {})
    answer = connection.getresponse()
    return answer.status, answer.read().decode()


def test_the_conversation_is_openpis(serve):
    """Message by message, as openpi's own client has it."""
    with connect(serve().address, compression=None) as ws:
        metadata = unpack(ws.recv())
        assert metadata["features"]["action"]["shape"] == [2]
        for i in range(2):
            ws.send(pack({"observation/state": np.zeros(3), "prompt": "go right"}))
            answer = ws.recv()
            assert isinstance(answer, bytes)
            answer = unpack(answer)
            assert answer["actions"].shape == (CHUNK, 2)
            assert set(answer) == {"actions", "policy_timing", "server_timing"}
            assert ("prev_total_ms" in answer["server_timing"]) == (i == 1)
        ws.send(pack({"observation/state": np.zeros(5), "prompt": "go right"}))
        error = ws.recv()
        assert isinstance(error, str)
        assert "the policy needs numbers of shape (1, 3)" in error
        with pytest.raises(ConnectionClosed):
            ws.recv()


def test_equal_seeds_give_equal_actions(serve):
    with PolicyClient(serve().address) as client:
        a, b, c = (client.infer(request(seed=[1, s]))["actions"] for s in (2, 2, 3))
    np.testing.assert_array_equal(a, b)
    assert np.abs(a - c).max() > 1e-3


def test_clients_share_an_inference_and_get_their_own_answers(serve):
    server = serve(batch_window_ms=2000.0)
    values = (-0.5, 0.0, 0.5)
    clients = [PolicyClient(server.address) for _ in values]
    assert all(c.metadata for c in clients)  # all are there before the first asks
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        asked = [
            pool.submit(c.infer, request(value=v, seed=[0, 0])) for c, v in zip(clients, values, strict=True)
        ]
        together = [f.result()["actions"] for f in asked]
    assert server.server.metrics.batch.sum == 3
    assert sum(server.server.metrics.batch.counts) == 1, "one batch, and nobody waited for a fourth client"
    for client in clients[1:]:
        client.close()
    wait_for(lambda: server.server.metrics.sessions == 1)
    for value, actions in zip(values, together, strict=True):
        alone = clients[0].infer(request(value=value, seed=[0, 0]))["actions"]
        # A batch of three is multiplied in another order than one of one.
        np.testing.assert_allclose(alone, actions, rtol=1e-3, atol=1e-4)
    clients[0].close()


class Breaking(PolicyService):
    """A policy that fails for some observations, which only its network would find out."""

    def infer(self, requests):
        if any(r[STATE].max() > 0.9 for r in requests):
            raise FloatingPointError("boom")
        return super().infer(requests)


def test_a_request_that_breaks_the_policy_spoils_no_other(serve):
    server = serve(Breaking(toy.policy(chunk=CHUNK, execute=6)), batch_window_ms=2000.0)
    clients = [PolicyClient(server.address) for _ in range(2)]
    assert all(c.metadata for c in clients)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        good, bad = (pool.submit(c.infer, request(value=v)) for c, v in zip(clients, (0.0, 1.0), strict=True))
        assert good.result()["actions"].shape == (CHUNK, 2)
        with pytest.raises(RefusedError, match="internal error"):
            bad.result()
    assert "boom" not in str(bad.exception()), "what happened inside is for the log"
    assert clients[1].infer(request())["actions"].shape == (CHUNK, 2)
    for client in clients:
        client.close()


def test_health_and_metrics(serve):
    server = serve()
    assert get(server, "/healthz") == (200, "OK\n")
    assert get(server, "/readyz") == (200, "OK\n")
    with PolicyClient(server.address) as client:
        client.infer(request())
        with pytest.raises(RefusedError):
            client.infer({"observation.state": np.zeros(1)})
    status, text = get(server, "/metrics")
    assert status == 200
    assert "mode_requests_total 1\n" in text
    assert 'mode_errors_total{reason="malformed"} 1\n' in text
    assert 'mode_request_seconds_bucket{le="+Inf"} 1\n' in text
    assert "mode_request_seconds_count 1\n" in text


# Limits and strangers


def test_only_this_machine_by_default():
    assert ServerConfig().host == "127.0.0.1"
    with pytest.raises(ConfigError, match=r"host=0.0.0.0 is reached from other machines.*token_file"):
        build(ServerConfig, {"host": "0.0.0.0"})
    with pytest.raises(ConfigError, match="is reached from other machines"):
        build(ServerConfig, {"host": "robot.example", "token_file": "x"})
    assert build(ServerConfig, {"host": "::1"}).host == "::1"
    assert build(ServerConfig, {"host": "0.0.0.0", "exposed_without_protection": True})
    with pytest.raises(ConfigError, match="needs both certificate"):
        build(ServerConfig, {"certificate": "x"})


def test_a_token_is_needed(serve, tmp_path):
    secret = tmp_path / "token"
    secret.write_text("a-secret-of-enough-length\n")
    server = serve(token_file=str(secret))
    with PolicyClient(server.address, token="a-secret-of-enough-length") as client:
        assert client.infer(request())["actions"].shape == (CHUNK, 2)
    for token in (None, "a-secret-of-enough-lengtX", "a-secret", "ä"):
        headers = {} if token is None else {"Authorization": f"Api-Key {token}".encode().decode("latin-1")}
        with pytest.raises(InvalidStatus, match="401"), connect(server.address, additional_headers=headers):
            pass
        assert get(server, "/metrics", headers)[0] == 401
    with pytest.raises(RefusedError, match="status 401; it wants a token"):
        PolicyClient(server.address, token="wrong-but-of-enough-length").infer(request())
    assert get(server, "/healthz")[0] == 200
    assert get(server, "/metrics", {"Authorization": "Bearer a-secret-of-enough-length"})[0] == 200
    assert not is_admitted({"Authorization": "Basic a-secret-of-enough-length"}, b"a-secret-of-enough-length")


def test_tokens_that_are_no_secret(tmp_path):
    (tmp_path / "short").write_text("1234")
    with pytest.raises(ConfigError, match="a token of 4 characters; make a longer one"):
        read_token(str(tmp_path / "short"))
    with pytest.raises(ConfigError, match="cannot be read"):
        read_token(str(tmp_path / "none"))


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A certificate for this machine, signed by itself."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed; it makes the certificate of this test")
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"),
            *("-keyout", folder / "key.pem", "-out", folder / "cert.pem"),
        ],
        check=True,
        capture_output=True,
    )
    return folder / "cert.pem", folder / "key.pem"


def test_tls(serve, certificate):
    cert, key = certificate
    server = serve(certificate=str(cert), private_key=str(key))
    with PolicyClient(server.address, certificate=cert) as client:
        assert client.infer(request())["actions"].shape == (CHUNK, 2)
    with pytest.raises(RefusedError, match="could not prove who it is"):
        PolicyClient(server.address).infer(request())
    with pytest.raises(ConnectionLostError, match="one with TLS is at wss://"):
        PolicyClient(server.address.replace("wss", "ws"), timeout=2).infer(request())
    assert server.server._tls.minimum_version >= ssl.TLSVersion.TLSv1_2


def test_a_bad_certificate_is_named(service, tmp_path):
    (tmp_path / "x.pem").write_text("nothing")
    file = str(tmp_path / "x.pem")
    with pytest.raises(ConfigError, match=r"certificate=.*x\.pem"):
        PolicyServer(service, ServerConfig(certificate=file, private_key=file))


def test_pages_in_browsers_cannot_connect(serve):
    with pytest.raises(InvalidStatus, match="403"), connect(serve().address, origin="http://evil.example"):
        pass


def test_too_large_too_many_too_fast_too_slow(serve):
    server = serve(max_message_mb=0.1, max_sessions=2, requests_per_second=0.1, idle_seconds=0.5)
    with connect(server.address, max_size=None) as ws:
        ws.recv()
        ws.send(b"\0" * 200_000)
        with pytest.raises(ConnectionClosed) as closed:
            ws.recv()
        assert closed.value.rcvd.code == 1009, "message too big"
    fast = PolicyClient(server.address)
    fast.infer(request())
    with pytest.raises(RefusedError, match=r"more than 0\.1 requests a second"):
        fast.infer(request())
    with connect(server.address) as one, connect(server.address) as two:
        assert one.recv()
        assert two.recv()
        with pytest.raises(ConnectionLostError, match="503"):
            PolicyClient(server.address).infer(request())
        assert one.recv(timeout=10) == "no request for 0.5 s"
    wait_for(lambda: server.server.metrics.sessions == 0)
    with PolicyClient(server.address) as client:
        assert client.infer(request())["actions"].shape == (CHUNK, 2)


def test_an_inference_that_never_ends_is_given_up(serve):
    class Slow(PolicyService):
        def infer(self, requests):
            time.sleep(1.0)
            return super().infer(requests)

    server = serve(Slow(toy.policy(chunk=CHUNK, execute=6)), request_seconds=0.2)
    with pytest.raises(RefusedError, match=r"no answer within 0.2 s"):
        PolicyClient(server.address).infer(request())


def test_a_client_that_vanishes_in_the_middle_of_a_message(serve):
    server = serve()
    message = pack(request())
    for cut in (1, 5, 30):
        with socket.create_connection(("127.0.0.1", server.port)) as raw:
            raw.sendall(
                b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
            )
            assert b"101" in raw.recv(4096)
            frame = b"\x82" + bytes([0x80 | 126]) + len(message).to_bytes(2, "big") + b"\0\0\0\0" + message
            raw.sendall(frame[:cut])
    wait_for(lambda: server.server.metrics.sessions == 0)
    with PolicyClient(server.address) as client:
        assert client.infer(request())["actions"].shape == (CHUNK, 2)
    assert not server.server.metrics.errors


def test_noise_never_takes_it_down(serve):
    """Random bytes instead of HTTP, random messages, and valid ones with bytes changed."""
    server, rng = serve(), random.Random(0)
    valid = pack(request(rtc={"actions": np.zeros((3, 2), np.float32), "fixed": 1}, seed=[1, 2]))
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", server.port)) as raw:
            raw.sendall(rng.randbytes(rng.randrange(1, 400)))
    refused = answered = 0
    for i in range(150):
        message = bytearray(valid)
        if i % 3 == 0:
            message = bytearray(rng.randbytes(rng.randrange(0, 300)))
        else:
            for _ in range(rng.randrange(1, 6)):
                message[rng.randrange(len(message))] = rng.randrange(256)
        with connect(server.address) as ws:
            ws.recv()
            ws.send(bytes(message))
            try:
                answer = ws.recv(timeout=20)
            except WebSocketException:
                continue
            answered += isinstance(answer, bytes)
            refused += isinstance(answer, str)
            assert not isinstance(answer, str) or "internal" not in answer, bytes(message)
    assert refused > 50
    assert answered > 0, "some changes only change numbers"
    with PolicyClient(server.address) as client:
        assert client.infer(request())["actions"].shape == (CHUNK, 2)
    assert server.server.metrics.errors["internal"] == 0


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ("text", "binary messages"),
        (b"\xff\xff", "no msgpack message"),
        (pack([1, 2]), "a map from names"),
        (pack({"prompt": "go left"}), "the policy needs 'observation.state'"),
        (pack({"observation.state": "zeros", "prompt": "go left"}), "'observation.state' is str"),
        (pack(request(value=np.nan)), "is not finite"),
        (pack({"observation.state": np.full((1, 3), 1e300), "prompt": "go left"}), "not finite in single"),
        (pack(request(prompt="go left" * 1_000_000)), "an instruction of 7000000 characters"),
        (pack(request(prompt=None)), "needs an instruction"),
        (pack(request(rtc=3)), "'rtc' is 3"),
        (pack(request(rtc={"actions": np.zeros((2, 3))})), r"finite numbers of shape \(n, 2\)"),
        (pack(request(rtc={"actions": np.full((2, 2), 1e300)})), "finite numbers"),
        (pack(request(rtc=b"x" * 1_000_000)), "'rtc' is b'x"),
        (pack(request(rtc={"actions": np.zeros((2, 2)), "fixed": -1})), "fixed=-1"),
        (pack(request(rtc={"actions": np.zeros((2, 2)), "mask": "cubic"})), "mask='cubic'"),
        (pack(request(rtc={"tick": "now"})), "tick='now'"),
        (pack(request(seed="x")), "'seed' is 'x'"),
        (pack(request(seed=[-1])), r"'seed' is \[-1\]"),
    ],
)
def test_malformed_requests_are_answered_with_what_is_wrong(serve, message, words):
    server = serve()
    with connect(server.address) as ws:
        ws.recv()
        ws.send(message)
        answer = ws.recv()
        assert isinstance(answer, str)
        assert len(answer) < 2000, "what it sent is not sent back whole"
        assert "Traceback" not in answer
        assert re.search(words, answer), answer
    assert server.server.metrics.errors == {"malformed": 1}


def test_draining_answers_what_was_asked(serve):
    class Slow(PolicyService):
        def infer(self, requests):
            time.sleep(0.5)
            return super().infer(requests)

    server = serve(Slow(toy.policy(chunk=CHUNK, execute=6)))
    busy, idle = PolicyClient(server.address), PolicyClient(server.address)
    assert idle.metadata
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        asked = pool.submit(busy.infer, request())
        wait_for(lambda: any(server.server._open.values()))
        server.drain()
        assert asked.result()["actions"].shape == (CHUNK, 2)
    with pytest.raises(ConnectionLostError):
        idle.infer(request())
    server.close()


def test_the_rate_limit_is_an_average(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    limit = RateLimit(2.0)
    assert [limit.take() for _ in range(4)] == [True, True, False, False]
    now[0] = 0.5
    assert [limit.take() for _ in range(2)] == [True, False]


# Sessions


def session(history=2, keys=None):
    features = {STATE: Feature(shape=(3,)), "observation.images.top": Feature(shape=(4, 6, 3))}
    return Session(features, history, keys or {})


def test_a_session_keeps_the_history_of_clients_that_do_not():
    s = session()
    first = s.complete({"observation/state": np.ones(3)})
    np.testing.assert_array_equal(first[STATE], np.ones((2, 3)))
    second = s.complete({"state": 2 * np.ones(3)})
    np.testing.assert_array_equal(second[STATE], [[1, 1, 1], [2, 2, 2]])
    whole = s.complete({STATE: np.zeros((2, 3))})
    np.testing.assert_array_equal(whole[STATE], np.zeros((2, 3)))


def test_a_session_knows_other_names_and_layouts():
    s = session(1, {"observation/image": "observation.images.top"})
    picture = np.arange(72, dtype=np.uint8).reshape(4, 6, 3)
    for message in (
        {"observation/image": picture},
        {"images": {"top": picture}},
        {"images": {"top": picture.transpose(2, 0, 1)}},
        {"observation/images/top": picture, "something/else": 3},
    ):
        request = s.complete(message)
        assert list(request) == ["observation.images.top"]
        np.testing.assert_array_equal(request["observation.images.top"], picture[None])


def test_a_session_keeps_the_instruction():
    s = session()
    assert s.complete({"prompt": "go left"})["prompt"] == "go left"
    assert s.complete({})["prompt"] == "go left"
    assert s.complete({"prompt": "go right"})["prompt"] == "go right"
    with pytest.raises(DataError, match="a map from names"):
        s.complete({1: 2})


def test_a_session_continues_its_own_chunk(serve):
    with PolicyClient(serve().address) as client:
        first = client.infer(request(rtc={"tick": 10}))["actions"]
        second = client.infer(request(value=0.4, rtc={"tick": 14, "fixed": 3}))["actions"]
        np.testing.assert_array_equal(second[:3], first[4:7])
        third = client.infer(request(value=0.4, rtc={"tick": 99, "fixed": 3}))["actions"]
        assert np.abs(third[:3] - second[-3:]).max() > 1e-3, "nothing of it is left"
