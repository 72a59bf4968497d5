"""A demonstrator for a process of its own, of whose experts some raise exceptions."""

import numpy as np

from mode_envs import demonstrate
from mode_envs.contract import STATE, ObservationDict
from mode_envs.experts import MetaWorldExpert

NEVER = "drawer-close-v3"
"""The task whose expert never ends an attempt."""


class FaultyExpert(MetaWorldExpert):
    """Divides by zero in its fourth step, in every second start or so; of one task always."""

    def __init__(self, task: str) -> None:
        super().__init__(task)
        self._always = task == NEVER

    def reset(self) -> None:
        """Forget the episode so far."""
        super().reset()
        self._steps, self._divisor = 0, 0

    def act(self, observation: ObservationDict) -> np.ndarray:
        """Return the action for an observation, or raise."""
        if not self._steps:
            self._divisor = 0 if self._always else int(1e6 * np.abs(observation[STATE]).sum()) % 2
        self._steps += 1
        if self._steps == 4:
            self._steps //= self._divisor
        return super().act(observation)


def make() -> demonstrate.Demonstrator:
    """Make the demonstrator."""
    demonstrate.make_expert = lambda env_id: FaultyExpert(env_id.removeprefix("mode/metaworld-"))
    return demonstrate.Demonstrator()
