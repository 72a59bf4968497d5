"""What `realtime_delay` measures of an episode, and how it drives one in real time."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
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
from mode_policy.deploy.endpoints import Endpoint
from mode_policy.deploy.policy_service import PolicyService, load_service
from mode_policy.deploy.robots import RobotObservation
from mode_policy.deploy.virtual import VirtualInference
from mode_policy.errors import InferenceError, ModePolicyError

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


def on_the_system_clock(jobs: Sequence[tuple[list[str], int]], address: str) -> list[dict[str, Any]]:
    """Run `mode-control` for the first episodes of one command; return what each came to."""
    import pyarrow.parquet as pq

    command, numbers = jobs[0][0], [number for _, number in jobs]

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


# The virtual clock: in each process one policy, and as many robots as episodes run at once. Each episode has
# a thread and a clock of its own; all wait for each other's questions, which the policy answers in one batch.

SERVICE: PolicyService | None = None
ROBOTS: dict[str, list[tuple[Watched, VirtualClock]]] = {}


def load(checkpoint: Path) -> None:
    """Prepare a process."""
    global SERVICE
    torch.set_num_threads(1)
    SERVICE = load_service(checkpoint)
    SERVICE.warm_up()


@dataclass
class Question:
    """What an episode waits for."""

    number: int
    request: Mapping[str, Any]
    answered: threading.Event = field(default_factory=threading.Event)
    actions: np.ndarray | None = None
    error: str = ""


class Together:
    """An endpoint of many episodes: a question is answered once every running episode has asked one.

    Who is asked together depends on the episodes alone, not on the speed of their threads.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._running = 0
        self._questions: list[Question] = []

    def began(self) -> None:
        """One more episode runs."""
        with self._changed:
            self._running += 1

    def ended(self) -> None:
        """One less."""
        with self._changed:
            self._running -= 1
            self._changed.notify_all()

    def infer(self, number: int, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """Ask, and wait for the answer."""
        question = Question(number, request)
        with self._changed:
            self._questions.append(question)
            self._changed.notify_all()
        question.answered.wait()
        if question.actions is None:
            raise InferenceError(question.error)
        return {"actions": question.actions}

    def answer_all(self, service: PolicyService) -> None:
        """Answer until no episode runs any more."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: len(self._questions) == self._running)
                questions, self._questions = self._questions, []
            if not questions:
                return
            questions.sort(key=lambda q: q.number)
            try:
                answers = service.infer([q.request for q in questions])
                for question, actions in zip(questions, answers, strict=True):
                    question.actions = actions
            except ModePolicyError as error:
                for question in questions:
                    question.error = str(error)
            for question in questions:
                question.answered.set()


class Asked:
    """The endpoint of one of them."""

    def __init__(self, together: Together, number: int) -> None:
        self._together, self._number = together, number

    def open(self) -> Mapping[str, Any]:
        """Nothing to open."""
        return {}

    def infer(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """Wait for all the others."""
        return self._together.infer(self._number, request)

    def close(self) -> None:
        """Nothing to close."""


def on_a_virtual_clock(jobs: Sequence[tuple[list[str], int]], own: float, lanes: int) -> list[dict[str, Any]]:
    """Drive episodes, ``lanes`` at once; return what each came to.

    Args:
        jobs: the command line of `mode-control` and the number of each.
        own: seconds that the policy itself is thought to take.
        lanes: how many run at once.
    """
    assert SERVICE is not None
    fitted: dict[str, Fitted] = {}
    for command, _ in jobs:
        if str(command) not in fitted:
            fitted[str(command)] = fit_virtual(configuration(command))
    together, results = Together(), [dict[str, Any]() for _ in jobs]
    left = iter(range(len(jobs)))
    taking = threading.Lock()

    def take() -> int | None:
        with taking:
            return next(left, None)

    def lane(first: int) -> None:
        try:
            number: int | None = first
            while number is not None:
                command, episode = jobs[number]
                results[number] = virtual_episode(fitted[str(command)], Asked(together, number), own, episode)
                number = take()
        finally:
            together.ended()

    threads = []
    for _ in range(min(lanes, len(jobs))):
        first = take()
        assert first is not None
        together.began()
        threads.append(threading.Thread(target=lane, args=(first,), daemon=True))
    for thread in threads:
        thread.start()
    together.answer_all(SERVICE)
    for thread in threads:
        thread.join()
    if not all(results):
        raise SystemExit("an episode failed; see above")
    return results


class Watched(VirtualRobot):
    """Keeps the best coverage of an episode, where its environment measures one."""

    best: float | None = None

    def reset(self, seed: int) -> None:
        """Begin an episode."""
        super().reset(seed)
        self.best = None

    def observe(self) -> RobotObservation:
        """Return the newest observation."""
        seen = super().observe()
        if "coverage" in seen.info:
            self.best = max(self.best or 0.0, float(seen.info["coverage"]))
        return seen


@contextmanager
def virtual_robot(config: ControlConfig) -> Iterator[tuple[Watched, VirtualClock]]:
    """Lend a robot that nobody uses."""
    spec = simulation(config.robot, config.action)
    free = ROBOTS.setdefault(str(spec), [])
    try:
        pair = free.pop()
    except IndexError:
        clock = VirtualClock()
        pair = Watched(spec, clock), clock
    yield pair
    free.append(pair)


def fit_virtual(config: ControlConfig) -> Fitted:
    """Fit a configuration to the policy and its robot."""
    assert SERVICE is not None
    with virtual_robot(config) as (robot, _):
        robot.reset(0)
        return fit(config, SERVICE.metadata, robot, robot.observe().info.get("instruction"))


def virtual_episode(fitted: Fitted, endpoint: Endpoint, own: float, number: int) -> dict[str, Any]:
    """Drive one episode; return what it came to."""
    assert SERVICE is not None
    config = fitted.config
    telemetry = fitted.telemetry(shared=False)
    with virtual_robot(config) as (robot, clock):
        inference = VirtualInference(endpoint, clock, max(config.delay_ms / 1e3, own) + TRANSPORT)
        robot.reset(episode_seed(config.seed, number))
        summary = fitted.controller(robot, inference, telemetry, number, clock=clock).run()
        best = robot.best
    if summary.error:
        raise InferenceError(summary.error)
    sizes = moving_sizes(telemetry.since(0)[0], config.action, ranges(SERVICE.metadata))
    return {"success": bool(summary.info["success"]), "coverage": best, **sizes}
