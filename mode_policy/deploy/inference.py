"""Inference beside the control loop: requests go in, chunks come out, and the loop never waits.

An `Endpoint` is something that answers requests one at a time and may be lost at any moment: a policy in
this process (`mode_policy.deploy.policy_service`), in a child process
(`mode_policy.deploy.inference_worker`), or on a server (`RemoteEndpoint`). `Inference` gives it a thread,
opens it again when it was lost, and keeps the newest answer.

A request is a plain map: feature key → ``(H, …)`` oldest first, ``prompt`` → instruction, and optionally
``rtc`` → what the chunk continues, ``seed`` → two integers that determine the noise. An answer has
``actions`` ``(C, A)`` and ``policy_timing`` → ``infer_ms``.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol

import numpy as np

from mode_policy.deploy.client import ConnectionLostError, PolicyClient, RefusedError, WireError
from mode_policy.errors import InferenceError

#: Seconds between two attempts to reach a lost endpoint.
RETRY = 0.25


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


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A chunk that arrived.

    Attributes:
        tick: that the request was made in.
        actions: ``(C, A)``, raw units.
        seconds: from request to answer.
        policy_seconds: of it, inside the policy.
        first: whether the endpoint was opened just before, so that its time says little about the next.
    """

    tick: int
    actions: np.ndarray
    seconds: float
    policy_seconds: float
    first: bool


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
def _translated() -> Any:
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


class Inference:
    """A thread that asks an endpoint, one request at a time.

    The control loop calls `submit` and `poll`, which return at once. Use it as a context manager.

    Attributes:
        metadata: what the endpoint said about its policy, once it was reached.
        error: why no request will ever be answered, e.g. an unknown instruction; None while all is well.
        losses: how often the endpoint was lost.
        trouble: why it is not reached now, or "".
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self.metadata: Mapping[str, Any] = {}
        self.error: InferenceError | None = None
        self.losses = 0
        self.trouble = ""
        self._endpoint = endpoint
        self._request: tuple[int, Mapping[str, Any], float] | None = None
        self._answer: Answer | None = None
        self._changed = threading.Condition()
        self._ready = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="inference", daemon=True)

    @property
    def ready(self) -> bool:
        """Whether a request would be worked on at once."""
        return self._ready.is_set() and self._request is None and self.error is None

    @property
    def pending(self) -> bool:
        """Whether a request is being worked on."""
        return self._request is not None

    def wait_until_ready(self, seconds: float) -> Mapping[str, Any]:
        """Wait for the endpoint before a run begins; return its metadata.

        Raises:
            InferenceError: if it cannot be reached in time, or never will be.
        """
        deadline = time.monotonic() + seconds
        while not self._ready.wait(0.05):
            if self.error is not None:
                raise self.error
            if time.monotonic() > deadline:
                raise InferenceError(f"no inference within {seconds:g} s: {self.trouble or 'it is starting'}")
        return self.metadata

    def submit(self, tick: int, request: Mapping[str, Any]) -> bool:
        """Hand over a request, unless one is being worked on or the endpoint is down; return whether."""
        if not self.ready:
            return False
        with self._changed:
            self._request = (tick, request, time.monotonic())
            self._changed.notify_all()
        return True

    def poll(self) -> Answer | None:
        """Return an answer once, or None."""
        answer, self._answer = self._answer, None
        return answer

    def wait(self, until: float) -> None:
        """Wait for an answer until a time of the monotonic clock, for ticks that have no action at all."""
        with self._changed:
            while self._answer is None and self._request is not None:
                left = until - time.monotonic()
                if left <= 0 or not self._changed.wait(left):
                    return

    def discard(self) -> None:
        """Forget the request that is being worked on and its answer: a new episode has begun."""
        with self._changed:
            self._answer = None
            if self._request is not None:
                self._request = (-1, *self._request[1:])

    def _run(self) -> None:
        first = True
        while not self._closing:
            try:
                if not self._ready.is_set():
                    self.metadata = self._endpoint.open()
                    self.trouble, first = "", True
                    self._ready.set()
                with self._changed:
                    self._changed.wait_for(lambda: self._request is not None or self._closing, 0.5)
                    task = self._request
                if task is None:
                    continue
                answer = self._endpoint.infer(task[1])
                self._finish(self._read(answer, task[2], first))
                first = False
            except EndpointLostError as lost:
                self.losses += self._ready.is_set()
                self._ready.clear()
                self.trouble = str(lost)
                self._finish(None)
                time.sleep(RETRY)
            except InferenceError as error:
                self.error = error
                self._finish(None)
                return
            except Exception as error:  # a thread that died silently would leave the robot held for ever
                self.error = InferenceError(f"inference failed: {type(error).__name__}: {error}")
                self._finish(None)
                return

    def _read(self, answer: Mapping[str, Any], since: float, first: bool) -> Answer:
        actions = np.asarray(answer.get("actions", ()), np.float32)
        if actions.ndim != 2 or not len(actions):
            raise InferenceError(f"the answer holds actions of shape {actions.shape}; expected (C, A)")
        timing = answer.get("policy_timing")
        inside = timing.get("infer_ms", 0.0) if isinstance(timing, Mapping) else 0.0
        now = time.monotonic()
        return Answer(tick=0, actions=actions, seconds=now - since, policy_seconds=inside / 1e3, first=first)

    def _finish(self, answer: Answer | None) -> None:
        with self._changed:
            tick = self._request[0] if self._request is not None else -1
            if answer is not None and tick >= 0:
                self._answer = Answer(
                    tick=tick,
                    actions=answer.actions,
                    seconds=answer.seconds,
                    policy_seconds=answer.policy_seconds,
                    first=answer.first,
                )
            self._request = None
            self._changed.notify_all()

    def __enter__(self) -> Inference:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._closing = True
        with self._changed:
            self._changed.notify_all()
        self._endpoint.close()
        self._thread.join(timeout=5)
