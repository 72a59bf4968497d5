"""A task as a robot: an environment that is stepped whether or not a command has come.

In each period it takes the newest command that it has received; if none has come since its last step, it
does what a robot's own controller does: position targets stay, displacements are zero.
`mode_envs.realtime_process` gives it the system's clock, `VirtualRobot` one that moves only when somebody
sleeps.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np

from mode_envs.contract import STATE, ObservationDict
from mode_envs.realtime import RealtimeSpec
from mode_policy.deploy.clock import Clock
from mode_policy.deploy.robots import RobotObservation
from mode_policy.errors import SimulatorError


class Plant:
    """An environment between two moments.

    Attributes:
        rate: steps per second.
        done: whether the episode is over; it is then not stepped any more.

    Raises:
        SimulatorError: if it does not say its control rate and none is given.
    """

    def __init__(self, spec: RealtimeSpec) -> None:
        self.spec = spec
        limit: dict[str, Any] = {} if spec.max_steps is None else {"max_episode_steps": spec.max_steps}
        self._env: gymnasium.Env[Any, Any] = gymnasium.make(spec.env_id, **limit, **spec.options)
        rate = spec.rate or self._env.metadata.get("render_fps")
        if not rate:
            raise SimulatorError(f"{spec.env_id} does not say its control rate; give robot.rate=…")
        self.rate = float(rate)
        self.done = self._stopped = True  # until the first reset

    def reset(self, seed: int) -> None:
        """Begin an episode."""
        seen, self._info = self._env.reset(seed=seed)
        self._seen = features(seen)
        self._command: np.ndarray | None = None  # that has not been executed
        self._last: np.ndarray | None = None  # that has
        self._steps = self._unheard = 0
        self._stopped = self._success = self.done = False
        if self.spec.kind == "position":
            state, measured = self._seen[STATE], list(self.spec.measured)
            if max(measured) >= len(state):
                raise SimulatorError(
                    f"measured={measured} points outside of the robot's state, which has {len(state)} numbers"
                )
            self._here = np.asarray(state[measured], np.float32)

    def act(self, command: np.ndarray) -> None:
        """Take a command for the next step."""
        self._command = None if self._stopped else command

    def stop(self) -> None:
        """Hold from now on, until the next reset."""
        self._stopped = True

    def step(self) -> None:
        """Let one period pass."""
        if self.done:
            return
        self._unheard += self._command is None
        seen, _, terminated, truncated, self._info = self._env.step(self._next_action())
        self._seen = features(seen)
        self._steps += 1
        self.done = terminated or truncated

    def observation(self, time: float) -> RobotObservation:
        """Return what is seen now, which is at ``time``."""
        self._success = self._success or bool(self._info.get("success"))
        info = {
            **self._info,
            "success": self._success,
            "steps": self._steps,
            "unheard": self._unheard,
        }
        return RobotObservation(arrays=self._seen, time=time, done=self.done, info=info)

    def close(self) -> None:
        """Let the environment go."""
        self._env.close()

    def _next_action(self) -> np.ndarray:
        command, self._command = self._command, None
        if self._stopped or (command is None and self.spec.dead_man):
            return self._held()
        if command is None:
            return self._held() if self._last is None else self._last
        self._last = command
        return command

    def _held(self) -> np.ndarray:
        """The command that changes nothing."""
        space = self._env.action_space
        assert isinstance(space, gymnasium.spaces.Box)
        if self.spec.kind == "position":
            return self._here if self._last is None else self._last
        held = np.zeros(space.shape, np.float32)
        if self._last is not None:
            held[list(self.spec.gripper)] = self._last[list(self.spec.gripper)]
        return held


class VirtualRobot:
    """A simulated robot in this process, on a virtual clock: a `mode_policy.deploy.robots.RobotInterface`.

    The same commands at the same times of the clock give the same episode, however busy the machine is.

    Args:
        spec: what to simulate.
        clock: the control loop's.
    """

    def __init__(self, spec: RealtimeSpec, clock: Clock) -> None:
        self._plant, self._clock = Plant(spec), clock
        self.rate = self._plant.rate

    def reset(self, seed: int) -> None:
        """Begin an episode; the clock starts with its first observation."""
        self._plant.reset(seed)
        self._start, self._period = self._clock.now(), 0

    def observe(self) -> RobotObservation:
        """Return the newest observation."""
        self._advance()
        return self._plant.observation(self._start + self._period / self.rate)

    def act(self, action: np.ndarray) -> None:
        """Send a command for the next step."""
        self._advance()
        self._plant.act(np.asarray(action, np.float32))

    def stop(self) -> None:
        """Hold from now on; commands are ignored until the next `reset`."""
        self._advance()
        self._plant.stop()

    def close(self) -> None:
        """Let the environment go."""
        self._plant.close()

    def _advance(self) -> None:
        """Make the steps whose time has come since the last call."""
        while self._start + (self._period + 1) / self.rate <= self._clock.now():
            self._period += 1
            self._plant.step()


def features(observation: Any) -> ObservationDict:
    """Return an observation by feature keys; environments of others give one array."""
    if isinstance(observation, dict):
        return observation
    return {STATE: np.asarray(observation, np.float32)}
