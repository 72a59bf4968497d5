"""The work that a collection has with one task: attempts first, then pictures of the successes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mode_envs.contract import IMAGE_PREFIX, Size
from mode_envs.demonstrate import SNAPSHOTS, Arrays, Attempt, Drawing, Fault
from mode_envs.features import features
from mode_envs.recordings import Recordings
from mode_envs.suites import EnvTask
from mode_policy.errors import ConfigError

WITHOUT_SUCCESS = 20
"""Attempts after which a task is given up of which none has succeeded."""


@dataclass
class TaskProgress:
    """How far a task is.

    Attributes:
        wanted: Demonstrations.
        attempts: Made so far, or found recorded.
        successes: Of them.
        complete: Demonstrations that lack nothing, not even pictures.
        missing: Demonstrations that there will not be, as the expert failed too often; then no more attempts
            are made.
        faults: Attempts that failed because the expert raised an exception, by number.
    """

    wanted: int
    attempts: int = 0
    successes: int = 0
    complete: int = 0
    missing: int = 0
    faults: dict[int, Fault] = field(default_factory=dict)

    @property
    def success_rate(self) -> float:
        """Successes over attempts, 0 before the first attempt."""
        return self.successes / max(self.attempts, 1)


@dataclass(frozen=True, kw_only=True)
class CollectSettings:
    """What `mode_envs.collect.collect` was asked for, of each task."""

    episodes: int
    seed: int
    noise: float
    noise_probability: float
    settle_steps: int
    no_ops_below: float
    max_attempts: int | None
    options: Mapping[str, Any]
    cameras: tuple[str, ...]
    size: Size | None
    recordings: Recordings | None

    def __post_init__(self) -> None:
        if self.episodes < 1:
            raise ConfigError(f"episodes is {self.episodes}; ask for at least one per task")
        if self.noise < 0 or not 0 <= self.noise_probability <= 1:
            raise ConfigError(
                f"noise is {self.noise} with probability {self.noise_probability}; "
                "the first must be >= 0 and the second within 0 and 1"
            )
        if self.settle_steps < 0:
            raise ConfigError(f"settle_steps is {self.settle_steps}; it must be >= 0")
        if not 0 <= self.no_ops_below < 1:
            raise ConfigError(
                f"no_ops_below is {self.no_ops_below}; it is a share of the action's range, 0 to keep all"
            )
        if bool(self.cameras) != (self.size is not None):
            raise ConfigError(f"cameras is {list(self.cameras)} and size {self.size}; give both, or neither")
        if self.attempt_limit < self.episodes:
            raise ConfigError(
                f"max_attempts is {self.max_attempts}, but {self.episodes} successes are wanted"
            )

    @property
    def attempt_limit(self) -> int:
        """Attempts per task before giving up."""
        return 5 * self.episodes + 10 if self.max_attempts is None else self.max_attempts


def episode_seed(seed: int, number: int) -> int:
    """Return the seed of a task's attempt ``number`` (from 0), a 32-bit integer."""
    return int(np.random.SeedSequence((seed, number)).generate_state(1)[0])


@dataclass(frozen=True)
class Job:
    """Something for a `Demonstrator` to do, of the attempt of this number, and what is recorded of it."""

    number: int
    request: Attempt | Drawing
    arrays: Arrays = field(default_factory=dict)


