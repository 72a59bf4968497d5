"""LIBERO (Liu et al. 2023, arXiv 2306.03310), 130 tasks of a Panda arm, behind the common contract."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, get_args

import numpy as np
from gymnasium import spaces

from mode_envs.contract import ENVIRONMENT_STATE, STATE, ObservationDict, ObsMode, Size, TaskEnv
from mode_envs.libero_assets import package_folder
from mode_envs.libero_goal import GOAL_DIMS, GOAL_STATE, GoalPoses
from mode_envs.libero_simulator import build, release, seeded
from mode_envs.libero_states import load_initial_states
from mode_envs.libero_tasks import LIBERO_SUITES, instruction
from mode_policy.errors import ConfigError, SimulatorError, did_you_mean

CAMERAS = {
    "static": "agentview",
    "gripper": "robot0_eye_in_hand",
    "agentview": "agentview",
    "eye_in_hand": "robot0_eye_in_hand",
}
"""Camera → LIBERO's own name; the last two are the names in the published demonstrations."""

JOINTS = "observation.joint_states"
SETTLE_STEPS = 5
"""Steps without motion before an episode, in which objects come to rest, as in LIBERO's own evaluation."""

InitialStates = Literal["published", "drawn"]
_PLACEMENTS = 100  # attempts to place objects without overlap


