"""Inference on a virtual clock: the answer is computed at once, and arrives when a slower machine's would.

With `mode_policy.deploy.clock.VirtualClock` and a robot on the same clock (`mode_envs.plant.VirtualRobot`)
the control loop runs unchanged, each tick and each delay exactly where it would be on a machine that is
never late, and as fast as the processor computes. What it cannot show is jitter; that takes real time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mode_policy.deploy.clock import Clock
from mode_policy.deploy.endpoints import Endpoint
from mode_policy.deploy.inference import Answer
from mode_policy.errors import InferenceError


class VirtualInference:
    """A `mode_policy.deploy.inference.ChunkSource` whose every answer takes ``seconds`` of the clock.

    Args:
        endpoint: open; what computes the answers.
        clock: the control loop's.
        seconds: from request to answer.
    """

    def __init__(self, endpoint: Endpoint, clock: Clock, seconds: float) -> None:
        self.error: InferenceError | None = None
        self.losses, self.trouble = 0, ""
        self._endpoint, self._clock, self._seconds = endpoint, clock, seconds
        self._due = 0.0
        self._answer: Answer | None = None

    @property
    def ready(self) -> bool:
        """Whether a request would be worked on at once."""
        return not self.pending and self.error is None

    @property
    def pending(self) -> bool:
        """Whether a request is being worked on."""
        return self._answer is not None or self._clock.now() < self._due

    def submit(self, tick: int, request: Mapping[str, Any]) -> bool:
        """Compute the answer, unless one is on its way; return whether."""
        if not self.ready:
            return False
        try:
            answer = self._endpoint.infer(request)
        except InferenceError as error:
            self.error = error
            return True
        self._due = self._clock.now() + self._seconds
        self._answer = Answer(
            tick=tick,
            actions=answer["actions"],
            seconds=self._seconds,
            policy_seconds=self._seconds,
            first=False,
        )
        return True

    def poll(self) -> Answer | None:
        """Return the answer once it is due, or None."""
        if self._answer is None or self._clock.now() < self._due:
            return None
        answer, self._answer = self._answer, None
        return answer

    def wait(self, until: float) -> None:
        """Let the time pass in which the answer comes."""
        self._clock.sleep_until(min(until, self._due))

    def discard(self) -> None:
        """Forget the answer that is on its way."""
        self._answer = None
