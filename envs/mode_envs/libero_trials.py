"""Trials of the scripted expert from LIBERO's published initial states, for a process of their own."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np

from mode_envs.contract import STATE
from mode_envs.libero_expert import LiberoExpert
from mode_envs.suites import env_task, make

_RATE = 20.0  # observations a second


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One episode; the outcome is a pure function of these values.

    Attributes:
        suite: Key in `mode_envs.libero_tasks.LIBERO_SUITES`.
        task: LIBERO's name of the task.
        state: Number of the published initial state.
        seed: The expert's.
    """

    suite: str
    task: str
    state: int
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a trial went.

    Attributes:
        success: Whether the task was solved within its horizon.
        steps: Control steps taken.
        seconds: Wall-clock seconds, the expert's included.
        mean_speed: Of the hand, m/s.
        peak_speed: Of the hand between two observations, m/s.
        jerk: Root mean square of the hand's jerk, m/s³, from third differences at 20 Hz.
        events: What went wrong on the way, in words; also where the task was solved in the end.
    """

    success: bool
    steps: int
    seconds: float
    mean_speed: float
    peak_speed: float
    jerk: float
    events: tuple[str, ...]


class Trials:
    """Runs trials, keeping the simulator of the last task."""

    def __init__(self) -> None:
        self._made_for: tuple[str, str, int] | None = None
        self._env: gymnasium.Env[Any, Any]
        self._expert: LiberoExpert

    def __call__(self, trial: Trial) -> Outcome:
        """Return how a trial went."""
        self._prepare(trial)
        begin = time.perf_counter()
        observation, info = self._env.reset(seed=trial.seed, options={"init_state_id": trial.state})
        self._expert.reset()
        hands, truncated = [observation[STATE][:3]], False
        while not (info["success"] or truncated or self._expert.gave_up):
            observation, _, _, truncated, info = self._env.step(self._expert.act(observation))
            hands.append(observation[STATE][:3])
        speeds, jerk = kinematics(np.array(hands))
        return Outcome(
            success=bool(info["success"]),
            steps=len(hands) - 1,
            seconds=round(time.perf_counter() - begin, 2),
            mean_speed=round(float(speeds.mean()), 4),
            peak_speed=round(float(speeds.max()), 4),
            jerk=round(jerk, 2),
            events=tuple(self._expert.events),
        )

    def _prepare(self, trial: Trial) -> None:
        wanted = (trial.suite, trial.task, trial.seed)
        if self._made_for == wanted:
            return
        if self._made_for is not None:
            self._env.close()
        self._made_for = None
        self._expert = LiberoExpert(*wanted)
        self._env = make(env_task(trial.task))
        self._made_for = wanted


def kinematics(positions: np.ndarray) -> tuple[np.ndarray, float]:
    """Return speeds ``(T - 1,)`` (m/s) and the root mean square jerk (m/s³) of positions ``(T, 3)`` at 20 Hz.

    Fewer than two positions have the speed 0, fewer than four the jerk 0.
    """
    if len(positions) < 2:
        return np.zeros(1), 0.0
    speeds = np.linalg.norm(np.diff(positions, axis=0), axis=1) * _RATE
    jerks = np.diff(positions, n=3, axis=0) * _RATE**3
    return speeds, float(np.sqrt((jerks**2).sum(1).mean())) if len(jerks) else 0.0
