"""Processes that run simulators for another one, and can be lost without losing it.

A worker is ``python -m mode_envs.worker`` at the other end of a socket pair. It is started as a fresh
interpreter rather than by `multiprocessing`, whose children would import the caller's main script again (and
torch with it), and it ends by itself when the socket closes, so no way of dying leaves orphans behind.
"""

from __future__ import annotations

import os
import pkgutil
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from mode_policy.errors import ModePolicyError, SimulatorError

# Workers share the machine's cores with each other and with the policy.
_SINGLE_THREADED = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")

STARTUP = 600.0
"""Seconds that a process has for its first answer, beyond the usual: a simulator's first use on a machine may
compile for minutes (LIBERO's does, and keeps the result), and loading a scene's textures takes half a one."""

PATIENCE = 60.0
"""Seconds of waiting for a first answer after which the user is told why."""

STILL_STARTING = (
    f"a simulator is still starting after {PATIENCE:g} s; its first use on a machine compiles code, which is "
    f"kept, and may take minutes (at most {STARTUP / 60:g})"
)

Notify = Callable[[str], None]


class WorkerDiedError(Exception):
    """A worker was killed, crashed or hung; its work can be given to a new one."""


class Worker:
    """A Python callable that lives in a process of its own.

    Args:
        factory: ``"module:name"`` of what the process calls once to get the callable that answers requests.
            Only NumPy arrays and plain data should cross.

    Attributes:
        fresh: Whether it has not answered yet.
    """

    def __init__(self, factory: str) -> None:
        ours, theirs = socket.socketpair()
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115  # lives as long as the process
        with theirs:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-P",  # the working directory may hold folders named as libraries
                    "-X",
                    "faulthandler",
                    "-m",
                    "mode_envs.worker",
                    str(theirs.fileno()),
                    factory,
                ],
                stdin=subprocess.DEVNULL,
                stdout=self._stderr,
                stderr=self._stderr,
                env={
                    **os.environ,
                    **_SINGLE_THREADED,
                    "PYTHONPATH": os.pathsep.join(p or "." for p in sys.path),
                },
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C is for the parent, which then ends its workers
            )
        self.connection = Connection(ours.detach())
        self._sent = time.monotonic()
        self.fresh = True  # it has not answered yet

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def send(self, request: Any) -> None:
        """Give the worker a request; `receive` returns the answer.

        Raises:
            WorkerDiedError: if the process is gone.
        """
        self._sent = time.monotonic()
        try:
            self.connection.send(request)
        except OSError as error:
            raise self._death("ended") from error

    def overdue(self, timeout: float) -> bool:
        """Whether the answer to the latest request should be here; see `receive`."""
        return self._left(timeout) == 0

    def receive(self, timeout: float, notify: Notify = lambda _: None) -> Any:
        """Return the answer to the oldest open request.

        Args:
            timeout: Seconds from the request within which the process must answer; `STARTUP` more for its
                first answer.
            notify: Told in a sentence that the first answer takes long.

        Raises:
            WorkerDiedError: if the process is gone, or silent for so long.
            SimulatorError: if the callable raised.
        """
        left = self._left(timeout)
        patience = min(PATIENCE, left) if self.fresh else left
        try:
            if not self.connection.poll(patience):
                if patience < left:
                    notify(STILL_STARTING)
                if not self.connection.poll(left - patience):
                    raise self._death(f"did not answer within {timeout + STARTUP * self.fresh:g} s")
            error, answer = self.connection.recv()
        except (OSError, EOFError) as lost:
            raise self._death("ended") from lost
        self.fresh = False
        if error is not None:
            raise SimulatorError(error)
        return answer

    def close(self) -> None:
        """End the process at once."""
        self._process.kill()
        self._process.wait()
        self.connection.close()
        self._stderr.close()

    def _left(self, timeout: float) -> float:
        return max(0.0, self._sent + timeout + STARTUP * self.fresh - time.monotonic())

    def _death(self, how: str) -> WorkerDiedError:
        self._process.kill()
        code = self._process.wait()
        self._stderr.seek(0)
        said = self._stderr.read().decode(errors="replace").strip()[-2000:]
        return WorkerDiedError(
            f"simulator process {self.pid} {how} (exit code {code}); it said: {said or 'nothing'}"
        )


def call(handle: Callable[[Any], Any], request: Any) -> tuple[str | None, Any]:
    """Return ``(None, answer)``, or ``(what went wrong, None)`` if the callable raised."""
    try:
        return None, handle(request)
    except ModePolicyError as error:
        return str(error), None
    except Exception:
        return f"a simulator raised an exception:\n{traceback.format_exc()}", None


def main() -> None:
    """Serve requests until the parent closes its end."""
    connection = Connection(int(sys.argv[1]))
    handle = pkgutil.resolve_name(sys.argv[2])()
    while True:
        try:
            request = connection.recv()
        except EOFError:
            return
        connection.send(call(handle, request))


if __name__ == "__main__":
    main()
