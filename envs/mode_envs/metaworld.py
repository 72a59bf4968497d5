"""Meta-World v3 (Sawyer arm, 50 tasks) behind the common contract."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import numpy as np
from gymnasium import spaces

from mode_envs.contract import STATE, ObservationDict, ObsMode, Size, TaskEnv
from mode_envs.instructions import METAWORLD_INSTRUCTIONS
from mode_envs.registration import require
from mode_policy.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from mode_envs.renderer import Renderer

CAMERAS = {"corner": 2, "corner2": 2, "corner3": 2, "corner4": 2, "topview": 0, "gripperPOV": 0}
"""Camera → quarter turns that bring its picture upright: Meta-World hangs the corner cameras upside down."""


class MetaWorldEnv(TaskEnv):
    """One Meta-World v3 task with a freshly drawn arrangement of objects and goal in each episode.

    Observation (see `TaskEnv`), D = 39: hand position (3, m), gripper opening (1, 0 to 1), positions and
    quaternions of two objects (14), the same 18 numbers one step earlier, goal position (3, m).
    Action: float32 ``(4,)`` in [-1, 1]: hand displacement (1 is 1 cm per step) and gripper effort (1 closes).
    Control runs at 80 Hz. The reward is Meta-World's own, 0 to 10.

    Args:
        task: Name of the task, e.g. ``"reach-v3"``.
        obs_mode: "state", "pixels" or "both".
        camera: One of `CAMERAS`.
        image_size: Height and width of the image in an observation.
        render_mode: "rgb_array" to allow `render`.
        render_size: Height and width of what `render` returns.

    Raises:
        ConfigError: if the task, the camera or the mode is unknown.
        SimulatorError: if Meta-World is not installed.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 80, "metrics": ()}  # noqa: RUF012  # gymnasium's

    def __init__(
        self,
        task: str,
        obs_mode: ObsMode = "state",
        camera: str = "corner2",
        image_size: Size = (128, 128),
        render_mode: str | None = None,
        render_size: Size = (480, 480),
    ) -> None:
        if task not in METAWORLD_INSTRUCTIONS:
            raise ConfigError(
                f"unknown Meta-World task {task!r}.{did_you_mean(task, METAWORLD_INSTRUCTIONS)}"
            )
        if camera not in CAMERAS:
            raise ConfigError(f"unknown camera {camera!r}.{did_you_mean(camera, CAMERAS)}")
        super().__init__(
            vectors={STATE: 39},
            action_space=spaces.Box(-1.0, 1.0, (4,), np.float32),
            instruction=METAWORLD_INSTRUCTIONS[task],
            cameras=(camera,),
            obs_mode=obs_mode,
            image_size=image_size,
            render_mode=render_mode,
            render_size=render_size,
        )
        self._mujoco = require("mujoco", "metaworld")
        sim = require("metaworld.env_dict", "metaworld").ALL_V3_ENVIRONMENTS[task]()
        sim._partially_observable = False  # the goal is part of the observation,
        del sim.sawyer_observation_space  # whose cached bounds still hide it
        sim._set_task_called = True
        sim.seeded_rand_vec = True  # draw from our generator, not from NumPy's global one
        sim.max_path_length = sys.maxsize  # truncation is TimeLimit's business
        self._sim = sim
        # Meta-World moves bodies and sites of the model itself; a reset starts from where they were.
        self._model_at_start = {name: getattr(sim.model, name).copy() for name in ("body_pos", "site_pos")}
        self._renderer: Renderer | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[ObservationDict, dict[str, Any]]:
        """Draw a new arrangement; return the first observation and info."""
        super().reset(seed=seed)
        sim = self._sim
        for name, at_start in self._model_at_start.items():
            getattr(sim.model, name)[:] = at_start
        sim.np_random = self.np_random
        sim.curr_path_length = 0
        # Meta-World derives some goals and positions from where bodies stood before it moved them. Its own
        # benchmarks reset twice with the same drawn vector: the first pass places, the second measures.
        for frozen in (False, True):
            sim._freeze_rand_vec = frozen
            self._mujoco.mj_resetData(sim.model, sim.data)
            sim.reset_model()
        # Some tasks set a joint last (window-close: by 20 cm) and would show it only after the first step.
        self._mujoco.mj_forward(sim.model, sim.data)
        sim._prev_obs = sim._get_curr_obs_combined_no_goal()
        return self._observe({STATE: sim._get_obs()}), self._info(success=False)

    def step(self, action: np.ndarray) -> tuple[ObservationDict, float, bool, bool, dict[str, Any]]:
        """Apply one action for 1/80 s; never truncates by itself."""
        state, reward, _, _, info = self._sim.step(action)
        success = bool(info["success"])
        return self._observe({STATE: state}), float(reward), success, False, self._info(success)

    def picture(self, size: Size, camera: str | None = None, moment: np.ndarray | None = None) -> np.ndarray:
        """Return the scene as uint8 ``(*size, 3)``, upright RGB.

        Raises:
            ConfigError: if the camera is unknown.
        """
        name = camera or self._cameras[0]
        if name not in CAMERAS:
            raise ConfigError(f"unknown camera {name!r}.{did_you_mean(name, CAMERAS)}")
        model, now = self._sim.model, self.snapshot()
        if self._renderer is None:
            from mode_envs.renderer import Renderer

            self._renderer = Renderer(model, size)
        data = self._renderer.posed(*self._put(now if moment is None else moment))
        image = self._renderer.render(data, name, size)
        self._put(now)
        return np.ascontiguousarray(np.rot90(image, CAMERAS[name]))

    def snapshot(self) -> np.ndarray:
        """Return positions, poses of bodies moved from outside, and what an episode changes of the model."""
        data = self._sim.data
        parts = (data.qpos, data.mocap_pos, data.mocap_quat)
        moved = (getattr(self._sim.model, name) for name in self._model_at_start)
        return np.concatenate([part.ravel() for part in (*parts, *moved)])

    def _put(self, moment: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Change the model to what it was at a moment; return the rest, as `Renderer.posed` takes it."""
        model = self._sim.model
        sizes = [model.nq, 3 * model.nmocap, 4 * model.nmocap]
        sizes += [getattr(model, name).size for name in self._model_at_start]
        parts = np.split(moment, np.cumsum(sizes)[:-1])
        for name, values in zip(self._model_at_start, parts[3:], strict=True):
            target = getattr(model, name)
            target[:] = values.reshape(target.shape)
        return parts[0], parts[1].reshape(-1, 3), parts[2].reshape(-1, 4)

    def close(self) -> None:
        """Free the simulation and its renderers."""
        if self._renderer is not None:
            self._renderer.close()
        self._sim.close()
