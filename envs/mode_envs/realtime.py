"""A simulated task in real time: the simulator steps at its control rate whether or not a command arrives.

The simulator is a process of its own with a clock of its own, like a robot. In each period it takes the
newest command that it has received; if none has come since its last step, it does what a robot's own
controller does: position targets stay, displacements are zero. Commands and observations cross a socket
pair; a second socket, a file, takes nothing but the request to stop, from anybody on this machine who may
open it: the watchdog's way in.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np

from mode_policy.deploy.robots import RobotObservation
from mode_policy.errors import ConfigError, RobotError

STOP = b"stop"


@dataclass(frozen=True, kw_only=True)
class RealtimeSpec:
    """What to simulate, and how.

    Attributes:
        env_id: gymnasium id.
        rate: steps per second; None for the environment's own. A higher one plays the same task faster.
        max_steps: after which an episode is truncated.
        kind: meaning of its actions, see `mode_policy.deploy.config.ActionConfig`.
        gripper: action dimensions that are held as they were.
        measured: for position targets, the indices in ``observation.state`` that say where the robot is; held
            before the first command.
        dead_man: what happens in a period without a new command: True holds, False repeats the last one, as
            robots do that are driven by velocities and have no dead-man's switch.
        options: arguments of the environment, e.g. ``{"obs_mode": "both"}``.
    """

    env_id: str
    rate: float | None = None
    max_steps: int | None = None
    kind: Literal["position", "delta"] = "position"
    gripper: tuple[int, ...] = ()
    measured: tuple[int, ...] = ()
    dead_man: bool = True
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind == "position" and (not self.measured or min(self.measured) < 0):
            raise ConfigError(
                f"a robot that is driven by positions needs to know where it is: measured={self.measured} "
                "must name a dimension of observation.state for each action dimension"
            )


class RealtimeRobot:
    """The caller's side: a `mode_policy.deploy.robots.RobotInterface`. Use it as a context manager.

    Attributes:
        rate: steps per second.
        stop_address: path of the socket that takes requests to stop.
    """

    def __init__(self, spec: RealtimeSpec) -> None:
        self._folder = tempfile.mkdtemp(prefix="mode-robot-")  # readable by its owner alone
        self.stop_address = str(Path(self._folder) / "stop")
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "mode_envs.realtime_process", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(p or "." for p in sys.path)},
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C is for the control loop
            )
        self._connection = Connection(ours.detach())
        self._sending = threading.Lock()
        self._newest: RobotObservation | None = None
        self._arrived = threading.Event()
        self._lost = ""
        self._send((spec, self.stop_address))
        self.rate = float(self._answer(120.0))
        self._reader = threading.Thread(target=self._read, name="robot", daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """Process id of the simulator."""
        return self._process.pid

    def reset(self, seed: int) -> None:
        """Begin an episode; the clock starts with its first observation.

        Raises:
            RobotError: if the simulator is gone.
        """
        self._newest = None
        self._arrived.clear()
        self._send(("reset", seed))
        self.observe()

    def observe(self) -> RobotObservation:
        """Return the newest observation; waits only for the first of an episode.

        Raises:
            RobotError: if the simulator is gone.
        """
        while not self._arrived.wait(0.1):
            if self._lost:
                break
        if self._lost or self._newest is None:
            raise RobotError(f"the simulated robot is gone: {self._lost}")
        return self._newest

    def act(self, action: np.ndarray) -> None:
        """Send a command for the next step."""
        self._send(("act", np.asarray(action, np.float32)))

    def stop(self) -> None:
        """Hold from now on; commands are ignored until the next `reset`."""
        self._send(("stop",))

    def _send(self, message: Any) -> None:
        try:
            with self._sending:
                self._connection.send(message)
        except OSError as error:
            raise RobotError(f"the simulated robot is gone: {self._lost or error}") from error

    def _answer(self, timeout: float) -> Any:
        try:
            if not self._connection.poll(timeout):
                raise RobotError(f"the simulator did not start within {timeout:g} s")
            kind, value = self._connection.recv()
        except (EOFError, OSError) as error:
            raise RobotError("the simulator ended while starting; its message is above") from error
        if kind == "error":
            raise RobotError(value)
        return value

    def _read(self) -> None:
        try:
            while True:
                kind, value = self._connection.recv()
                if kind == "error":
                    self._lost = value
                    return
                self._newest = value
                self._arrived.set()
        except (EOFError, OSError) as error:
            self._lost = self._lost or f"its process ended ({error or type(error).__name__})"

    def close(self) -> None:
        """End the simulator."""
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(self._connection.fileno())) as end:
            end.shutdown(socket.SHUT_RDWR)  # closing alone would not wake the thread that reads
        self._connection.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> RealtimeRobot:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def stopper(address: str) -> Callable[[], None]:
    """Return a function that stops the simulated robot whose `RealtimeRobot.stop_address` this is."""

    def stop() -> None:
        with socket.socket(socket.AF_UNIX) as s, contextlib.suppress(OSError):
            s.connect(address)
            s.sendall(STOP)

    return stop
