"""What must not disturb a control loop: signals inside a command, garbage collection, terminals."""

from __future__ import annotations

import contextlib
import gc
import queue
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

#: Ctrl-C, a polite end, and a terminal that was closed.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def deferred_signals(requested: Callable[[], None]) -> Iterator[None]:
    """Within this context the `SIGNALS` only call ``requested``, however often they come.

    So a command is never cut in half, and the robot is stopped before the program ends. A loop that hangs
    and no longer looks is the watchdog's business.
    """
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for which in SIGNALS:
            if signal.getsignal(which) is not signal.SIG_IGN:  # as `nohup` has it
                before[which] = signal.signal(which, lambda *_: requested())
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def no_collections() -> Iterator[None]:
    """Keep Python's garbage collector out of a loop that makes no reference cycles.

    What is there before stays frozen, so that the next loop has only what is new to look through: a process
    with torch holds a million objects, half a second's work.
    """
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@contextlib.contextmanager
def beside(write: Callable[[str], None]) -> Iterator[Callable[[str], None]]:
    """Yield a function that has lines written by a thread: it returns at once, even if nobody reads them.

    A terminal that was paused, or a pipe that is full, must not stop a robot's loop. What cannot be written
    is lost.
    """
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def run() -> None:
        while (line := lines.get()) is not None:
            with contextlib.suppress(OSError):
                write(line)

    thread = threading.Thread(target=run, name="writer", daemon=True)
    thread.start()
    try:
        yield lines.put
    finally:
        lines.put(None)
        thread.join(timeout=1.0)
