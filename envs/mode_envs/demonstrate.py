"""Demonstrations one at a time: by an expert, here or in a process that may die."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from typing import Any

import gymnasium
import numpy as np

from mode_envs.contract import ACTION
from mode_envs.experts import Expert, make_expert
from mode_envs.registration import entry
from mode_envs.worker import Worker, WorkerDiedError
from mode_policy.errors import SimulatorError

_TIMEOUT = 300.0  # seconds; an attempt takes well under one, or a minute with pictures, and beyond it hangs
_MAX_RESTARTS = 3  # of the same attempt

Arrays = dict[str, np.ndarray]
"""Feature key → what was recorded, ``(T, ...)``."""


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """What to demonstrate. The outcome is a pure function of these values.

    Attributes:
        env_id: Gymnasium id.
        max_steps: Steps after which the attempt has failed.
        seed: Seed of the reset and, with another stream, of the noise.
        noise: Standard deviation of the disturbance, in units of half the action range.
        noise_probability: Fraction of steps that are disturbed.
        settle_steps: Steps recorded after the first success.
        options: Arguments of the environment, e.g. ``obs_mode``.
    """

    env_id: str
    max_steps: int
    seed: int
    noise: float = 0.0
    noise_probability: float = 0.5
    settle_steps: int = 5
    options: Mapping[str, Any] = field(default_factory=dict)


class Demonstrator:
    """Makes demonstrations, keeping the environment of the last task for the next attempt."""

    def __init__(self) -> None:
        self._made_for: tuple[str, int, dict[str, Any]] | None = None
        self._env: gymnasium.Env
        self._expert: Expert

    def __call__(self, attempt: Attempt) -> Arrays | None:
        """Return the recorded arrays by feature key, each ``(T, ...)``, or None if the expert failed.

        Under noise the executed action is the expert's plus a disturbance, and the recorded one is the
        expert's: the data then shows how to recover (DART, Laskey et al. 2017, arXiv 1703.09327).
        """
        self._prepare(attempt)
        env, expert = self._env, self._expert
        low, high = env.action_space.low, env.action_space.high  # type: ignore[attr-defined]  # a Box
        generator = np.random.default_rng((attempt.seed, 1))
        observation, _ = env.reset(seed=attempt.seed)
        expert.reset()
        records: dict[str, list[np.ndarray]] = {key: [] for key in (*observation, ACTION)}
        settle: int | None = None  # steps left to record, once the task is solved
        truncated = False
        while not truncated and settle != 0:
            action = expert.act(observation)
            for key, value in (*observation.items(), (ACTION, action)):
                records[key].append(value)
            executed = action
            if settle is None and attempt.noise and generator.random() < attempt.noise_probability:
                disturbance = generator.normal(0.0, attempt.noise, action.shape) * (high - low) / 2
                executed = np.clip(action + disturbance, low, high).astype(np.float32)
            observation, _, _, truncated, info = env.step(executed)
            if settle is not None:
                settle -= 1
            elif info["success"]:
                settle = attempt.settle_steps
        if settle is None:
            return None
        return {key: np.stack(values) for key, values in records.items()}

    def _prepare(self, attempt: Attempt) -> None:
        wanted = (attempt.env_id, attempt.max_steps, dict(attempt.options))
        if self._made_for == wanted:
            return
        if self._made_for is not None:
            self._env.close()
        self._made_for = None
        self._expert = make_expert(attempt.env_id)
        options = {**entry(attempt.env_id).demonstration, **attempt.options}
        self._env = gymnasium.make(attempt.env_id, max_episode_steps=attempt.max_steps, **options)
        self._made_for = wanted


class RemoteDemonstrator:
    """A `Demonstrator` in a process of its own, one attempt at a time; a lost attempt is made again."""

    def __init__(self) -> None:
        self._worker = _spawn()

    def start(self, attempt: Attempt) -> None:
        """Begin an attempt."""
        self._attempt, self._restarts = attempt, 0
        self._send()

    def finish(self) -> Arrays | None:
        """Wait for the attempt and return its arrays, or None if the expert failed.

        Raises:
            SimulatorError: if the simulator raises, or its process keeps dying.
        """
        while True:
            try:
                return self._worker.receive(_TIMEOUT)
            except WorkerDiedError as death:
                self._restarts += 1
                if self._restarts > _MAX_RESTARTS:
                    raise SimulatorError(
                        f"{self._attempt.env_id}, seed {self._attempt.seed}: {death}"
                    ) from death
            self._worker.close()
            self._worker = _spawn()
            self._send()

    def close(self) -> None:
        """End the process."""
        self._worker.close()

    def _send(self) -> None:
        with suppress(WorkerDiedError):  # `finish` meets the same death and deals with it
            self._worker.send(self._attempt)


def first_to_answer(demonstrators: Sequence[RemoteDemonstrator]) -> list[RemoteDemonstrator]:
    """Wait for one or more to have an answer, or to be dead, and return those."""
    ready = set(wait([d._worker.connection for d in demonstrators], _TIMEOUT))
    # Nobody: name one that hangs, which `finish` will find out.
    return [d for d in demonstrators if d._worker.connection in ready] or list(demonstrators[:1])


def _spawn() -> Worker:
    return Worker("mode_envs.demonstrate:Demonstrator")
