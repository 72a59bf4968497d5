"""What `realtime_delay` measures of an episode, and how it drives one in real time."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mode_envs.collect import episode_seed
from mode_envs.plant import VirtualRobot
from mode_policy.apps.cli import compose, to_plain
from mode_policy.apps.control_loop import ControlConfig, Fitted, fit
from mode_policy.apps.robots import simulation
from mode_policy.config import build
from mode_policy.deploy.client import PolicyClient
from mode_policy.deploy.clock import VirtualClock
from mode_policy.deploy.config import ActionConfig
from mode_policy.deploy.policy_service import LocalEndpoint, PolicyService, load_service
from mode_policy.deploy.virtual import VirtualInference

ROOT = Path(__file__).resolve().parents[1]
#: Seconds that a message takes: what takes exactly n ticks is there just after the n-th has begun.
TRANSPORT = 1e-3
COLUMNS = ("episode", "tick", "chunk", "action", "delay", "skipped", "due", "finished")


def moving_sizes(rows: Any, action: ActionConfig, scale: np.ndarray) -> dict[str, Any]:
    """Return sizes of jumps at seams and inside chunks and of the jerk, and how often the robot was held.

    Args:
        rows: telemetry of one episode: anything with its columns.
        action: what the actions mean.
        scale: ``(A,)``, range of the demonstrations.
    """
    move = [i for i in range(len(scale)) if i not in action.gripper]
    command = 1e3 * np.asarray(rows["action"], float)[:, move] / scale[move]
    sent = np.isfinite(command).all(1)
    command, chunk, tick = command[sent], np.asarray(rows["chunk"])[sent], np.asarray(rows["tick"])[sent]
    position = np.cumsum(command, 0) if action.kind == "delta" else command
    size = np.linalg.norm(np.diff(command, axis=0), axis=1)
    other = chunk[1:] != chunk[:-1]  # held ticks have the chunk -1
    stays = (chunk[1:] < 0) & (size == 0)  # a robot that is told positions is held by the same one
    neighbours = np.diff(tick) == 1
    found = {
        "seam": size[neighbours & other & ~stays],
        "inside": size[neighbours & ~other & (chunk[1:] >= 0)],
        "jerk": np.linalg.norm(np.diff(position, 3, axis=0), axis=1) if len(position) > 3 else np.zeros(0),
        "held": (chunk < 0).astype(float),
    }
    late = np.asarray(rows["finished"]) > np.asarray(rows["due"]) + np.median(np.diff(rows["due"]))
    return {
        **{f"{name} n": len(values) for name, values in found.items()},
        **{f"{name} sum": float(values.sum()) for name, values in found.items()},
        "delay ticks": float(np.median(np.asarray(rows["delay"])[sent])) if sent.any() else float("nan"),
        "ticks": len(tick),
        "missed": int(late.sum() + np.max(rows["skipped"], initial=0)),
    }


@contextmanager
def served(checkpoint: Path, folder: Path) -> Iterator[str]:
    """Serve a checkpoint; yield the address."""
    log = folder / "server.log"
    with log.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, ROOT / "serve.py", f"checkpoint={checkpoint}", "port=0", "max_sessions=64"],
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    try:
        while "serving" not in log.read_text():
            if process.poll() is not None:
                raise SystemExit(log.read_text())
        yield log.read_text().split(" at ")[1].split(",")[0]
    finally:
        process.terminate()
        process.wait()


def on_the_system_clock(command: list[str], address: str, numbers: Sequence[int]) -> list[dict[str, Any]]:
    """Run `mode-control` for the first episodes; return what each came to."""
    import pyarrow.parquet as pq

    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [
                *(sys.executable, "-m", "mode_policy.apps.control", *command),
                *(f"server={address}", f"episodes={len(numbers)}", f"log={folder}"),
            ],
            capture_output=True,
            text=True,
            cwd=folder,
        )
        if done.returncode:
            raise SystemExit(done.stderr or done.stdout)
        (path,) = Path(folder).glob("*.parquet")
        table = pq.read_table(path, columns=list(COLUMNS))
    columns = {name: np.array(table[name].to_pylist(), float) for name in COLUMNS}
    successes = [", success" in line for line in done.stdout.splitlines() if line.startswith("episode")]
    with PolicyClient(address) as client:
        policy = client.metadata
    action = configuration(command).action
    results = []
    for number, success in zip(numbers, successes, strict=True):
        mine = columns["episode"] == number
        rows = {name: values[mine] for name, values in columns.items()}
        results.append({"success": success, **moving_sizes(rows, action, ranges(policy))})
    return results


def ranges(policy: Any) -> np.ndarray:
    """Return how far the demonstrations' actions reach, ``(A,)``."""
    return np.maximum(np.subtract(policy["action_max"], policy["action_min"]), 1e-6)


def configuration(command: list[str]) -> ControlConfig:
    """Return what a command line of `mode-control` means, wherever its policy is."""
    return build(ControlConfig, to_plain(compose("control", [*command, "server=ws://127.0.0.1"])))


# The virtual clock: in each process one policy, and a robot for each task that it meets.

SERVICE: PolicyService | None = None
ROBOTS: dict[str, tuple[VirtualRobot, VirtualClock]] = {}


def load(checkpoint: Path) -> None:
    """Prepare a process."""
    global SERVICE
    torch.set_num_threads(1)
    SERVICE = load_service(checkpoint)
    SERVICE.warm_up()


def on_a_virtual_clock(command: list[str], own: float, numbers: Sequence[int]) -> list[dict[str, Any]]:
    """Drive episodes; return what each came to."""
    assert SERVICE is not None
    config = configuration(command)
    spec = simulation(config.robot, config.action)
    if str(spec) not in ROBOTS:
        clock = VirtualClock()
        ROBOTS[str(spec)] = VirtualRobot(spec, clock), clock
    robot, clock = ROBOTS[str(spec)]
    robot.reset(0)
    instruction = robot.observe().info.get("instruction")
    fitted = fit(config, SERVICE.metadata, robot, instruction)
    seconds = max(config.delay_ms / 1e3, own) + TRANSPORT
    return [virtual_episode(fitted, robot, clock, seconds, number) for number in numbers]


def virtual_episode(
    fitted: Fitted, robot: VirtualRobot, clock: VirtualClock, seconds: float, number: int
) -> dict[str, Any]:
    assert SERVICE is not None
    telemetry = fitted.telemetry(shared=False)
    inference = VirtualInference(LocalEndpoint(SERVICE), clock, seconds)
    robot.reset(episode_seed(fitted.config.seed, number))
    summary = fitted.controller(robot, inference, telemetry, number, clock=clock).run()
    if summary.error:
        raise SystemExit(summary.error)
    sizes = moving_sizes(telemetry.since(0)[0], fitted.config.action, ranges(SERVICE.metadata))
    return {"success": bool(summary.info["success"]), **sizes}
