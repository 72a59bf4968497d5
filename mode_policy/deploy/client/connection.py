"""A client of policy servers that speak openpi's protocol, ours among them."""

from __future__ import annotations

import random
import ssl
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from websockets.exceptions import (
    ConnectionClosed,
    InvalidMessage,
    InvalidStatus,
    InvalidURI,
    WebSocketException,
)
from websockets.sync.client import ClientConnection, connect
from websockets.uri import parse_uri

from .wire import WireError, pack, unpack

MAX_ANSWER = 64 * 2**20


class ConnectionLostError(ConnectionError):
    """The server is not there, went away, or did not answer in time; trying again may help."""


class RefusedError(RuntimeError):
    """The server answered with an error; the same request would be refused again."""


class PolicyClient:
    """A connection to a policy server; opened at the first use and again after it was lost.

    One thread may use it at a time.

    Args:
        address: ``"ws://127.0.0.1:8000"``, or ``wss://`` for TLS.
        token: what the server's ``token_file`` holds, or None.
        certificate: certificate of the server or of who signed it, for ``wss://``; None for the system's own.
        timeout: seconds within which the server must answer.

    Raises:
        RefusedError: if the address is none, or the certificate cannot be used.
    """

    def __init__(
        self,
        address: str = "ws://127.0.0.1:8000",
        *,
        token: str | None = None,
        certificate: str | Path | None = None,
        timeout: float = 10.0,
    ) -> None:
        self.address = address if "://" in address else f"ws://{address}"
        self.timeout = timeout
        self._headers = {"Authorization": f"Api-Key {token}"} if token else None
        self._tls: ssl.SSLContext | None = None
        try:
            secure = parse_uri(self.address).secure
        except (InvalidURI, ValueError) as error:
            raise RefusedError(f"{address} is no address of a server; give ws://host:port") from error
        if secure:
            try:
                self._tls = ssl.create_default_context(
                    cafile=None if certificate is None else str(certificate)
                )
            except OSError as error:  # ssl.SSLError is one
                raise RefusedError(f"certificate {certificate} cannot be used: {error}") from error
        self._connection: ClientConnection | None = None
        self._metadata: dict[str, Any] = {}

    @property
    def metadata(self) -> dict[str, Any]:
        """What the server says about its policy; connects if necessary.

        Raises:
            ConnectionLostError: if the server is not there.
            RefusedError: if it does not let us in.
        """
        self._open()
        return self._metadata

    def infer(self, observation: Mapping[str, Any], *, retry_for: float = 0.0) -> dict[str, Any]:
        """Return the server's answer to an observation: ``actions`` ``(C, A)`` and timings.

        Args:
            observation: feature key → array, ``prompt`` → instruction.
            retry_for: seconds for which a lost connection is tried again before giving up.

        Raises:
            ConnectionLostError: if the server is not there or does not answer in time.
            RefusedError: if it answers with an error.
            WireError: if the observation cannot be sent.
        """
        message = pack(dict(observation))
        deadline = time.monotonic() + retry_for
        pause = 0.05
        while True:
            try:
                return self._ask(message)
            except ConnectionLostError:
                if time.monotonic() + pause > deadline:
                    raise
                # Many clients that lost one server must not come back in the same instant.
                time.sleep(pause * random.uniform(0.5, 1.0))
                pause = min(2 * pause, 2.0)

    def reset(self) -> None:
        """Begin a new episode: the next request opens a new session, without history."""
        self.close()

    def close(self) -> None:
        """End the connection; the next call opens a new one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _ask(self, message: bytes) -> dict[str, Any]:
        connection = self._open()
        try:
            connection.send(message)
            answer = connection.recv(timeout=self.timeout)
        except TimeoutError as error:
            self.close()  # a late answer must not be taken for that to the next question
            raise ConnectionLostError(f"{self.address} did not answer within {self.timeout:g} s") from error
        except (ConnectionClosed, OSError) as error:
            self.close()
            raise ConnectionLostError(f"{self.address} closed the connection: {error}") from error
        if isinstance(answer, str):
            self.close()
            raise RefusedError(f"{self.address} answered: {answer}")
        return self._checked(answer)

    def _open(self) -> ClientConnection:
        if self._connection is not None:
            return self._connection
        try:
            connection = connect(
                self.address,
                additional_headers=self._headers,
                ssl=self._tls,
                compression=None,  # pictures do not shrink, and it costs milliseconds
                max_size=MAX_ANSWER,
                open_timeout=self.timeout,
                close_timeout=1.0,
                proxy=None,
            ).__enter__()  # websockets wants a context manager; ours ends in `close`
        except InvalidStatus as error:
            status = error.response.status_code
            if status == 503:
                raise ConnectionLostError(f"{self.address} takes no sessions now (status 503)") from error
            hint = "; it wants a token, or another one" if status == 401 else ""
            raise RefusedError(f"{self.address} refused the connection with status {status}{hint}") from error
        except ssl.SSLCertVerificationError as error:
            raise RefusedError(f"{self.address} could not prove who it is: {error}") from error
        except (OSError, TimeoutError, WebSocketException) as error:
            plain = self._tls is None and isinstance(error, InvalidMessage)
            hint = "; one with TLS is at wss://" if plain else ""
            raise ConnectionLostError(f"no server at {self.address}: {error}{hint}") from error
        try:
            hello = connection.recv(timeout=self.timeout)
        except (TimeoutError, ConnectionClosed, OSError) as error:
            connection.close()
            raise ConnectionLostError(f"{self.address} did not introduce itself: {error}") from error
        self._connection = connection
        if isinstance(hello, str):
            self.close()
            raise RefusedError(f"{self.address} answered: {hello}")
        self._metadata = self._checked(hello)
        return connection

    def _checked(self, data: bytes) -> dict[str, Any]:
        try:
            message = unpack(data)
        except WireError as error:
            self.close()
            raise ConnectionLostError(f"{self.address} sent what cannot be read: {error}") from error
        if not isinstance(message, dict):
            self.close()
            raise ConnectionLostError(f"{self.address} sent a {type(message).__name__} instead of a map")
        return message

    def __enter__(self) -> PolicyClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
