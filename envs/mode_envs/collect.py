"""Demonstrations by scripted experts, made in parallel and handed out in a fixed order."""

from __future__ import annotations

import os
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mode_envs.demonstrate import Arrays, Attempt, RemoteDemonstrator, first_to_answer
from mode_envs.registration import entry
from mode_envs.suites import EnvTask
from mode_policy.errors import ConfigError, SimulatorError
from mode_policy.types import Episode


@dataclass
class TaskProgress:
    """How far a task is: demonstrations wanted, attempts made and how many of them succeeded."""

    wanted: int
    attempts: int = 0
    successes: int = 0

    @property
    def success_rate(self) -> float:
        """Successes over attempts, 0 before the first attempt."""
        return self.successes / max(self.attempts, 1)


@dataclass
class CollectReport:
    """The collection so far: per task (by name), and wall-clock seconds."""

    tasks: dict[str, TaskProgress]
    seconds: float = 0.0

    @property
    def attempts(self) -> int:
        """Attempts of all tasks."""
        return sum(task.attempts for task in self.tasks.values())

    @property
    def successes(self) -> int:
        """Demonstrations of all tasks."""
        return sum(task.successes for task in self.tasks.values())


@dataclass(frozen=True, kw_only=True)
class _Config:
    """The numbers that `collect` was given."""

    episodes: int
    seed: int
    workers: int | None
    noise: float
    noise_probability: float
    settle_steps: int
    max_attempts: int | None
    options: Mapping[str, Any]

    def __post_init__(self) -> None:
        if self.episodes < 1:
            raise ConfigError(f"episodes is {self.episodes}; ask for at least one per task")
        if self.workers is not None and self.workers < 1:
            raise ConfigError(f"workers is {self.workers}; demonstrations need at least one process")
        if self.noise < 0 or not 0 <= self.noise_probability <= 1:
            raise ConfigError(
                f"noise is {self.noise} with probability {self.noise_probability}; "
                "the first must be >= 0 and the second within 0 and 1"
            )
        if self.settle_steps < 0:
            raise ConfigError(f"settle_steps is {self.settle_steps}; it must be >= 0")
        if self.attempt_limit < self.episodes:
            raise ConfigError(
                f"max_attempts is {self.max_attempts}, but {self.episodes} successes are wanted"
            )

    @property
    def attempt_limit(self) -> int:
        """Attempts per task before giving up."""
        return 5 * self.episodes + 10 if self.max_attempts is None else self.max_attempts

    def attempt(self, task: EnvTask, number: int) -> Attempt:
        """Return a task's attempt ``number``."""
        return Attempt(
            env_id=task.env_id,
            max_steps=task.max_steps,
            seed=episode_seed(self.seed, number),
            noise=self.noise,
            noise_probability=self.noise_probability,
            settle_steps=self.settle_steps,
            options=self.options,
        )


class Collection(Iterator[Episode]):
    """Demonstrations in the order of their tasks and, within a task, of their seeds.

    ``report`` is up to date at any time.
    """

    def __init__(self, report: CollectReport, episodes: Generator[Episode]) -> None:
        self.report = report
        self._episodes = episodes

    def __next__(self) -> Episode:
        return next(self._episodes)

    def close(self) -> None:
        """Stop collecting and end the processes; exhausting the iterator does the same."""
        self._episodes.close()


def collect(
    tasks: Sequence[EnvTask],
    episodes: int,
    *,
    seed: int = 0,
    workers: int | None = None,
    noise: float = 0.0,
    noise_probability: float = 0.5,
    settle_steps: int = 5,
    max_attempts: int | None = None,
    options: Mapping[str, Any] | None = None,
) -> Collection:
    """Let experts demonstrate tasks; keep successes only.

    The episodes and their order depend on the arguments but not on the number of workers.

    Args:
        tasks: Distinct tasks that have an expert.
        episodes: Demonstrations per task.
        seed: Every episode's seed is a function of this and of its number within the task (`episode_seed`).
        workers: Processes; None for one per core.
        noise: Standard deviation of the disturbance of executed actions, in units of half the action range.
            Recorded actions are the expert's own.
        noise_probability: Fraction of steps that are disturbed.
        settle_steps: Steps recorded after the first success.
        max_attempts: Attempts per task before giving up; None for five per demonstration, plus ten.
        options: Arguments of the environments, e.g. ``{"obs_mode": "both"}``.

    Returns:
        An iterator of episodes with ``observation.state`` float32 ``(T, D)`` (and images, if ``options`` ask
        for them) and ``action`` float32 ``(T, A)``; its ``report`` counts attempts and successes.

    Raises:
        ConfigError: if a task is given twice or has no expert, or a value is out of range.
        SimulatorError: while iterating, if an expert fails too often or a simulator keeps crashing.
    """
    config = _Config(
        episodes=episodes,
        seed=seed,
        workers=workers,
        noise=noise,
        noise_probability=noise_probability,
        settle_steps=settle_steps,
        max_attempts=max_attempts,
        options=options or {},
    )
    report = CollectReport(tasks={})
    for task in tasks:
        if not entry(task.env_id).has_expert:
            raise ConfigError(f"{task.task.name!r} has no scripted expert to demonstrate it")
        if task.task.name in report.tasks:
            raise ConfigError(f"{task.task.name!r} is given twice; ask for more episodes instead")
        report.tasks[task.task.name] = TaskProgress(episodes)
    return Collection(report, _run(tasks, config, report))


