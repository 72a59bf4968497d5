"""A point in a plane that is told where to be: the smallest robot, with a camera if asked for."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np

STATE, IMAGE = "observation.state", "observation.images.top"
ID = "tests.deploy.point_env:mode-test/point-v0"


class PointEnv(gymnasium.Env[dict[str, np.ndarray], np.ndarray]):
    """State: position (2) and the angle 0. Action: where to be after this step, or with ``delta`` the way."""

    metadata = {"render_modes": [], "render_fps": 50}  # noqa: RUF012

    def __init__(self, delta: bool = False, pixels: bool = False) -> None:
        self.action_space = gymnasium.spaces.Box(-4.0, 4.0, (2,), np.float32)
        self.observation_space = gymnasium.spaces.Dict()
        self.delta, self.pixels = delta, pixels
        self.position = np.zeros(2, np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.position = self.np_random.uniform(-0.5, 0.5, 2).astype(np.float32)
        return self._observe(), {"success": False}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.position = self.position + action if self.delta else np.asarray(action, np.float32)
        return self._observe(), 0.0, False, False, {"success": False}

    def _observe(self) -> dict[str, np.ndarray]:
        seen = {STATE: np.append(self.position, np.float32(0)).astype(np.float32)}
        if self.pixels:
            picture = np.zeros((24, 32, 3), np.uint8)
            x, y = np.clip((self.position * 3 + [16, 12]).astype(int), 0, [31, 23])
            picture[y, x] = 255
            seen[IMAGE] = picture
        return seen


if "mode-test/point-v0" not in gymnasium.registry:
    gymnasium.register(
        "mode-test/point-v0", entry_point=PointEnv, max_episode_steps=100000, disable_env_checker=True
    )
