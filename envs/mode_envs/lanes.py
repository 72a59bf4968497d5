"""The simulator's side of a rollout: environments that advance in lockstep.

Runs inside a worker process, or inside the caller when there are none. What crosses the border is defined
here.
"""

from __future__ import annotations

import traceback
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np

from mode_envs.contract import ObservationDict, TaskEnv
from mode_policy.errors import SimulatorError

_IDLE_LIMIT = 16  # environments of other tasks, kept for later; one of Meta-World takes 30 MB, 0.1 s to build


@dataclass(frozen=True, kw_only=True)
class Begin:
    """Start an episode in a lane.

    Attributes:
        lane: Number of the lane.
        env_id: Gymnasium id.
        max_steps: Steps after which the episode is truncated.
        seed: Seed of the reset.
        reset: Options of the reset, e.g. ``{"init_state_id": 3}``.
        history: Observations that a policy sees at once.
        options: Arguments of the environment.
        film: Steps from one snapshot to the next, of which a video can be made; 0 for none.
        replay: Chunks ``(n, A)`` to execute right away: how an episode is restored after a crash.
    """

    lane: int
    env_id: str
    max_steps: int
    seed: int
    history: int
    reset: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    film: int = 0
    replay: tuple[np.ndarray, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Advance:
    """Execute actions float32 ``(n, A)`` in a lane, or fewer where its episode ends."""

    lane: int
    actions: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How an episode ended; ``metrics`` hold the best value of each that the environment reports.

    ``snapshots`` are float64 ``(F, S)``: the first and last moment and every ``film``-th between, if wanted.
    """

    success: bool
    steps: int
    return_: float
    metrics: dict[str, float]
    snapshots: np.ndarray | None


@dataclass(frozen=True, kw_only=True)
class Reply:
    """A lane's latest observations, each ``(history, ...)`` and oldest first, or how its episode ended."""

    lane: int
    observation: ObservationDict | None = None
    outcome: Outcome | None = None


class Lanes:
    """Some of a rollout's lanes; environments are reused from episode to episode."""

    def __init__(self) -> None:
        self._episodes: dict[int, _Episode] = {}
        self._idle: list[tuple[tuple[Any, ...], gymnasium.Env]] = []  # oldest first

    def __call__(self, commands: Sequence[Begin | Advance]) -> list[Reply]:
        """Carry out commands in order; return the last reply of each lane.

        Raises:
            SimulatorError: if an environment raises, naming it and its seed.
        """
        replies = {}
        for command in commands:
            episode = self._episodes.get(command.lane)
            begin = command if isinstance(command, Begin) else episode.begin if episode else None
            try:
                replies[command.lane] = self._carry_out(command)
            except SimulatorError:
                raise
            except Exception as error:
                where = f"{begin.env_id} with seed {begin.seed}" if begin else f"lane {command.lane}"
                raise SimulatorError(f"{where} raised an exception:\n{traceback.format_exc()}") from error
        return list(replies.values())

    def close(self) -> None:
        """Close every environment."""
        for _, env in self._idle:
            env.close()
        for episode in self._episodes.values():
            episode.env.close()

    def _carry_out(self, command: Begin | Advance) -> Reply:
        if isinstance(command, Begin):
            episode = self._episodes[command.lane] = _Episode(command, self._take(command))
            for actions in command.replay:
                episode.advance(actions)
        else:
            episode = self._episodes[command.lane]
            episode.advance(command.actions)
        if not episode.ended:
            return Reply(lane=command.lane, observation=episode.observation)
        del self._episodes[command.lane]
        self._put_back(episode.begin, episode.env)
        return Reply(lane=command.lane, outcome=episode.outcome)

    def _take(self, begin: Begin) -> gymnasium.Env:
        wanted = _kind(begin)
        for i, (kind, env) in enumerate(self._idle):
            if kind == wanted:
                del self._idle[i]
                return env
        return gymnasium.make(begin.env_id, max_episode_steps=begin.max_steps, **begin.options)

    def _put_back(self, begin: Begin, env: gymnasium.Env) -> None:
        # Those of the task at hand are few, one a lane, and about to be used again.
        kind = _kind(begin)
        self._idle.append((kind, env))
        others = [i for i, (other, _) in enumerate(self._idle) if other != kind]
        limit = min(e.metadata.get("idle_limit", _IDLE_LIMIT) for _, e in self._idle)
        for i in reversed(others[: max(0, len(others) - limit)]):
            self._idle.pop(i)[1].close()


def _kind(begin: Begin) -> tuple[Any, ...]:
    return begin.env_id, begin.max_steps, dict(begin.options)


class _Episode:
    """A running episode."""

    def __init__(self, begin: Begin, env: gymnasium.Env) -> None:
        self.begin, self.env = begin, env
        self.ended = self._success = False
        self._steps, self._return = 0, 0.0
        self._scene = env.unwrapped if isinstance(env.unwrapped, TaskEnv) else None
        self._snapshots: list[np.ndarray] = []
        self._draw(True)
        observation, info = env.reset(seed=begin.seed, options=dict(begin.reset))
        self._history = deque([observation] * begin.history, maxlen=begin.history)
        self._metrics = {name: float(info[name]) for name in env.metadata.get("metrics", ())}
        self._film()

    def advance(self, actions: np.ndarray) -> None:
        space: Any = self.env.action_space
        for i, action in enumerate(actions):
            if self.ended:
                return
            # A decision sees the last moments of a chunk; pictures of the others would be drawn for nobody.
            self._draw(len(actions) - i <= self.begin.history)
            action = np.clip(action, space.low, space.high)
            observation, reward, terminated, truncated, info = self.env.step(action)
            self._history.append(observation)
            self._steps += 1
            self._return += float(reward)
            self._success |= bool(info["success"])
            self._metrics = {name: max(best, float(info[name])) for name, best in self._metrics.items()}
            self.ended = terminated or truncated
            self._film()

    @property
    def observation(self) -> ObservationDict:
        return {key: np.stack([moment[key] for moment in self._history]) for key in self._history[0]}

    @property
    def outcome(self) -> Outcome:
        return Outcome(
            success=self._success,
            steps=self._steps,
            return_=self._return,
            metrics=self._metrics,
            snapshots=np.stack(self._snapshots) if self._snapshots else None,
        )

    def _draw(self, draws: bool) -> None:
        if self._scene is not None:
            self._scene.draws = draws

    def _film(self) -> None:
        stride = self.begin.film
        if stride and self._scene is not None and (self.ended or self._steps % stride == 0):
            self._snapshots.append(self._scene.snapshot())
