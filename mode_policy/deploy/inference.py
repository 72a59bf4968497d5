"""Inference beside the control loop: requests go in, chunks come out, and the loop never waits.

`Inference` gives an endpoint (`mode_policy.deploy.endpoints`) a thread, opens it again when it was lost, and
keeps the newest answer.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Protocol

import numpy as np

from mode_policy.deploy.endpoints import Endpoint, EndpointLostError
from mode_policy.errors import InferenceError

#: Seconds between two attempts to reach a lost endpoint.
RETRY = 0.25
#: What an endpoint says about its policy that the loop was built around.
BUILT_AROUND = ("features", "history", "chunk", "action_min", "action_max", "instructions")


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


class ChunkSource(Protocol):
    """What the control loop needs of inference; none of it may wait, but `wait`."""

    #: Why no request will ever be answered, e.g. an unknown instruction; None while all is well.
    error: InferenceError | None
    #: How often the endpoint was lost.
    losses: int
    #: Why it is not reached now, or "".
    trouble: str

    @property
    def ready(self) -> bool:
        """Whether a request would be worked on at once."""

    @property
    def pending(self) -> bool:
        """Whether a request is being worked on."""

    def submit(self, tick: int, request: Mapping[str, Any]) -> bool:
        """Hand over a request, unless one is being worked on or the endpoint is down; return whether."""

    def poll(self) -> Answer | None:
        """Return an answer once, or None."""

    def wait(self, until: float) -> None:
        """Wait for an answer until a time of the clock, for ticks that have no action at all."""

    def discard(self) -> None:
        """Forget the request that is being worked on and its answer: it belongs to the past."""


class Inference:
    """A `ChunkSource`: a thread that asks an endpoint, one request at a time. Use it as a context manager.

    Attributes:
        metadata: what the endpoint said about its policy, once it was reached.
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

    def wait_until_ready(
        self, seconds: float, say: Callable[[str], None] = lambda why: None
    ) -> Mapping[str, Any]:
        """Wait for the endpoint before a run begins; return its metadata.

        Args:
            seconds: for which it is waited.
            say: called once if there is something to wait for, with what it is.

        Raises:
            InferenceError: if it cannot be reached in time, or never will be.
        """
        deadline, said = time.monotonic() + seconds, False
        while not self._ready.wait(0.05):
            if self.error is not None:
                raise self.error
            if self.trouble and not said:
                say(f"{self.trouble}; trying for {seconds:g} s")
                said = True
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
        if self._answer is None:
            return None
        with self._changed:  # else an answer that comes between reading and forgetting would be lost
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
        """Forget the request that is being worked on and its answer: it belongs to the past."""
        with self._changed:
            self._answer = None
            if self._request is not None:
                self._request = (-1, *self._request[1:])

    def _run(self) -> None:
        try:
            self._answer_requests()
        except InferenceError as error:
            self._give_up(error)
        except Exception as error:  # a thread that died silently would leave the robot held for ever
            self._give_up(InferenceError(f"inference failed: {type(error).__name__}: {error}"))
        finally:
            self._endpoint.close()  # what was opened while `__exit__` closed it

    def _answer_requests(self) -> None:
        first = True
        while not self._closing:
            try:
                if not self._ready.is_set():
                    self._open()
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

    def _open(self) -> None:
        said = self._endpoint.open()
        changed = [key for key in BUILT_AROUND if self.metadata and said.get(key) != self.metadata.get(key)]
        if changed:
            raise InferenceError(
                f"another policy answers now, with other {', '.join(changed)}; start again to use it"
            )
        self.metadata = said

    def _read(self, answer: Mapping[str, Any], since: float, first: bool) -> Answer:
        actions = np.asarray(answer.get("actions", ()), np.float32)
        expected = len(self.metadata.get("action_min", ())) or "A"
        if actions.ndim != 2 or not len(actions) or expected not in ("A", actions.shape[1]):
            raise InferenceError(
                f"the answer holds actions of shape {actions.shape}; expected (C, {expected})"
            )
        timing = answer.get("policy_timing")
        inside = timing.get("infer_ms", 0.0) if isinstance(timing, Mapping) else 0.0
        now = time.monotonic()
        return Answer(tick=0, actions=actions, seconds=now - since, policy_seconds=inside / 1e3, first=first)

    def _finish(self, answer: Answer | None) -> None:
        with self._changed:
            tick = self._request[0] if self._request is not None else -1
            if answer is not None and tick >= 0:
                self._answer = replace(answer, tick=tick)
            self._request = None
            self._changed.notify_all()

    def _give_up(self, error: InferenceError) -> None:
        self.error = error
        self._finish(None)

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
