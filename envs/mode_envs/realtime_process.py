"""The simulator's side of `mode_envs.realtime`: ``python -m mode_envs.realtime_process FD``."""

from __future__ import annotations

import contextlib
import selectors
import socket
import sys
import time
from multiprocessing.connection import Connection
from typing import Any

from mode_envs.plant import Plant
from mode_envs.realtime import STOP, RealtimeSpec
from mode_policy.errors import ModePolicyError


class Simulator:
    """A plant that is stepped at absolute deadlines.

    Args:
        connection: to the robot's owner.
        spec: what to simulate.
        stop_socket: listening; who writes to it stops the robot.
    """

    def __init__(self, connection: Connection, spec: RealtimeSpec, stop_socket: socket.socket) -> None:
        self.connection, self.stop_socket = connection, stop_socket
        self._sources = selectors.DefaultSelector()
        for source in (connection, stop_socket):
            self._sources.register(source, selectors.EVENT_READ)
        self.plant = Plant(spec)
        self.seed: int | None = None

    def run(self) -> None:
        """Play episodes until the owner closes its end."""
        while True:
            while self.seed is None:
                self._listen(None)
            seed, self.seed = self.seed, None
            self.plant.reset(seed)
            self._episode()

    def _episode(self) -> None:
        """Step until the owner resets."""
        start, period, rate = time.monotonic(), 0, self.plant.rate
        while self.seed is None:
            self.connection.send(("observation", self.plant.observation(start + period / rate)))
            # A simulator that is too slow loses periods, not its clock.
            period = max(period, int((time.monotonic() - start) * rate)) + 1
            self._listen(start + period / rate)
            if self.seed is None:
                self.plant.step()

    def _listen(self, deadline: float | None) -> None:
        """Take messages until a time, or until one arrives if there is none."""
        while True:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            ready = [key.fileobj for key, _ in self._sources.select(left)]
            if self.stop_socket in ready:
                stranger, _ = self.stop_socket.accept()
                with stranger, contextlib.suppress(OSError):
                    stranger.settimeout(0.05)
                    if stranger.recv(len(STOP)) == STOP:
                        self.plant.stop()
            if self.connection in ready:
                self._take(self.connection.recv())
            if deadline is None or (not ready and time.monotonic() >= deadline):
                return

    def _take(self, message: tuple[Any, ...]) -> None:
        if message[0] == "act":
            self.plant.act(message[1])
        elif message[0] == "stop":
            self.plant.stop()
        elif message[0] == "reset":
            self.seed = message[1]


def main() -> None:
    """Simulate for the process at the other end of the socket."""
    connection = Connection(int(sys.argv[1]))
    spec, address = connection.recv()
    with socket.socket(socket.AF_UNIX) as stop_socket:
        stop_socket.bind(address)
        stop_socket.listen()
        try:
            simulator = Simulator(connection, spec, stop_socket)
            connection.send(("rate", simulator.plant.rate))
            simulator.run()
        except (EOFError, ConnectionError):
            return  # the owner is gone
        except ModePolicyError as error:
            connection.send(("error", str(error)))


if __name__ == "__main__":
    main()
