"""A toy policy to drive with, a server around it, and robots that keep a diary."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from mode_policy.checkpoint import save_checkpoint
from mode_policy.deploy.policy_service import PolicyService
from mode_policy.deploy.robots import RobotObservation
from mode_policy.deploy.server.config import ServerConfig
from mode_policy.deploy.server.server import PolicyServer
from mode_policy.types import STATE
from tests import toy

CHUNK, EXECUTE = 12, 6


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the toy policy."""
    path = tmp_path_factory.mktemp("policy") / "checkpoint"
    policy = toy.policy(chunk=CHUNK, execute=EXECUTE)
    save_checkpoint(path, policy, policy.state_dict(), about={"task": {"name": "toy"}})
    return path


@pytest.fixture
def service() -> PolicyService:
    return PolicyService(toy.policy(chunk=CHUNK, execute=EXECUTE))


def request(prompt: str | None = "go left", value: float = 0.1, **more) -> dict:
    """A whole request to the toy policy."""
    return {STATE: np.full((1, 3), value, np.float32), **({"prompt": prompt} if prompt else {}), **more}


class Running:
    """A server in a thread of this process."""

    def __init__(self, service, port: int = 0, **settings) -> None:
        self.server = PolicyServer(service, ServerConfig(port=port, **settings))
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self.port = asyncio.run_coroutine_threadsafe(self.server.started(), self._loop).result(10)
        self.address = f"{'wss' if settings.get('certificate') else 'ws'}://127.0.0.1:{self.port}"

    def _run(self) -> None:
        self._loop.run_until_complete(self.server.serve())

    def drain(self) -> None:
        self._loop.call_soon_threadsafe(self.server.drain)

    def close(self) -> None:
        if self._thread.is_alive():
            self.drain()
            self._thread.join(20)
        assert not self._thread.is_alive()
        self._loop.close()


@pytest.fixture
def serve(service) -> Iterator:
    """A function that starts servers; they end with the test."""
    with contextlib.ExitStack() as stack:

        def start(of=None, **settings) -> Running:
            running = Running(of or service, **settings)
            stack.callback(running.close)
            return running

        yield start


class DiaryRobot:
    """Is at once where it is told to be, and keeps what it was told."""

    rate = 100.0

    def __init__(self) -> None:
        self.position = np.zeros(2, np.float32)
        self.commands: list[np.ndarray] = []
        self.stops = 0
        self.extra: dict[str, np.ndarray] = {}
        self.time = time.monotonic

    def observe(self) -> RobotObservation:
        state = np.append(self.position, 0).astype(np.float32)
        return RobotObservation(arrays={STATE: state, **self.extra}, time=self.time())

    def act(self, action: np.ndarray) -> None:
        assert self.stops == 0, "commanded after it was stopped"
        self.commands.append(action)
        self.position = action.astype(np.float32)

    def stop(self) -> None:
        self.stops += 1


def wait_for(condition, seconds: float = 120.0) -> None:
    """Wait until something is true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.01)
