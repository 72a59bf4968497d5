"""Demonstrations by scripted experts, made in parallel and handed out in a fixed order.

Pictures are drawn afterwards, of the demonstrations that succeeded: an attempt is simulated without any, its
snapshots are recorded (and kept, where `recordings` says so), and drawing them is work of its own that any
process can do, for any camera and size.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mode_envs.contract import Size
from mode_envs.demonstrate import RemoteDemonstrator, first_to_answer
from mode_envs.recordings import Recordings
from mode_envs.registration import entry
from mode_envs.suites import EnvTask
from mode_envs.task_queue import CollectSettings, Job, TaskProgress, TaskQueue, episode_seed
from mode_envs.worker import Notify
from mode_policy.errors import ConfigError, SimulatorError
from mode_policy.types import Episode

__all__ = ["CollectReport", "Collection", "TaskProgress", "collect", "episode_seed"]

_AHEAD = 64  # demonstrations, pictures included, that may wait in memory for others to come before them


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

    @property
    def complete(self) -> int:
        """Demonstrations of all tasks that lack nothing, not even pictures."""
        return sum(task.complete for task in self.tasks.values())

    @property
    def missing(self) -> int:
        """Demonstrations of all tasks that there will not be."""
        return sum(task.missing for task in self.tasks.values())

    @property
    def given_up(self) -> list[str]:
        """Names of the tasks whose experts failed too often."""
        return [name for name, task in self.tasks.items() if task.missing]

    def shortfall(self) -> str:
        """Say which tasks lack demonstrations, and how often their experts succeeded."""
        lacking = "; ".join(
            f"{name!r}: {task.successes} of {task.attempts} attempts ({task.success_rate:.0%}"
            + (f", {len(task.faults)} ended in an exception)" if task.faults else ")")
            for name, task in self.tasks.items()
            if task.missing
        )
        return (
            f"{len(self.given_up)} of {len(self.tasks)} tasks lack demonstrations, as their experts failed "
            f"too often ({lacking}); those of the other tasks are complete"
        )


class Collection(Iterator[Episode]):
    """Demonstrations in the order of their tasks and, within a task, of their attempts.

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
    no_ops_below: float = 0.0,
    max_attempts: int | None = None,
    options: Mapping[str, Any] | None = None,
    cameras: Sequence[str] = (),
    size: Size | None = None,
    recordings: Path | None = None,
    skip: Mapping[str, int] | None = None,
    allow_incomplete: bool = False,
    on_progress: Callable[[CollectReport], None] = lambda _: None,
    notify: Notify = lambda _: None,
) -> Collection:
    """Let experts demonstrate tasks; keep successes only.

    A task is given up after too many failures; the others go on. An expert that raises an exception has
    failed in that attempt; the report has the traceback.

    The episodes and their order depend on the arguments but not on the number of workers, nor on what was
    recorded before.

    Args:
        tasks: Distinct tasks that have an expert.
        episodes: Demonstrations per task.
        seed: Every episode's seed is a function of this and of its number within the task (`episode_seed`).
        workers: Processes; None for one per core.
        noise: Standard deviation of the disturbance of executed actions, in units of half the action range.
            Recorded actions are the expert's own.
        noise_probability: Fraction of steps that are disturbed.
        settle_steps: Steps recorded after the first success.
        no_ops_below: Leave out steps with less motion than this, as a share of the action's range, in which
            nothing else happens (`mode_envs.no_ops`), and execute the others anew; a demonstration that does
            not solve its task without them is a failed attempt. 0 keeps all.
        max_attempts: Attempts per task before giving up; None for five per demonstration, plus ten. A task
            is also given up if none of its first `WITHOUT_SUCCESS` succeeded.
        options: Arguments of the environments.
        cameras: Whose pictures the demonstrations shall have.
        size: Height and width of the pictures.
        recordings: Folder in which demonstrations without pictures are kept and looked for
            (`mode_envs.recordings`); None keeps none.
        skip: Name of a task → number of its episodes that the caller has already, from the first on; they are
            neither drawn nor handed out.
        allow_incomplete: End well although tasks were given up; the report says which.
        on_progress: Called with the report whenever it has changed.
        notify: Told in a sentence if the simulators take long to begin.

    Returns:
        An iterator of episodes with ``observation.state`` and the environment's other vectors, float32
        ``(T, D)``, ``observation.images.<camera>`` uint8 ``(T, *size, 3)`` and ``action`` float32 ``(T, A)``;
        its ``report`` counts attempts and successes.

    Raises:
        ConfigError: if a task is given twice or has no expert, or a value is out of range.
        SimulatorError: while iterating, if a simulator keeps crashing; at the end, if tasks were given up.
    """
    if workers is not None and workers < 1:
        raise ConfigError(f"workers is {workers}; demonstrations need at least one process")
    settings = CollectSettings(
        episodes=episodes,
        seed=seed,
        noise=noise,
        noise_probability=noise_probability,
        settle_steps=settle_steps,
        no_ops_below=no_ops_below,
        max_attempts=max_attempts,
        options=options or {},
        cameras=tuple(cameras),
        size=size,
        recordings=None if recordings is None else Recordings(recordings),
    )
    report = CollectReport(tasks={})
    queues = []
    for task in tasks:
        name = task.task.name
        if not entry(task.env_id).has_expert:
            raise ConfigError(f"{name!r} has no scripted expert to demonstrate it")
        if name in report.tasks:
            raise ConfigError(f"{name!r} is given twice; ask for more episodes instead")
        report.tasks[name] = TaskProgress(episodes)
        queues.append(TaskQueue(task, settings, report.tasks[name], (skip or {}).get(name, 0)))
    run = _Run(queues, workers or os.cpu_count() or 1, report, allow_incomplete, on_progress, notify)
    return Collection(report, run.episodes())


