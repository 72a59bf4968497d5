"""Push-T (Chi et al. 2023, arXiv 2303.04137) behind the common contract."""

from __future__ import annotations

import os
import warnings
from types import ModuleType
from typing import Any

import numpy as np
from gymnasium import spaces

from mode_envs.contract import STATE, ObservationDict, ObsMode, Size, TaskEnv
from mode_envs.instructions import PUSHT_INSTRUCTION
from mode_envs.registration import require


class PushTEnv(TaskEnv):
    """Push a T-shaped block onto its target with a round finger, in a 512 x 512 px plane.

    Observation (see `TaskEnv`), D = 5: finger x, y (px), block x, y (px), block angle (rad, 0 to 2π).
    Action: float32 ``(2,)`` in [0, 512]: where the finger shall go (px). Control runs at 10 Hz.
    The reward is coverage / 0.95, at most 1, where ``info["coverage"]`` is the area of block and target's
    intersection over the target's area; coverage above 0.95 is success.

    Args:
        obs_mode: "state", "pixels" or "both".
        image_size: Height and width of the image in an observation.
        render_mode: "rgb_array" to allow `render`.
        render_size: Height and width of what `render` returns.

    Raises:
        ConfigError: if the mode is unknown.
        SimulatorError: if gym-pusht is not installed.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10, "metrics": ("coverage",)}  # noqa: RUF012

    def __init__(
        self,
        obs_mode: ObsMode = "state",
        image_size: Size = (96, 96),
        render_mode: str | None = None,
        render_size: Size = (480, 480),
    ) -> None:
        super().__init__(
            vectors={STATE: 5},
            action_space=spaces.Box(0.0, 512.0, (2,), np.float32),
            instruction=PUSHT_INSTRUCTION,
            cameras=("top",),
            obs_mode=obs_mode,
            image_size=image_size,
            render_mode=render_mode,
            render_size=render_size,
        )
        self._sim = _import_simulator().PushTEnv(obs_type="state", render_mode="rgb_array")
        self._stage: Any = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[ObservationDict, dict[str, Any]]:
        """Draw new positions of finger and block; return the first observation and info."""
        super().reset(seed=seed)
        self._sim.np_random = self.np_random
        self._sim._last_action = None  # drawn as a marker, and not cleared by gym-pusht
        state, _ = self._sim.reset()
        return self._observe({STATE: state}), self._info(
            success=False, coverage=float(self._sim._get_coverage())
        )

    def step(self, action: np.ndarray) -> tuple[ObservationDict, float, bool, bool, dict[str, Any]]:
        """Send the finger to a point for 1/10 s; never truncates by itself."""
        state, reward, success, _, info = self._sim.step(action)
        coverage = float(info["coverage"])
        return (
            self._observe({STATE: state}),
            float(reward),
            bool(success),
            False,
            self._info(bool(success), coverage=coverage),
        )

    def picture(self, size: Size, camera: str | None = None, moment: np.ndarray | None = None) -> np.ndarray:
        """Return the scene as uint8 ``(*size, 3)``, upright RGB."""
        height, width = size
        stage = self._sim if moment is None else self._staged(moment)
        return stage._get_img(stage._draw(), width=width, height=height)

    def snapshot(self) -> np.ndarray:
        """Return positions of finger and block, the block's angle, and the last action (NaN if none)."""
        sim, none = self._sim, (np.nan, np.nan)
        last = none if sim._last_action is None else sim._last_action
        return np.array([*sim.agent.position, *sim.block.position, sim.block.angle, *last], np.float64)

    def _staged(self, moment: np.ndarray) -> Any:
        """Return another simulation that shows a moment; this one's shall not be touched."""
        if self._stage is None:
            self._stage = _import_simulator().PushTEnv(obs_type="state", render_mode="rgb_array")
            self._stage.reset(seed=0)
        stage = self._stage
        stage.agent.position, stage.block.angle = tuple(moment[:2]), float(moment[4])
        stage.block.position = tuple(moment[2:4])  # after the angle, which turns about the centre of mass
        for body in (stage.agent, stage.block):
            stage.space.reindex_shapes_for_body(body)
        stage._last_action = None if np.isnan(moment[5:]).any() else moment[5:]
        return stage

    def close(self) -> None:
        """Free the simulation."""
        self._sim.close()


def _import_simulator() -> ModuleType:
    # pygame announces itself on stdout and looks for a display; neither belongs in a training log.
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="pkg_resources is deprecated", category=UserWarning)
        return require("gym_pusht.envs.pusht", "pusht")
