"""A recorded episode as a robot: it shows what was observed, and keeps what it is sent."""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np

from mode_policy.deploy.robots.base import RobotObservation
from mode_policy.errors import DataError


class ReplayRobot:
    """Plays the observations of an episode in real time, whatever it is commanded to do.

    For measuring latencies and comparing a policy's actions with the recorded ones, ahead of any motion.

    Args:
        arrays: feature key → ``(T, …)``, of one episode.
        rate: at which it was recorded, in Hz.

    Raises:
        DataError: if the episode is empty or its arrays have different lengths.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray], rate: float) -> None:
        lengths = {key: len(value) for key, value in arrays.items()}
        if not lengths or min(lengths.values()) == 0 or len(set(lengths.values())) > 1:
            raise DataError(f"an episode needs arrays of one length, at least 1; it has {lengths}")
        self.rate = rate
        self.stopped = False
        self.actions: list[tuple[int, np.ndarray]] = []
        self._arrays = dict(arrays)
        self._length = next(iter(lengths.values()))
        self._start: float | None = None

    def restart(self) -> None:
        """Play from the beginning; the clock starts with the next observation."""
        self._start = None
        self.stopped = False

    def _step(self, now: float) -> int:
        if self._start is None:
            self._start = now
        return int((now - self._start) * self.rate + 1e-6)

    def observe(self) -> RobotObservation:
        """Return what was observed at this time of the episode, and its last moment from then on."""
        now = time.monotonic()
        step = self._step(now)
        shown = min(step, self._length - 1)
        assert self._start is not None
        return RobotObservation(
            arrays={key: value[shown] for key, value in self._arrays.items()},
            time=self._start + step / self.rate,
            done=step >= self._length,
            info={"step": shown},
        )

    def act(self, action: np.ndarray) -> None:
        """Keep the command, with the step of the episode that it was for."""
        self.actions.append((min(self._step(time.monotonic()), self._length - 1), action.copy()))

    def stop(self) -> None:
        """Note that it was called."""
        self.stopped = True
