"""The server itself: sessions over WebSocket, health and metrics over HTTP, on one port.

The protocol is openpi's: the server sends its metadata first; then each binary message is an observation
and is answered by a map with ``actions``, ``server_timing`` and ``policy_timing``; an error is a text
message, after which the connection is closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import http
import logging
import time
from typing import Any

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode
from websockets.http11 import Request, Response

from mode_policy.deploy.client import WireError, pack, unpack
from mode_policy.deploy.policy_service import PolicyService
from mode_policy.deploy.server.access import RateLimit, is_admitted, read_token, tls
from mode_policy.deploy.server.batching import Batcher
from mode_policy.deploy.server.config import ServerConfig
from mode_policy.deploy.server.metrics import Metrics
from mode_policy.deploy.server.session import Session
from mode_policy.errors import ConfigError, ModePolicyError

log = logging.getLogger("mode_policy.server")

#: Seconds that connections get to close; also, in the end, those that were never opened.
LEAVING = 2
#: Characters of what a client is told, which may quote what it sent.
LONGEST_REASON = 1000


class RefusedError(Exception):
    """A session that is ended: the reason for the metrics, what the client is told, and the close code."""

    def __init__(self, reason: str, message: str, code: int) -> None:
        super().__init__(message if len(message) <= LONGEST_REASON else f"{message[:LONGEST_REASON]} …")
        self.reason, self.code = reason, code


class PolicyServer:
    """Serves one policy.

    Args:
        service: the policy, warm.
        config: addresses and limits.

    Raises:
        ConfigError: if token, certificate or key cannot be used.
    """

    def __init__(self, service: PolicyService, config: ServerConfig) -> None:
        self.config, self.service, self.metrics = config, service, Metrics()
        self.port = config.port
        self._token = read_token(config.token_file)
        self._tls = tls(config.certificate, config.private_key)
        self._batcher = Batcher(
            service, config.batch_size, config.batch_window_ms / 1e3, lambda: len(self._open), self.metrics
        )
        self._open: dict[ServerConnection, bool] = {}  # connection → whether it waits for an answer
        self._draining = asyncio.Event()
        self._started = asyncio.Event()

    async def serve(self) -> None:
        """Serve until `drain` is called.

        Raises:
            ConfigError: if the address cannot be listened at.
        """
        batching = asyncio.create_task(self._batcher.run())
        try:
            server = await self._listen()
            self.port = next(iter(server.sockets)).getsockname()[1]
            self._started.set()
            await self._draining.wait()
            await self._finish(server)
        finally:
            batching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await batching

    async def started(self) -> int:
        """Wait until the server listens; return its port."""
        await self._started.wait()
        return self.port

    @property
    def hangs(self) -> bool:
        """Whether an inference takes longer than a request may."""
        return self._batcher.busy_for > self.config.request_seconds

    @property
    def busy(self) -> bool:
        """Whether an inference is being computed."""
        return self._batcher.busy_for > 0

    def drain(self) -> None:
        """Take no new sessions, answer what was asked, then end."""
        self._draining.set()

    async def _listen(self) -> Server:
        config = self.config
        quiet = logging.getLogger("mode_policy.server.websockets")
        quiet.setLevel(logging.CRITICAL)  # strangers' broken handshakes are counted by firewalls, not by us
        try:
            return await serve(
                self._session,
                config.host,
                config.port,
                ssl=self._tls,
                process_request=self._http,
                origins=[None],  # no page in a browser may connect, wherever it came from
                compression=None,
                max_size=int(config.max_message_mb * 2**20),
                max_queue=2,
                open_timeout=10,
                close_timeout=LEAVING,
                logger=quiet,
            )
        except OSError as error:
            raise ConfigError(f"cannot listen at {config.host}:{config.port}: {error}") from error

    async def _finish(self, server: Server) -> None:
        log.info("draining %d sessions", len(self._open))
        idle = [connection for connection, busy in self._open.items() if not busy]
        closing = [c.close(CloseCode.GOING_AWAY, "the server ends") for c in idle]
        deadline = time.monotonic() + self.config.drain_seconds
        await asyncio.gather(*closing, return_exceptions=True)  # those that have vanished wait side by side
        while self._open and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        server.close()
        with contextlib.suppress(TimeoutError):  # of clients that hang in their handshake
            async with asyncio.timeout(LEAVING):
                await server.wait_closed()

    def _http(self, connection: ServerConnection, request: Request) -> Response | None:
        """Answer plain requests; let sessions through to the handshake."""
        path = request.path.partition("?")[0]
        if path == "/healthz":
            return connection.respond(http.HTTPStatus.OK, "OK\n")
        if path == "/readyz":
            trouble = "draining" if self._draining.is_set() else "hanging" if self.hangs else ""
            status = http.HTTPStatus.SERVICE_UNAVAILABLE if trouble else http.HTTPStatus.OK
            return connection.respond(status, f"{trouble or 'OK'}\n")
        if not is_admitted(request.headers, self._token):
            self.metrics.errors["unauthorized"] += 1
            return connection.respond(http.HTTPStatus.UNAUTHORIZED, "a token is needed\n")
        if path == "/metrics":
            return connection.respond(http.HTTPStatus.OK, self.metrics.text())
        if self._draining.is_set() or len(self._open) >= self.config.max_sessions:
            self.metrics.errors["unavailable"] += 1
            return connection.respond(http.HTTPStatus.SERVICE_UNAVAILABLE, "no more sessions now\n")
        return None

    async def _session(self, connection: ServerConnection) -> None:
        self._open[connection] = False
        self.metrics.sessions += 1
        self.metrics.opened += 1
        try:
            await connection.send(pack(self.service.metadata))
            await self._requests(connection)
        except ConnectionClosed:
            pass
        except RefusedError as refused:
            self.metrics.errors[refused.reason] += 1
            log.info("%s: %s", connection.remote_address, refused)
            with contextlib.suppress(ConnectionClosed):
                await connection.send(str(refused))
                await connection.close(refused.code, refused.reason)
        except Exception:
            self.metrics.errors["internal"] += 1
            log.exception("%s: a request failed", connection.remote_address)
            with contextlib.suppress(ConnectionClosed):
                await connection.send("internal error; the server's log has more")
                await connection.close(CloseCode.INTERNAL_ERROR, "internal")
        finally:
            del self._open[connection]
            self.metrics.sessions -= 1

    async def _requests(self, connection: ServerConnection) -> None:
        session = Session(self.service.observed, self.service.history, self.config.keys)
        limit = RateLimit(self.config.requests_per_second)
        previous: float | None = None
        while not self._draining.is_set():
            message = await self._message(connection)
            self._open[connection] = True
            start = time.perf_counter()
            if not limit.take():
                raise RefusedError(
                    "rate",
                    f"more than {self.config.requests_per_second:g} requests a second",
                    CloseCode.POLICY_VIOLATION,
                )
            answer = await self._answer(session, message)
            seconds = time.perf_counter() - start
            answer["server_timing"] = {"infer_ms": 1e3 * seconds}
            if previous is not None:
                answer["server_timing"]["prev_total_ms"] = 1e3 * previous
            await connection.send(pack(answer))
            previous = time.perf_counter() - start
            self.metrics.requests += 1
            self.metrics.latency.add(previous)
            self._open[connection] = False
        await connection.close(CloseCode.GOING_AWAY, "the server ends")

    async def _message(self, connection: ServerConnection) -> bytes:
        try:
            async with asyncio.timeout(self.config.idle_seconds):
                message = await connection.recv()
        except TimeoutError:
            raise RefusedError(
                "idle", f"no request for {self.config.idle_seconds:g} s", CloseCode.GOING_AWAY
            ) from None
        if isinstance(message, str):
            raise RefusedError(
                "malformed", "requests are binary messages of msgpack", CloseCode.UNSUPPORTED_DATA
            )
        return message

    async def _answer(self, session: Session, message: bytes) -> dict[str, Any]:
        try:
            request = session.complete(unpack(message))
            self.service.check(request)
        except (WireError, ModePolicyError) as error:
            raise RefusedError("malformed", str(error), CloseCode.INVALID_DATA) from error
        try:
            async with asyncio.timeout(self.config.request_seconds):
                actions, seconds = await self._batcher.infer(request)
        except TimeoutError:
            raise RefusedError(
                "timeout", f"no answer within {self.config.request_seconds:g} s", CloseCode.INTERNAL_ERROR
            ) from None
        session.sent(actions)
        return {"actions": actions, "policy_timing": {"infer_ms": 1e3 * seconds}}
