"""What must not disturb a control loop: signals in the middle of a command, garbage collection."""

from __future__ import annotations

import contextlib
import gc
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def deferred_signals(requested: Callable[[], None]) -> Iterator[None]:
    """Within this context Ctrl-C and SIGTERM only call ``requested``, however often they come.

    So a command is never cut in half, and the robot is stopped before the program ends. A loop that hangs
    and no longer looks is the watchdog's business.
    """
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for which in (signal.SIGINT, signal.SIGTERM):
            before[which] = signal.signal(which, lambda *_: requested())
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def no_collections() -> Iterator[None]:
    """Keep Python's garbage collector out of a loop that makes no reference cycles."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()