class LiberoEnv(TaskEnv):
    """One task of LIBERO.

    ``reset(seed, options={"init_state_id": k})`` starts from the k-th of the task's published initial states,
    and without the option from one that the seed chooses; ``info["init_state_id"]`` says which. With
    ``initial_states="drawn"`` the seed draws a new arrangement from the regions of the task's description:
    for demonstrations, which shall not start where evaluations do.

    Observation (see `TaskEnv`):

    * ``observation.state``, D = 8: position of the gripper (m) and its orientation as axis times angle (rad),
      in the world; positions of the two fingers (m);
    * ``observation.joint_states``, D = 7: angles of the arm's joints (rad);
    * ``observation.environment_state``: for each of the suite's `LiberoSuite.bodies` position (m) and
      quaternion (w, x, y, z), zeros if it is not in this scene, then the suite's joints (m, rad). Privileged:
      no camera sees it;
    * ``observation.goal_state``, D = 42, the same in every suite: for each of at most three predicates of the
      goal, in its order, pose of the thing and of the place, as above, then zeros. Privileged, too; see
      `GoalPoses`;
    * images of the cameras, upright. (LIBERO's own are upside down.)

    Action: float32 ``(7,)`` in [-1, 1]: change of the gripper's position (1 is 0.05 m) and orientation (1 is
    0.5 rad) in the world's axes, and the gripper, which opens at -1 and closes at +1. Control runs at 20 Hz.
    The reward is 1 in the step that solves the task, else 0.

    Args:
        suite: Key in `LIBERO_SUITES`.
        task: LIBERO's name of the task.
        obs_mode: "state", "pixels" or "both".
        cameras: Some of `CAMERAS`; the first one films.
        image_size: Height and width of the images in an observation.
        initial_states: "published" or "drawn".
        settle_steps: Steps without motion before an episode.
        render_mode: "rgb_array" to allow `render`.
        render_size: Height and width of what `render` returns.

    Raises:
        ConfigError: if the suite, the task, a camera or a mode is unknown.
        SimulatorError: if LIBERO or its assets are missing, incomplete or damaged.
    """

    # An idle one may hold a scene's textures, hundreds of megabytes.
    metadata = {"render_modes": ["rgb_array"], "render_fps": 20, "metrics": (), "idle_limit": 2}  # noqa: RUF012

    def __init__(
        self,
        suite: str,
        task: str,
        obs_mode: ObsMode = "state",
        cameras: Sequence[str] = ("static", "gripper"),
        image_size: Size = (128, 128),
        initial_states: InitialStates = "published",
        settle_steps: int = SETTLE_STEPS,
        render_mode: str | None = None,
        render_size: Size = (256, 256),
    ) -> None:
        if suite not in LIBERO_SUITES:
            raise ConfigError(f"unknown LIBERO suite {suite!r}.{did_you_mean(suite, LIBERO_SUITES)}")
        self._suite = LIBERO_SUITES[suite]
        if task not in self._suite.tasks:
            raise ConfigError(f"unknown LIBERO task {task!r}.{did_you_mean(task, self._suite.tasks)}")
        if isinstance(cameras, str) or not cameras or len(set(cameras)) < len(cameras):
            raise ConfigError(f"cameras is {cameras!r}; name one or more of {', '.join(CAMERAS)}, each once")
        for camera in cameras:
            if camera not in CAMERAS:
                raise ConfigError(f"unknown camera {camera!r}.{did_you_mean(camera, CAMERAS)}")
        if initial_states not in get_args(InitialStates):
            raise ConfigError(f"initial_states is {initial_states!r}; choose published or drawn")
        if settle_steps < 0:
            raise ConfigError(f"settle_steps is {settle_steps}; it must be >= 0")
        bodies, joints = self._suite.bodies, self._suite.joints
        super().__init__(
            vectors={
                STATE: 8,
                JOINTS: 7,
                ENVIRONMENT_STATE: 7 * len(bodies) + len(joints),
                GOAL_STATE: GOAL_DIMS,
            },
            action_space=spaces.Box(-1.0, 1.0, (7,), np.float32),
            instruction=instruction(task),
            cameras=cameras,
            obs_mode=obs_mode,
            image_size=image_size,
            render_mode=render_mode,
            render_size=render_size,
        )
        self.task = task
        self._settle_steps = settle_steps
        self._states: np.ndarray | None = None
        if initial_states == "published":
            folder = package_folder() / "init_files" / self._suite.folder
            self._states = load_initial_states(folder / f"{task}.pruned_init")
        self._problem, self._scene = build(self._suite.folder, task)
        sim = self._problem.sim
        self._model, self._data = sim.model._model, sim.data._data
        if self._states is not None and self._states.shape[1] != 1 + self._model.nq + self._model.nv:
            raise SimulatorError(
                f"the initial states of {task!r} have {self._states.shape[1]} numbers, and its scene "
                f"{1 + self._model.nq + self._model.nv}: LIBERO and its assets are of different versions"
            )
        self._body_ids = [
            self._problem.obj_body_id.get(body) if body in self._problem.obj_body_id else None
            for body in bodies
        ]
        self._goal_poses = GoalPoses(self._problem, self.goal)
        known = set(sim.model.joint_names)
        self._joint_addresses = [sim.model.get_joint_qpos_addr(j) if j in known else None for j in joints]
        # What of the model an episode changes: where furniture stands, and the glow of a stove.
        self._model_at_start = self._model_now()
        self._model_state = self._model_now()

    @property
    def goal(self) -> list[list[str]]:
        """The predicates that solve the task, e.g. ``[["in", "milk_1", "basket_1_contain_region"]]``."""
        return [list(predicate) for predicate in self._problem.parsed_problem["goal_state"]]

    @property
    def num_initial_states(self) -> int:
        """Number of published initial states, 0 if episodes start from drawn ones."""
        return 0 if self._states is None else len(self._states)

    def position(self, name: str) -> np.ndarray:
        """Return where a body or a region (a site) is, float64 ``(3,)`` in metres."""
        ids = self._problem.obj_body_id
        if name in ids:
            return self._data.xpos[ids[name]].copy()
        return self._problem.sim.data.get_site_xpos(name).copy()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[ObservationDict, dict[str, Any]]:
        """Begin an episode; return the first observation and info.

        Args:
            seed: Determines the episode, except for what the options choose.
            options: ``init_state_id``: number of a published initial state.

        Raises:
            ConfigError: for an unknown option or number.
            SimulatorError: if objects cannot be placed.
        """
        super().reset(seed=seed)
        state_id = self._state_id(options or {})
        problem = self._problem
        self._model_state = self._model_at_start
        with self._own_model():
            # With a published state, furniture (which is no part of it) stands as LIBERO's evaluation has it.
            with seeded(0 if state_id is not None else int(self.np_random.integers(2**32))):
                self._place()
            for robot in problem.robots:
                robot.gripper.current_action = np.zeros_like(robot.gripper.current_action)
            if state_id is not None:
                assert self._states is not None
                problem.sim.set_state_from_flattened(self._states[state_id])
                problem.sim.forward()
            problem._post_process()
            for _ in range(self._settle_steps):
                problem.step(np.zeros(7))
            success = bool(problem._check_success())
        info = self._info(success)
        if state_id is not None:
            info["init_state_id"] = state_id
        return self._observe(self._vectors()), info

    def step(self, action: np.ndarray) -> tuple[ObservationDict, float, bool, bool, dict[str, Any]]:
        """Apply one action for 1/20 s; never truncates by itself."""
        with self._own_model():
            _, _, success, _ = self._problem.step(np.asarray(action, np.float64))
        observation = self._observe(self._vectors())
        return observation, float(success), bool(success), False, self._info(bool(success))

    def picture(self, size: Size, camera: str | None = None, moment: np.ndarray | None = None) -> np.ndarray:
        """Return the scene as uint8 ``(*size, 3)``, upright RGB.

        Raises:
            ConfigError: if the camera is unknown.
        """
        name = camera or self._cameras[0]
        if name not in CAMERAS:
            raise ConfigError(f"unknown camera {name!r}.{did_you_mean(name, CAMERAS)}")
        moment = self.snapshot() if moment is None else moment
        # Nobody counts on what the shared model holds now: whoever uses it puts in what is its own.
        start = 1 + self._model.nq + self._model.nv
        for part in self._model_now():
            values = getattr(self._model, part)
            values[:] = moment[start : start + values.size].reshape(values.shape)
            start += values.size
        return np.ascontiguousarray(self._scene.render(moment[1 : 1 + self._model.nq], CAMERAS[name], size))

    def snapshot(self) -> np.ndarray:
        """Return time, positions and velocities of MuJoCo's state, then what an episode changes of the model.

        The first part has the layout of LIBERO's published states.
        """
        state = ([self._data.time], self._data.qpos, self._data.qvel)
        return np.concatenate([*state, *(values.ravel() for values in self._model_state.values())])

    def close(self) -> None:
        """Free the simulation; its scene stays for the next task that is set in it."""
        release(self._scene)

    def _state_id(self, options: Mapping[str, Any]) -> int | None:
        if unknown := set(options) - {"init_state_id"}:
            raise ConfigError(f"unknown option {sorted(unknown)[0]!r} of reset; there is init_state_id")
        chosen = options.get("init_state_id")
        count = self.num_initial_states
        if chosen is None:
            return int(self.np_random.integers(count)) if count else None
        if isinstance(chosen, bool) or not isinstance(chosen, int | np.integer) or not 0 <= chosen < count:
            has = f"0 to {count - 1}" if count else "none, as initial_states='drawn'"
            raise ConfigError(f"init_state_id is {chosen!r}; {self.task} has {has}")
        return int(chosen)

    def _place(self) -> None:
        """Let LIBERO place robot, furniture and objects; now and then its samplers find no room."""
        from robosuite.utils.errors import RandomizationError

        for _ in range(_PLACEMENTS):
            try:
                self._problem.reset()
            except RandomizationError:
                continue
            return
        raise SimulatorError(f"{self.task}: objects overlap in {_PLACEMENTS} arrangements; try another seed")

    def _vectors(self) -> dict[str, np.ndarray]:
        from robosuite.utils.transform_utils import convert_quat, quat2axisangle

        robot, data = self._problem.robots[0], self._data
        quaternion = self._problem.sim.data.get_body_xquat(robot.robot_model.eef_name)
        poses = np.zeros((len(self._body_ids), 7))
        for row, body in zip(poses, self._body_ids, strict=True):
            if body is not None:
                row[:3], row[3:] = data.xpos[body], data.xquat[body]
        joints = [0.0 if address is None else data.qpos[address] for address in self._joint_addresses]
        return {
            STATE: np.concatenate(
                [
                    data.site_xpos[robot.eef_site_id],
                    quat2axisangle(convert_quat(quaternion, to="xyzw")),
                    data.qpos[robot._ref_gripper_joint_pos_indexes],
                ]
            ),
            JOINTS: data.qpos[robot._ref_joint_pos_indexes],
            ENVIRONMENT_STATE: np.concatenate([poses.ravel(), joints]),
            GOAL_STATE: self._goal_poses(),
        }

    def _model_now(self) -> dict[str, np.ndarray]:
        return {name: getattr(self._model, name).copy() for name in ("body_pos", "body_quat", "site_rgba")}

    @contextmanager
    def _own_model(self) -> Iterator[None]:
        """Environments of one scene share its compiled model; put this one's changes into it meanwhile."""
        for name, values in self._model_state.items():
            getattr(self._model, name)[:] = values
        yield
        self._model_state = self._model_now()
