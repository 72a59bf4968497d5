"""Demonstrations one at a time: by an expert, here or in a process that may die; and pictures of them."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from typing import Any

import gymnasium
import numpy as np

from mode_envs.contract import ACTION, IMAGE_PREFIX, STATE, ObservationDict, Size, TaskEnv
from mode_envs.experts import Expert, make_expert
from mode_envs.no_ops import no_ops
from mode_envs.registration import entry
from mode_envs.worker import PATIENCE, STILL_STARTING, Notify, Worker, WorkerDiedError
from mode_policy.errors import ModePolicyError, SimulatorError

_TIMEOUT = 300.0  # seconds; an attempt takes well under one, or a minute with pictures, and beyond it hangs
_MAX_RESTARTS = 3  # of the same request

SNAPSHOTS = "snapshots"
"""Where a record has what its pictures depend on, float64 ``(T, S)``; no feature of a store."""

Arrays = dict[str, np.ndarray]
"""Feature key → what was recorded, ``(T, ...)``."""
_EXECUTED = "executed"  # where actions are recorded as they were executed, disturbance included
_Act = Callable[[ObservationDict, bool], tuple[np.ndarray, np.ndarray]]
"""Observation, and whether the task is solved → the expert's action, and that to execute."""


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
        no_ops_below: Steps with less motion than this, as a share of the action's range, in which nothing
            else happens (`mode_envs.no_ops`), are left out and the others executed anew; 0 keeps all.
        options: Arguments of the environment, e.g. ``obs_mode``.
        snapshots: Record `SNAPSHOTS`, from which pictures can be made later.
    """

    env_id: str
    max_steps: int
    seed: int
    noise: float = 0.0
    noise_probability: float = 0.5
    settle_steps: int = 5
    no_ops_below: float = 0.0
    options: Mapping[str, Any] = field(default_factory=dict)
    snapshots: bool = False


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """Pictures to make of recorded moments.

    Attributes:
        env_id, max_steps, options: As of the attempts, so that one environment serves both.
        snapshots: The moments, ``(T, S)``.
        cameras: Names of the environment's cameras.
        size: Height and width.
    """

    env_id: str
    max_steps: int
    snapshots: np.ndarray
    cameras: tuple[str, ...]
    size: Size
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Fault:
    """An expert raised an exception: the attempt has failed, as where it does not solve the task.

    Attributes:
        traceback: Of the exception, as Python prints it.
    """

    traceback: str

    @property
    def error(self) -> str:
        """The exception itself: the last line."""
        return self.traceback.strip().rpartition("\n")[2]


class _ExpertRaisedError(Exception):
    pass


class Demonstrator:
    """Makes demonstrations and pictures, keeping the environment of the last task for the next request."""

    def __init__(self) -> None:
        self._made_for: tuple[str, int, dict[str, Any]] | None = None
        self._env: gymnasium.Env
        self._expert: Expert | None = None

    def __call__(self, request: Attempt | Drawing) -> Arrays | Fault | None:
        """Carry out a request.

        Returns:
            Of an attempt, what was recorded by feature key, each ``(T, ...)``, or None if the expert failed,
            or a `Fault` if it raised an exception. Of a drawing, uint8 ``(T, height, width, 3)`` by the
            feature keys of the cameras.
        """
        self._prepare(request)
        if isinstance(request, Drawing):
            return self._draw(request)
        try:
            return self._demonstrate(request)
        except _ExpertRaisedError as raised:
            self._expert = None  # whatever state it is in
            return Fault("".join(traceback.format_exception(raised.__cause__)))

    def _demonstrate(self, attempt: Attempt) -> Arrays | None:
        """Let the expert try.

        Under noise the executed action is the expert's plus a disturbance, and the recorded one is the
        expert's: the data then shows how to recover (DART, Laskey et al. 2017, arXiv 1703.09327).
        """
        expert = self._begin(attempt)
        low, high = self._env.action_space.low, self._env.action_space.high  # type: ignore[attr-defined]
        scale = (high - low) / 2
        generator = np.random.default_rng((attempt.seed, 1))

        def act(observation: ObservationDict, solved: bool) -> tuple[np.ndarray, np.ndarray]:
            try:
                action = expert.act(observation)
            except Exception as error:
                raise _ExpertRaisedError from error
            if solved or not attempt.noise or generator.random() >= attempt.noise_probability:
                return action, action
            disturbance = generator.normal(0.0, attempt.noise, action.shape) * scale
            return action, np.clip(action + disturbance, low, high).astype(np.float32)

        found = self._perform(attempt, act)
        if found is not None and attempt.no_ops_below:
            left_out = no_ops(found[ACTION], found[_EXECUTED], found[STATE], scale, attempt.no_ops_below)
            kept = iter(zip(found[ACTION][~left_out], found[_EXECUTED][~left_out], strict=True))
            found = self._perform(attempt, lambda *_: next(kept), int((~left_out).sum()))
        return None if found is None else {key: x for key, x in found.items() if key != _EXECUTED}

    def _begin(self, attempt: Attempt) -> Expert:
        """Return the expert, which knows nothing of earlier attempts."""
        try:
            if self._expert is None:
                self._expert = make_expert(attempt.env_id)
            self._expert.reset()
        except ModePolicyError:
            raise  # something is missing, which it says; no other attempt would find it
        except Exception as error:
            raise _ExpertRaisedError from error
        return self._expert

    def _perform(self, attempt: Attempt, act: _Act, steps: int | None = None) -> Arrays | None:
        """Act from the attempt's start, and return what was recorded, or None if that did not solve the task.

        Args:
            attempt: Where to start, and what to record.
            act: Chooses actions.
            steps: How many; None to go on until the attempt's end, or some steps after the first success.
        """
        env = self._env
        scene = _scene(env) if attempt.snapshots else None
        observation, _ = env.reset(seed=attempt.seed)
        records: dict[str, list[np.ndarray]] = {key: [] for key in (*observation, ACTION, _EXECUTED)}
        if scene is not None:
            records[SNAPSHOTS] = []
        settle: int | None = None  # steps left to record, once the task is solved
        truncated = False
        while not truncated and (settle != 0 if steps is None else len(records[ACTION]) < steps):
            action, executed = act(observation, settle is not None)
            for key, value in (*observation.items(), (ACTION, action), (_EXECUTED, executed)):
                records[key].append(value)
            if scene is not None:
                records[SNAPSHOTS].append(scene.snapshot())
            observation, _, _, truncated, info = env.step(executed)
            if settle is not None:
                settle -= 1
            elif info["success"]:
                settle = attempt.settle_steps
        if settle is None:
            return None
        return {key: np.stack(values) for key, values in records.items()}

    def _draw(self, drawing: Drawing) -> Arrays:
        scene = _scene(self._env)
        return {
            IMAGE_PREFIX + camera: np.stack(
                [scene.picture(drawing.size, camera, moment) for moment in drawing.snapshots]
            )
            for camera in drawing.cameras
        }

    def _prepare(self, request: Attempt | Drawing) -> None:
        wanted = (request.env_id, request.max_steps, dict(request.options))
        if self._made_for == wanted:
            return
        if self._made_for is not None:
            self._env.close()
        self._made_for = self._expert = None
        options = {**entry(request.env_id).demonstration, **request.options}
        self._env = gymnasium.make(request.env_id, max_episode_steps=request.max_steps, **options)
        self._made_for = wanted


class RemoteDemonstrator:
    """A `Demonstrator` in a process of its own, one request at a time; a lost one is made again."""

    def __init__(self) -> None:
        self._worker = _spawn()

    def start(self, request: Attempt | Drawing) -> None:
        """Begin a request."""
        self._request, self._restarts = request, 0
        self._send()

    def finish(self) -> Arrays | Fault | None:
        """Wait for the answer and return it, see `Demonstrator`.

        Raises:
            SimulatorError: if the simulator raises, or its process keeps dying.
        """
        while True:
            try:
                return self._worker.receive(_TIMEOUT)
            except WorkerDiedError as death:
                self._restarts += 1
                if self._restarts > _MAX_RESTARTS:
                    raise SimulatorError(f"{_named(self._request)}: {death}") from death
            self._worker.close()
            self._worker = _spawn()
            self._send()

    def close(self) -> None:
        """End the process."""
        self._worker.close()

    def _send(self) -> None:
        with suppress(WorkerDiedError):  # `finish` meets the same death and deals with it
            self._worker.send(self._request)


def first_to_answer(demonstrators: Sequence[RemoteDemonstrator], notify: Notify) -> list[RemoteDemonstrator]:
    """Wait for one or more to have an answer, or to be dead, and return those.

    Args:
        demonstrators: At least one, all with a request.
        notify: Told in a sentence that the first answers take long.
    """
    while True:
        ready = set(wait([d._worker.connection for d in demonstrators], PATIENCE))
        if ready:
            return [d for d in demonstrators if d._worker.connection in ready]
        # One that hangs: `finish` finds it out.
        if hanging := [d for d in demonstrators if d._worker.overdue(_TIMEOUT)]:
            return hanging
        if all(d._worker.fresh for d in demonstrators):
            notify(STILL_STARTING)


def _scene(env: gymnasium.Env) -> TaskEnv:
    scene = env.unwrapped
    assert isinstance(scene, TaskEnv)
    return scene


def _named(request: Attempt | Drawing) -> str:
    what = f"seed {request.seed}" if isinstance(request, Attempt) else "drawing recorded moments"
    return f"{request.env_id}, {what}"


def _spawn() -> Worker:
    return Worker("mode_envs.demonstrate:Demonstrator")
