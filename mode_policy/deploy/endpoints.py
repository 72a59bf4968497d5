"""What answers requests: a policy server, or anything with the methods of `Endpoint`.

An endpoint may be lost at any moment. There are also a policy in this process
(`mode_policy.deploy.policy_service`) and in a child process (`mode_policy.deploy.inference_worker`).

A request is a plain map: feature key → ``(H, …)`` oldest first, ``prompt`` → instruction, and optionally
``rtc`` → what the chunk continues, ``seed`` → two integers that determine the noise. An answer has
``actions`` ``(C, A)`` and ``policy_timing`` → ``infer_ms``.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from mode_policy.deploy.client import ConnectionLostError, PolicyClient, RefusedError, WireError
from mode_policy.errors import InferenceError


class EndpointLostError(Exception):
    """The endpoint died or cannot be reached; opening it again may help."""


class Endpoint(Protocol):
    """What answers requests. All calls come from one thread, except ``close``."""

    def open(self) -> Mapping[str, Any]:
        """Make it ready, and return what it says about its policy.

        Raises:
            EndpointLostError: if that failed but may work later.
            InferenceError: if it never will.
        """

    def infer(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """Answer a request.

        Raises:
            EndpointLostError: if it is gone; it must be opened again.
            InferenceError: if it refuses the request.
        """

    def close(self) -> None:
        """Let it go; a call that is under way ends with an error."""


class RemoteEndpoint:
    """A policy server."""

    def __init__(self, client: PolicyClient) -> None:
        self._client = client

    def open(self) -> Mapping[str, Any]:
        """Connect."""
        with _translated():
            return self._client.metadata

    def infer(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """Ask the server."""
        with _translated():
            return self._client.infer(request)

    def close(self) -> None:
        """End the connection."""
        self._client.close()


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except ConnectionLostError as error:
        raise EndpointLostError(str(error)) from error
    except (RefusedError, WireError) as error:
        raise InferenceError(str(error)) from error


class DelayedEndpoint:
    """Answers ``seconds`` after the request at the earliest: for experiments with slow inference."""

    def __init__(self, endpoint: Endpoint, seconds: float) -> None:
        self._endpoint, self._seconds = endpoint, seconds

    def open(self) -> Mapping[str, Any]:
        """Open what is delayed."""
        return self._endpoint.open()

    def infer(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """Answer late."""
        due = time.monotonic() + self._seconds
        answer = self._endpoint.infer(request)
        time.sleep(max(0.0, due - time.monotonic()))
        return answer

    def close(self) -> None:
        """Close what is delayed."""
        self._endpoint.close()
