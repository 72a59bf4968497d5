"""A program with a control loop, to be interrupted, stopped and killed: ``python -m tests.deploy.victim
DIARY …``.

Its robot writes a line for every command, and its watchdog's stopper one line. Neither torch nor a simulator.
"""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mode_policy.deploy.config import ActionConfig, LateConfig, SafetyConfig
from mode_policy.deploy.controller import Controller
from mode_policy.deploy.guard import ObservationGuard
from mode_policy.deploy.inference import Inference
from mode_policy.deploy.robots import RobotObservation
from mode_policy.deploy.safety import SafetyFilter
from mode_policy.deploy.strategies import Asynchronous
from mode_policy.deploy.telemetry import Telemetry
from mode_policy.deploy.telemetry_log import LogProcess
from mode_policy.deploy.watchdog import Watchdog

STATE = "observation.state"
RATE = 100.0


class Sine:
    """An endpoint whose chunks move on and on."""

    def __init__(self) -> None:
        self.asked = 0

    def open(self) -> dict[str, Any]:
        return {}

    def infer(self, request: Any) -> dict[str, Any]:
        self.asked += 1
        return {"actions": 0.9 * np.sin(np.arange(20)[:, None] / 10 + self.asked) * np.ones(2)}

    def close(self) -> None:
        pass


class FileRobot:
    """Writes what it is told to a file, one line each, with the time."""

    rate = RATE

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", buffering=1)
        self._write("connected")

    def _write(self, line: str) -> None:
        self._file.write(f"{time.monotonic():.6f} {line}\n")

    def observe(self) -> RobotObservation:
        return RobotObservation(arrays={STATE: np.zeros(2, np.float32)}, time=time.monotonic())

    def act(self, action: np.ndarray) -> None:
        self._write(f"act {action[0]:.4f}")

    def stop(self) -> None:
        self._write("stop")


def stopper(path: str) -> Callable[[], None]:
    """Return what the watchdog calls."""

    def stop() -> None:
        FileRobot(Path(path))._write("stopped by the watchdog")

    return stop


def broken_stopper() -> Callable[[], None]:
    raise ValueError("no such robot")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("diary", type=Path)
    parser.add_argument("--ticks", type=int)
    parser.add_argument("--watchdog", type=float)
    parser.add_argument("--log", type=Path)
    arguments = parser.parse_args()
    robot = FileRobot(arguments.diary)
    telemetry = Telemetry.create(rate=RATE, actions=["x", "y"], states=["x", "y"], chunk=20, title="victim")
    log = LogProcess(telemetry, arguments.log) if arguments.log else None
    watchdog: Any = contextlib.nullcontext()
    if arguments.watchdog:
        watchdog = Watchdog(arguments.watchdog, "tests.deploy.victim:stopper", {"path": str(arguments.diary)})
    safety, late = SafetyConfig(), LateConfig()
    action = ActionConfig(kind="position")
    with Inference(Sine()) as inference, watchdog as alive:
        inference.wait_until_ready(10)
        controller = Controller(
            robot,
            inference,
            Asynchronous(execute=10),
            SafetyFilter(action, safety, late, dim=2, rate=RATE, low=[-1, -1], high=[1, 1]),
            ObservationGuard({STATE: (2,)}, safety),
            rate=RATE,
            telemetry=telemetry,
            watchdog=alive,
        )
        try:
            summary = controller.run(arguments.ticks)
        finally:
            telemetry.finish()
        complete = log.close() if log else None
        print(summary.outcome, summary.ticks, summary.skipped, complete, log.message if log else "")


if __name__ == "__main__":
    main()
