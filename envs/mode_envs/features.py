"""What the arrays of an environment mean."""

from __future__ import annotations

from collections.abc import Sequence

from mode_envs.contract import ObsMode, Size
from mode_envs.libero_goal import GOAL_DIMS, GOAL_PREDICATES, GOAL_STATE
from mode_envs.libero_tasks import LIBERO_SUITES, LiberoSuite
from mode_envs.registration import EnvEntry, entry
from mode_policy.convention import Convention
from mode_policy.errors import ConfigError, did_you_mean
from mode_policy.types import ACTION, ENVIRONMENT_STATE, IMAGE_PREFIX, STATE, Feature, Features

_MOMENT = (
    *("hand_x", "hand_y", "hand_z", "gripper_opening"),
    *(f"object{i}_{axis}" for i in (1, 2) for axis in ("x", "y", "z", "q0", "q1", "q2", "q3")),
)
_METAWORLD: Features = {
    STATE: Feature(
        shape=(39,),
        names=(*_MOMENT, *(f"previous_{name}" for name in _MOMENT), "goal_x", "goal_y", "goal_z"),
        unit="m, gripper opening 0 to 1, unit quaternions",
    ),
    ACTION: Feature(
        shape=(4,), names=("dx", "dy", "dz", "gripper"), unit="-1 to 1, where 1 is 1 cm per step"
    ),
}
_PUSHT: Features = {
    STATE: Feature(
        shape=(5,),
        names=("agent_x", "agent_y", "block_x", "block_y", "block_angle"),
        unit="px, rad",
        angles=(4,),
    ),
    ACTION: Feature(shape=(2,), names=("x", "y"), unit="px"),
}
_POSE = ("x", "y", "z", "rx", "ry", "rz")


def _libero(suite: LiberoSuite) -> Features:
    """Describe a suite's vectors; state and action as in its published demonstrations."""
    axes = ("x", "y", "z", "qw", "qx", "qy", "qz")
    poses = [f"{body}_{axis}" for body in suite.bodies for axis in axes]
    goals = [f"goal{i}_{part}" for i in range(1, GOAL_PREDICATES + 1) for part in ("thing", "place")]
    return {
        STATE: Feature(shape=(8,), names=(*_POSE, "left_finger", "right_finger"), unit="m, rad, m"),
        "observation.joint_states": Feature(
            shape=(7,), names=tuple(f"joint_{i}" for i in range(1, 8)), unit="rad"
        ),
        ENVIRONMENT_STATE: Feature(
            shape=(len(poses) + len(suite.joints),),
            names=(*poses, *suite.joints),
            unit="m, unit quaternions, rad",
        ),
        GOAL_STATE: Feature(
            shape=(GOAL_DIMS,),
            names=tuple(f"{goal}_{axis}" for goal in goals for axis in axes),
            unit="m, unit quaternions",
        ),
        ACTION: Feature(shape=(7,), names=(*_POSE, "gripper"), unit="m, rad"),
    }


def features(
    env_id: str,
    obs_mode: ObsMode = "state",
    *,
    image_size: Size | None = None,
    camera: str | None = None,
    cameras: Sequence[str] | None = None,
) -> Features:
    """Return the features that an environment made with these options observes, and its action.

    Args:
        env_id: Gymnasium id or task name.
        obs_mode: What observations hold: "state", "pixels" or "both".
        image_size: Height and width of the images, if not the environment's default.
        camera: The only camera, if not the environment's default.
        cameras: Its cameras, where it can have several.

    Raises:
        ConfigError: if there is no such task, or it has no such camera.
    """
    task = entry(env_id)
    vectors, default_size, default_cameras = _described(task)
    found: Features = {}
    if obs_mode != "pixels":
        found |= {key: feature for key, feature in vectors.items() if key != ACTION}
    if obs_mode != "state":
        known = camera_names(env_id)
        for name in cameras or ((camera,) if camera else default_cameras):
            if name not in known:
                raise ConfigError(f"{env_id} has no camera {name!r}.{did_you_mean(name, known)}")
            found[IMAGE_PREFIX + name] = Feature(shape=(*(image_size or default_size), 3), dtype="uint8")
    return {**found, ACTION: vectors[ACTION]}


def camera_names(env_id: str) -> tuple[str, ...]:
    """Return the cameras that an environment can have pictures of.

    Raises:
        ConfigError: if there is no such task.
    """
    task = entry(env_id)
    if task.task == "pusht":
        return ("top",)
    if "suite" in task.kwargs:
        from mode_envs.libero import CAMERAS as OF_LIBERO

        return tuple(OF_LIBERO)
    from mode_envs.metaworld import CAMERAS as OF_METAWORLD

    return tuple(OF_METAWORLD)


def filming_camera(env_id: str) -> str:
    """Return the camera that shows a task to people."""
    return _described(entry(env_id))[2][0]


def convention(env_id: str) -> Convention:
    """Return what the numbers of an environment's actions mean, and its control rate.

    Displacements are along the axes of the world: neither simulator turns them with the hand.

    Raises:
        ConfigError: if there is no such task.
    """
    task = entry(env_id)
    if task.task == "pusht":
        return Convention(action_kind="absolute", action_frame="image", gripper="none", fps=10.0)
    libero = "suite" in task.kwargs
    return Convention(
        action_kind="delta",
        action_frame="world",
        # Metres and radians of 1.0; the gripper has no unit.
        action_scale=(0.05, 0.05, 0.05, 0.5, 0.5, 0.5, 1.0) if libero else (0.01, 0.01, 0.01, 1.0),
        gripper="plus_closes",
        fps=20.0 if libero else 80.0,
    )


def _described(task: EnvEntry) -> tuple[Features, Size, tuple[str, ...]]:
    """Vectors, size of images and cameras of an environment made without options."""
    if task.task == "pusht":
        return _PUSHT, (96, 96), ("top",)
    if "suite" in task.kwargs:
        return _libero(LIBERO_SUITES[task.kwargs["suite"]]), (128, 128), ("static", "gripper")
    return _METAWORLD, (128, 128), ("corner2",)