def episode_seed(seed: int, number: int) -> int:
    """Return the seed of a task's attempt ``number`` (from 0), a 32-bit integer."""
    return int(np.random.SeedSequence((seed, number)).generate_state(1)[0])


@dataclass
class _Queue:
    """Attempts at one task, started in the order of their numbers and handed out in it."""

    task: EnvTask
    progress: TaskProgress
    limit: int
    started: int = 0
    handed_out: int = 0
    outcomes: dict[int, Arrays | None] = field(default_factory=dict)

    @property
    def needs_attempt(self) -> bool:
        """Whether another attempt is needed even if all open ones succeed: none is ever made in vain."""
        in_vain = self.progress.successes + self._open >= self.progress.wanted
        return not in_vain and self.started < self.limit

    @property
    def hopeless(self) -> bool:
        """Whether all allowed attempts were made and too few succeeded."""
        return self.progress.attempts >= self.limit and self.progress.successes < self.progress.wanted

    @property
    def _open(self) -> int:
        return self.started - self.progress.attempts

    def note(self, number: int, arrays: Arrays | None) -> None:
        """Take the outcome of an attempt."""
        self.outcomes[number] = arrays
        self.progress.attempts += 1
        self.progress.successes += arrays is not None

    def ready(self) -> Iterator[tuple[int, Arrays]]:
        """Hand out the demonstrations whose predecessors are all known."""
        while self.handed_out in self.outcomes:
            arrays = self.outcomes.pop(self.handed_out)
            if arrays is not None:
                yield self.handed_out, arrays
            self.handed_out += 1


def _run(tasks: Sequence[EnvTask], config: _Config, report: CollectReport) -> Generator[Episode]:
    begin = time.perf_counter()
    queues = [_Queue(task, report.tasks[task.task.name], config.attempt_limit) for task in tasks]
    waiting = list(queues)  # tasks whose episodes have not all been handed out
    demonstrators = [RemoteDemonstrator() for _ in range(config.workers or os.cpu_count() or 1)]
    busy: dict[RemoteDemonstrator, tuple[_Queue, int]] = {}
    try:
        while waiting:
            for demonstrator in demonstrators:
                queue = next((q for q in queues if q.needs_attempt), None)
                if demonstrator not in busy and queue is not None:
                    busy[demonstrator] = queue, queue.started
                    demonstrator.start(config.attempt(queue.task, queue.started))
                    queue.started += 1
            for demonstrator in first_to_answer(list(busy)):
                queue, number = busy.pop(demonstrator)
                queue.note(number, demonstrator.finish())
                report.seconds = time.perf_counter() - begin
                if queue.hopeless:
                    raise _gave_up(queue)
            while waiting:
                for number, arrays in waiting[0].ready():
                    seed = episode_seed(config.seed, number)
                    yield Episode(arrays=arrays, task=waiting[0].task.task, seed=seed)
                if waiting[0].progress.successes < config.episodes:
                    break
                waiting.pop(0)
    finally:
        for demonstrator in demonstrators:
            demonstrator.close()


def _gave_up(queue: _Queue) -> SimulatorError:
    progress = queue.progress
    return SimulatorError(
        f"the expert of {queue.task.task.name!r} solved only {progress.successes} of {progress.attempts} "
        f"attempts ({progress.success_rate:.0%}) and {progress.wanted} demonstrations were asked for; "
        "lower `noise` or raise `max_attempts`"
    )