class _Run:
    """Processes at work on the queues of all tasks."""

    def __init__(
        self,
        queues: list[TaskQueue],
        workers: int,
        report: CollectReport,
        allow_incomplete: bool,
        on_progress: Callable[[CollectReport], None],
        notify: Notify,
    ) -> None:
        self._queues = queues  # whose demonstrations have not all been handed out
        self._workers = workers
        self._report, self._allow_incomplete = report, allow_incomplete
        self._on_progress, self._notify = on_progress, notify
        self._said = False
        self._busy: dict[RemoteDemonstrator, tuple[TaskQueue, Job]] = {}
        self._latest: dict[RemoteDemonstrator, TaskQueue] = {}

    def episodes(self) -> Generator[Episode]:
        begin = time.perf_counter()
        demonstrators = [RemoteDemonstrator() for _ in range(self._workers)]
        try:
            while self._queues:
                for demonstrator in demonstrators:
                    if demonstrator not in self._busy:
                        self._employ(demonstrator)
                yield from self._hand_out()
                if not self._busy:
                    continue
                for demonstrator in first_to_answer(list(self._busy), self._say):
                    queue, job = self._busy.pop(demonstrator)
                    queue.take(job, demonstrator.finish())
                    self._report.seconds = time.perf_counter() - begin
                    self._on_progress(self._report)
                yield from self._hand_out()
        finally:
            for demonstrator in demonstrators:
                demonstrator.close()
        if self._report.given_up and not self._allow_incomplete:
            raise SimulatorError(
                f"{self._report.shortfall()}. Lower `noise`, leave those tasks out, or take what there is "
                "with allow_incomplete=True"
            )

    def _say(self, sentence: str) -> None:
        if not self._said:
            self._notify(sentence)
        self._said = True

    def _employ(self, demonstrator: RemoteDemonstrator) -> None:
        """Give a process something to do, of the task that it did last if possible: its scene is built."""
        queues = self._queues if sum(queue.held for queue in self._queues) < _AHEAD else self._queues[:1]
        latest = self._latest.get(demonstrator)
        for queue in sorted(queues, key=lambda queue: queue is not latest):
            if (job := queue.next_job()) is not None:
                self._busy[demonstrator] = queue, job
                self._latest[demonstrator] = queue
                demonstrator.start(job.request)
                return

    def _hand_out(self) -> Generator[Episode]:
        while self._queues:
            queue = self._queues[0]
            for seed, arrays in queue.ready():
                yield Episode(arrays=arrays, task=queue.task.task, seed=seed)
            if not queue.finished:
                return
            self._queues.pop(0)