class TaskQueue:
    """Attempts, begun in the order of their numbers; pictures; and demonstrations handed out in that order.

    Args:
        task: What to demonstrate.
        settings: How.
        progress: Kept up to date.
        skip: Of the first demonstrations, so many are dropped.
    """

    def __init__(self, task: EnvTask, settings: CollectSettings, progress: TaskProgress, skip: int) -> None:
        self.task, self.progress = task, progress
        self._settings, self._skip = settings, skip
        self._begun = 0
        self._outcomes: dict[int, Arrays | None] = {}  # of attempts that have unknown predecessors
        self._known = 0  # attempts, from the first on, whose outcomes are known
        self._settled = 0  # successes among those: nothing can come before them any more
        self._order: list[int] = []  # numbers of the settled ones that were not handed out
        self._undrawn: dict[int, Arrays] = {}
        self._complete: dict[int, Arrays] = {}

    def next_job(self) -> Job | None:
        """Return the next thing to do, or None if there is nothing to begin now.

        Recordings are taken up on the way. No attempt is made in vain: only as many are open as would, if all
        of them succeeded, be enough.
        """
        while self._needs_attempt:
            job = self._attempt(self._begun)
            self._begun += 1
            if (recorded := self._recorded(job)) is None:
                return job
            self._note(job.number, recorded)
        if not self._undrawn:
            return None
        number = next(iter(self._undrawn))
        arrays = self._undrawn.pop(number)
        assert self._settings.size is not None
        drawing = Drawing(
            env_id=self.task.env_id,
            max_steps=self.task.max_steps,
            snapshots=arrays[SNAPSHOTS],
            cameras=self._settings.cameras,
            size=self._settings.size,
            options=self._settings.options,
        )
        return Job(number, drawing, arrays)

    def take(self, job: Job, answer: Arrays | Fault | None) -> None:
        """Take what came of a job."""
        if isinstance(answer, Fault):
            if not self.progress.missing:
                self.progress.faults[job.number] = answer
            answer = None
        if isinstance(job.request, Drawing):
            assert answer is not None
            self._finish(job.number, job.arrays | answer)
            return
        if answer is not None and self._settings.recordings is not None:
            self._settings.recordings.write(self._path(job), answer)
        self._note(job.number, answer)

    def ready(self) -> Iterator[tuple[int, Arrays]]:
        """Hand out the demonstrations that are complete, each with its seed, as far as the order allows."""
        while self._order and self._order[0] in self._complete:
            number = self._order.pop(0)
            yield episode_seed(self._settings.seed, number), self._complete.pop(number)

    @property
    def held(self) -> int:
        """Complete demonstrations that wait for others to be handed out before them."""
        return len(self._complete)

    @property
    def finished(self) -> bool:
        """Whether every demonstration that there is or will be has been handed out."""
        return self._settled + self.progress.missing >= self.progress.wanted and not self._order

    @property
    def _needs_attempt(self) -> bool:
        running = self._begun - self.progress.attempts
        in_vain = self.progress.missing > 0 or self.progress.successes + running >= self.progress.wanted
        return not in_vain and self._begun < self._settings.attempt_limit

    def _attempt(self, number: int) -> Job:
        settings = self._settings
        attempt = Attempt(
            env_id=self.task.env_id,
            max_steps=self.task.max_steps,
            seed=episode_seed(settings.seed, number),
            noise=settings.noise,
            noise_probability=settings.noise_probability,
            settle_steps=settings.settle_steps,
            no_ops_below=settings.no_ops_below,
            options=settings.options,
            snapshots=bool(settings.cameras) or settings.recordings is not None,
        )
        return Job(number, attempt)

    def _path(self, job: Job) -> Any:
        assert self._settings.recordings is not None
        assert isinstance(job.request, Attempt)
        return self._settings.recordings.path(job.request, self._settings.seed, job.number)

    def _recorded(self, job: Job) -> Arrays | None:
        recordings = self._settings.recordings
        found = None if recordings is None else recordings.read(self._path(job))
        if found is None:
            return None
        observed = features(self.task.env_id, self._settings.options.get("obs_mode", "state"))
        vectors = {key for key in observed if not key.startswith(IMAGE_PREFIX)}
        return found if vectors <= set(found) else None  # an older one may lack what is observed now

    def _note(self, number: int, arrays: Arrays | None) -> None:
        """Take the outcome of an attempt, and settle those whose predecessors are all known now."""
        if self.progress.missing:
            return  # it was begun before the task was given up
        self._outcomes[number] = arrays
        self.progress.attempts += 1
        self.progress.successes += arrays is not None
        while self._known in self._outcomes:
            found = self._outcomes.pop(self._known)
            if found is not None:
                self._settle(self._known, found)
            self._known += 1
            # Judged in the order of the attempts, so that it does not depend on the number of processes.
            in_vain = self._known >= WITHOUT_SUCCESS and not self._settled
            if in_vain or self._known >= self._settings.attempt_limit:
                self.progress.missing = self.progress.wanted - self._settled
                return

    def _settle(self, number: int, arrays: Arrays) -> None:
        self._settled += 1
        if self._settled <= self._skip:
            self.progress.complete += 1
            return
        self._order.append(number)
        if self._settings.cameras:
            self._undrawn[number] = arrays
        else:
            self._finish(number, arrays)

    def _finish(self, number: int, arrays: Arrays) -> None:
        self._complete[number] = {key: x for key, x in arrays.items() if key != SNAPSHOTS}
        self.progress.complete += 1
