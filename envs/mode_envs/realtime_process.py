"""The simulator's side of `mode_envs.realtime`: ``python -m mode_envs.realtime_process FD``."""

from __future__ import annotations

import contextlib
import selectors
import socket
import sys
import time
from multiprocessing.connection import Connection
from typing import Any

import gymnasium
import numpy as np

from mode_envs.contract import STATE, ObservationDict
from mode_envs.realtime import STOP, RealtimeSpec
from mode_policy.deploy.robots import RobotObservation
from mode_policy.errors import ModePolicyError, SimulatorError


class Simulator:
    """An environment that is stepped at absolute deadlines.

    Args:
        connection: to the robot's owner.
        spec: what to simulate.
        stop_socket: listening; who writes to it stops the robot.
    """

    def __init__(self, connection: Connection, spec: RealtimeSpec, stop_socket: socket.socket) -> None:
        self.connection, self.spec, self.stop_socket = connection, spec, stop_socket
        self._sources = selectors.DefaultSelector()
        for source in (connection, stop_socket):
            self._sources.register(source, selectors.EVENT_READ)
        limit: dict[str, Any] = {} if spec.max_steps is None else {"max_episode_steps": spec.max_steps}
        self.env: gymnasium.Env[Any, Any] = gymnasium.make(spec.env_id, **limit, **spec.options)
        rate = spec.rate or self.env.metadata.get("render_fps")
        if not rate:
            raise SimulatorError(f"{spec.env_id} does not say its control rate; give robot.rate=…")
        self.rate = float(rate)
        self.command: np.ndarray | None = None  # that has not been executed
        self.last: np.ndarray | None = None  # that has
        self.here: np.ndarray = np.zeros(0, np.float32)  # where a position-controlled robot began
        self.stopped = False
        self.seed: int | None = None

    def run(self) -> None:
        """Play episodes until the owner closes its end."""
        while True:
            while self.seed is None:
                self._listen(None)
            seed, self.seed = self.seed, None
            seen, info = self.env.reset(seed=seed)
            self.command = self.last = None
            self.stopped = False
            self._episode(features(seen), info)

    def _episode(self, observation: ObservationDict, info: dict[str, Any]) -> None:
        """Step until the owner resets; after the episode's end the robot is held."""
        start, period, steps, unheard = time.monotonic(), 0, 0, 0
        done = success = False
        if self.spec.kind == "position":
            self.here = np.asarray(observation[STATE][list(self.spec.measured)], np.float32)
        while self.seed is None:
            success = success or bool(info.get("success"))
            report = {**info, "success": success, "steps": steps, "unheard": unheard}
            now = start + period / self.rate
            self._send(RobotObservation(arrays=observation, time=now, done=done, info=report))
            # A simulator that is too slow loses periods, not its clock.
            period = max(period, int((time.monotonic() - start) * self.rate)) + 1
            self._listen(start + period / self.rate)
            if done or self.seed is not None:
                continue
            unheard += self.command is None
            seen, _, terminated, truncated, info = self.env.step(self._next_action())
            observation = features(seen)
            steps += 1
            done = terminated or truncated

    def _next_action(self) -> np.ndarray:
        command, self.command = self.command, None
        if self.stopped or (command is None and self.spec.dead_man):
            return self._held()
        if command is None:
            return self._held() if self.last is None else self.last
        self.last = command
        return command

    def _held(self) -> np.ndarray:
        """The command that changes nothing."""
        space = self.env.action_space
        assert isinstance(space, gymnasium.spaces.Box)
        if self.spec.kind == "position":
            return self.here if self.last is None else self.last
        held = np.zeros(space.shape, np.float32)
        if self.last is not None:
            held[list(self.spec.gripper)] = self.last[list(self.spec.gripper)]
        return held

    def _listen(self, deadline: float | None) -> None:
        """Take messages until a time, or until one arrives if there is none."""
        while True:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            ready = [key.fileobj for key, _ in self._sources.select(left)]
            if self.stop_socket in ready:
                stranger, _ = self.stop_socket.accept()
                with stranger, contextlib.suppress(OSError):
                    stranger.settimeout(0.05)
                    self.stopped = self.stopped or stranger.recv(len(STOP)) == STOP
            if self.connection in ready:
                self._take(self.connection.recv())
            if deadline is None or (not ready and time.monotonic() >= deadline):
                return

    def _take(self, message: tuple[Any, ...]) -> None:
        if message[0] == "act":
            self.command = None if self.stopped else message[1]
        elif message[0] == "stop":
            self.stopped = True
        elif message[0] == "reset":
            self.seed = message[1]

    def _send(self, observation: RobotObservation) -> None:
        self.connection.send(("observation", observation))


def features(observation: Any) -> ObservationDict:
    """Return an observation by feature keys; environments of others give one array."""
    if isinstance(observation, dict):
        return observation
    return {STATE: np.asarray(observation, np.float32)}


def main() -> None:
    """Simulate for the process at the other end of the socket."""
    connection = Connection(int(sys.argv[1]))
    spec, address = connection.recv()
    with socket.socket(socket.AF_UNIX) as stop_socket:
        stop_socket.bind(address)
        stop_socket.listen()
        try:
            simulator = Simulator(connection, spec, stop_socket)
            connection.send(("rate", simulator.rate))
            simulator.run()
        except (EOFError, ConnectionError):
            return  # the owner is gone
        except ModePolicyError as error:
            connection.send(("error", str(error)))


if __name__ == "__main__":
    main()
