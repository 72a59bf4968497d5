"""What every environment of this package has in common.

An environment speaks the feature keys of `mode_policy.types`. This module repeats four of those strings
rather than import them, because that module loads torch and simulator processes should not pay for it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import gymnasium
import numpy as np
from gymnasium import spaces

from mode_policy.errors import ConfigError, SimulatorError

STATE = "observation.state"
ENVIRONMENT_STATE = "observation.environment_state"
ACTION = "action"
IMAGE_PREFIX = "observation.images."

ObsMode = Literal["state", "pixels", "both"]
ObservationDict = dict[str, np.ndarray]
Size = tuple[int, int]
"""Height and width of a picture, in pixels."""


class TaskEnv(gymnasium.Env[ObservationDict, np.ndarray]):
    """An environment whose observations are a dictionary of feature keys.

    * ``observation.state`` and other vectors: float32 ``(D,)`` in raw units, with ``obs_mode`` "state" or
      "both";
    * ``observation.images.<camera>``: uint8 ``(height, width, 3)``, upright RGB, with "pixels" or "both".

    ``reset(seed=s)`` alone determines the episode, bit for bit, whatever the object did before. ``info`` of
    reset and step holds ``instruction`` (str) and ``success`` (bool), and a float for each of
    ``metadata["metrics"]``.
    Success terminates; the simulation may be stepped on from there.

    While `draws` is False, observations come without their images: whoever needs only some of them saves the
    time of the others, which in software is most of the time there is.

    Args:
        vectors: Feature key of each vector → its D.
        action_space: Bounds of an action.
        instruction: The task in natural language.
        cameras: Their names in the feature keys of images; the first one films.
        obs_mode: What observations hold.
        image_size: Height and width of the image in an observation.
        render_mode: "rgb_array" to allow `render`.
        render_size: Height and width of what `render` returns.
    """

    draws: bool = True

    def __init__(
        self,
        *,
        vectors: Mapping[str, int],
        action_space: spaces.Box,
        instruction: str,
        cameras: Sequence[str],
        obs_mode: ObsMode,
        image_size: Size,
        render_mode: str | None,
        render_size: Size,
    ) -> None:
        if obs_mode not in get_args(ObsMode):
            raise ConfigError(f"obs_mode is {obs_mode!r}; choose one of {', '.join(get_args(ObsMode))}")
        self.instruction = instruction
        self.render_mode = render_mode
        self._cameras = tuple(cameras)
        self._image_size = (int(image_size[0]), int(image_size[1]))
        self._render_size = (int(render_size[0]), int(render_size[1]))
        observations: dict[str, spaces.Space] = {}
        if obs_mode != "pixels":
            # Nothing bounds a simulated object, so neither does the space.
            for key, size in vectors.items():
                observations[key] = spaces.Box(-np.inf, np.inf, (size,), np.float32)
        if obs_mode != "state":
            for camera in self._cameras:
                observations[IMAGE_PREFIX + camera] = spaces.Box(0, 255, (*self._image_size, 3), np.uint8)
        self._keys = tuple(observations)
        self.observation_space = spaces.Dict(observations)  # type: ignore[assignment]  # a dict of arrays
        self.action_space = action_space

    @abstractmethod
    def picture(self, size: Size, camera: str | None = None, moment: np.ndarray | None = None) -> np.ndarray:
        """Return the scene as uint8 ``(*size, 3)``, upright RGB; allowed in every render mode.

        Args:
            size: Height and width.
            camera: One of the environment's cameras; the first one by default.
            moment: What `snapshot` returned, of this or another environment of the task: the picture is that
                of then, bit for bit. The present by default.

        Raises:
            SimulatorError: if this machine cannot render.
        """

    @abstractmethod
    def snapshot(self) -> np.ndarray:
        """Return float64 ``(S,)``: all that pictures of this moment depend on, whatever camera and size."""

    def render(self) -> np.ndarray:
        """Return the scene as uint8 ``(*render_size, 3)``, upright RGB.

        Raises:
            SimulatorError: if the environment was not made with ``render_mode="rgb_array"``, or if this
                machine cannot render.
        """
        if self.render_mode != "rgb_array":
            raise SimulatorError(
                f"render_mode is {self.render_mode!r}; make the environment with render_mode='rgb_array'"
            )
        return self.picture(self._render_size)

    def _observe(self, vectors: Mapping[str, np.ndarray]) -> ObservationDict:
        return {
            key: vectors[key].astype(np.float32)
            if key in vectors
            else self.picture(self._image_size, key.removeprefix(IMAGE_PREFIX))
            for key in self._keys
            if self.draws or key in vectors
        }

    def _info(self, success: bool, **metrics: float) -> dict[str, Any]:
        return {"instruction": self.instruction, "success": success, **metrics}
