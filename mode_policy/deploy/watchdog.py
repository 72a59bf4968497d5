"""A process that stops the robot when the control loop dies or hangs.

The loop sends it a byte in every tick. If none comes for too long, the watchdog first ends the loop's process
for good (one that comes back later must not go on commanding), then calls the stopper. It also does so if the
pipe closes without a farewell, which only a loop that ended without an error sends. The stopper is a function
which it made at the start of the run, so that nothing needs to be imported when it counts.
"""

from __future__ import annotations

import contextlib
import json
import os
import pkgutil
import selectors
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

from mode_policy.errors import RobotError

BEAT, FAREWELL, READY = b".", b"q", b"r"


class Watchdog:
    """The loop's side.

    Args:
        seconds: of silence after which the watchdog acts.
        stopper: ``"module:function"`` of what the watchdog calls once, with ``arguments``, to get the
            function that stops the robot.
        arguments: plain data.

    Raises:
        RobotError: if the stopper cannot be made.
    """

    def __init__(self, seconds: float, stopper: str, arguments: Mapping[str, Any]) -> None:
        read, self._pipe = os.pipe()
        answer, theirs = os.pipe()
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-P",
                "-m",
                "mode_policy.deploy.watchdog",
                *(
                    str(read),
                    str(theirs),
                    str(seconds),
                    str(os.getpid()),
                    stopper,
                    json.dumps(dict(arguments)),
                ),
            ],
            stdin=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(p or "." for p in sys.path)},
            pass_fds=[read, theirs],
            start_new_session=True,  # Ctrl-C must not end it before it has seen the loop end
        )
        os.close(read)
        os.close(theirs)
        os.set_blocking(self._pipe, False)
        with os.fdopen(answer, "rb") as pipe:
            if pipe.read(1) != READY:
                self._process.wait()
                raise RobotError(f"the watchdog could not make its stopper {stopper}; its message is above")

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def beat(self) -> None:
        """Say that the loop is alive.

        Raises:
            RobotError: if the watchdog itself is gone; the loop must not run without it.
        """
        try:
            os.write(self._pipe, BEAT)
        except BlockingIOError:
            pass  # it has not read for thousands of ticks, but what it will read says that we live
        except OSError as error:
            raise RobotError("the watchdog process has died") from error

    def __enter__(self) -> Watchdog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:  # else the robot may not have been stopped, and the watchdog makes sure of it
            with contextlib.suppress(OSError):
                os.write(self._pipe, FAREWELL)
        os.close(self._pipe)
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def watch(pipe: int, seconds: float, loop: int, stop: Callable[[], None]) -> None:
    """Wait for the loop to end; act unless it says farewell.

    Args:
        pipe: where its bytes come from.
        seconds: of silence that are allowed, counted from the first byte on.
        loop: process id.
        stop: brings the robot to its safe state.
    """
    begun = False
    selector = selectors.DefaultSelector()  # `select` knows no descriptor above 1023
    selector.register(pipe, selectors.EVENT_READ)
    while True:
        ready = selector.select(seconds if begun else None)
        data = os.read(pipe, 65536) if ready else b""
        if data.endswith(FAREWELL):
            return
        if data:
            begun = True
            continue
        how = "ended unexpectedly" if ready else f"was silent for {seconds:g} s"
        print(f"watchdog: the control loop {how}; stopping the robot", file=sys.stderr, flush=True)
        if not ready:
            with contextlib.suppress(ProcessLookupError):
                os.kill(loop, signal.SIGKILL)
        stop()
        return


def main() -> None:
    """Run the watchdog's side."""
    pipe, answer, seconds, loop, stopper, arguments = sys.argv[1:]
    stop = pkgutil.resolve_name(stopper)(**json.loads(arguments))
    os.write(int(answer), READY)
    os.close(int(answer))
    watch(int(pipe), float(seconds), int(loop), stop)


if __name__ == "__main__":
    main()
