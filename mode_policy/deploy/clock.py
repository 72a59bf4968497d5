"""Ticks at absolute deadlines of the monotonic clock."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Protocol

from mode_policy.errors import ConfigError


class Clock(Protocol):
    """A clock that never runs backwards, and sleep on it."""

    def now(self) -> float:
        """Return seconds since some moment."""

    def sleep_until(self, deadline: float) -> None:
        """Return at a time of this clock, or at once if it has passed."""


class MonotonicClock:
    """The system's monotonic clock: setting the time of day does not move it."""

    def now(self) -> float:
        """Return `time.monotonic`."""
        return time.monotonic()

    def sleep_until(self, deadline: float) -> None:
        """Sleep; the system wakes a thread some ten microseconds late."""
        left = deadline - time.monotonic()
        if left > 0:
            time.sleep(left)


class VirtualClock:
    """A clock that stands still while anything computes, and is moved by those who sleep on it.

    With a robot and inference that live on the same clock, a run depends on nothing but its seed, and is as
    fast as the processor.
    """

    def __init__(self) -> None:
        self._now = 0.0

    def now(self) -> float:
        """Return the seconds that were slept."""
        return self._now

    def sleep_until(self, deadline: float) -> None:
        """Make it that time."""
        self._now = max(self._now, deadline)


@dataclass
class Pacer:
    """Deadlines ``start + k/rate``; being late once does not shift the later ones.

    After a jump of the clock, or a suspended process, ticks that were missed altogether are skipped rather
    than made up for: a robot must not be sent a burst of commands.

    Attributes:
        start: deadline of tick 0.
        rate: ticks per second.
        tick: the next tick.
        skipped: ticks that were left out so far.
    """

    start: float
    rate: float
    tick: int = 0
    skipped: int = 0

    def deadline(self, tick: int) -> float:
        """Return the time at which a tick is due."""
        return self.start + tick / self.rate

    def next(self, clock: Clock) -> tuple[int, float]:
        """Wait for the next tick; return its number and when it was due."""
        clock.sleep_until(self.deadline(self.tick))
        missed = max(0, int((clock.now() - self.deadline(self.tick)) * self.rate))
        tick = self.tick + missed
        self.skipped += missed
        self.tick = tick + 1
        return tick, self.deadline(tick)


def use_real_time_priority(priority: int) -> None:
    """Schedule this thread before all normal ones (SCHED_FIFO).

    Raises:
        ConfigError: if the system does not allow it.
    """
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(priority))
    except (AttributeError, PermissionError, OSError) as error:
        raise ConfigError(
            f"loop.priority={priority} is not allowed here ({error}); run with the capability CAP_SYS_NICE, "
            "raise the limit rtprio, or use loop.priority=null"
        ) from error
