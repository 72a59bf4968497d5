"""Interrupts that wait for a safe moment."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType, TracebackType

#: Seconds within which further signals count as the same one: a launcher passes on what the terminal has
#: already sent to all of its processes.
ECHO = 1.0


class DeferredInterrupt:
    """Within this context Ctrl-C and SIGTERM only set ``requested``; a second one acts at once.

    A training step is then never cut in half, and what is saved after it can be resumed to the bit.
    """

    def __init__(self) -> None:
        self.requested_at: float | None = None  # on the monotonic clock
        self._before: dict[int, signal.Handlers | int | None] = {}

    @property
    def requested(self) -> bool:
        """Whether a signal has come."""
        return self.requested_at is not None

    def __enter__(self) -> DeferredInterrupt:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._request)  # type: ignore[assignment]
        return self

    def _request(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.requested_at is None:
            self.requested_at = now
        elif now - self.requested_at > ECHO:
            raise KeyboardInterrupt

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
