"""A scripted expert for every task of LIBERO."""

from __future__ import annotations

import hashlib
from collections.abc import Generator

import numpy as np

from mode_envs.contract import ENVIRONMENT_STATE, STATE, ObservationDict
from mode_envs.libero import JOINTS
from mode_envs.libero_skills.arm import Arm
from mode_envs.libero_skills.clearance import Clearance
from mode_envs.libero_skills.motion import OPEN, Context
from mode_envs.libero_skills.plan import pursue
from mode_envs.libero_skills.scene import Scene

_SEEN = (ENVIRONMENT_STATE, JOINTS, STATE)  # of an observation; what is added to those changes no episode
_PACES = (0.9, 1.1)  # how fast an episode is done, drawn for each


class LiberoExpert:
    """Plans from the goal's predicates and the scene's geometry; acts with float32 ``(7,)`` in [-1, 1].

    Needs the observations of ``obs_mode="state"`` (or "both"). Its choices are random within what is good;
    an episode's first observation and ``seed`` determine them, so that it repeats exactly.

    Args:
        suite: Key in `mode_envs.libero_tasks.LIBERO_SUITES`.
        task: LIBERO's name of the task.
        seed: Another one gives another demonstration from the same start.

    Raises:
        SimulatorError: if LIBERO or its assets are missing.
    """

    def __init__(self, suite: str, task: str, seed: int = 0) -> None:
        self._scene = Scene(suite, task)
        self._clearance, self._arm = Clearance(self._scene), Arm(self._scene)
        self._seed = seed
        self.reset()

    def reset(self) -> None:
        """Forget the episode so far."""
        self._program: Generator[np.ndarray, None, bool] | None = None
        self._done = False

    @property
    def events(self) -> list[str]:
        """What went wrong in the episode so far, in words."""
        return [] if self._program is None else list(self._context.events)

    @property
    def gave_up(self) -> bool:
        """Whether it has done all it can; from then on it stays where it is."""
        return self._done

    def act(self, observation: ObservationDict) -> np.ndarray:
        """Return the action for an observation."""
        self._scene.update(observation)
        if self._program is None:
            data = b"".join(observation[key].tobytes() for key in _SEEN)
            digest = int.from_bytes(hashlib.sha256(data).digest()[:8], "little")
            rng = np.random.default_rng((self._seed, digest))
            pace = float(rng.uniform(*_PACES))
            self._context = Context(self._scene, self._clearance, self._arm, rng, pace)
            self._program, self._done = pursue(self._context), False
        if not self._done:
            try:
                return next(self._program)
            except StopIteration:
                self._done, self._rest = True, self._scene.hand
        return self._context.towards(self._rest, OPEN)
