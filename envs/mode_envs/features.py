"""What the arrays of an environment mean."""

from __future__ import annotations

from mode_envs.contract import ObsMode, Size
from mode_envs.registration import entry
from mode_policy.types import ACTION, IMAGE_PREFIX, STATE, Feature, Features

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
    ACTION: Feature(shape=(2,), names=("target_x", "target_y"), unit="px"),
}


def features(
    env_id: str, obs_mode: ObsMode = "state", *, image_size: Size | None = None, camera: str | None = None
) -> Features:
    """Return the features that an environment made with these options observes, and its action.

    Args:
        env_id: Gymnasium id or task name.
        obs_mode: What observations hold: "state", "pixels" or "both".
        image_size: Height and width of the image, if not the environment's default.
        camera: Camera of the image, if not the environment's default.

    Raises:
        ConfigError: if there is no such task.
    """
    pusht = entry(env_id).task == "pusht"
    vectors = _PUSHT if pusht else _METAWORLD
    image_size = image_size or ((96, 96) if pusht else (128, 128))
    camera = camera or ("top" if pusht else "corner2")
    found: Features = {}
    if obs_mode != "pixels":
        found[STATE] = vectors[STATE]
    if obs_mode != "state":
        found[IMAGE_PREFIX + camera] = Feature(shape=(*image_size, 3), dtype="uint8")
    return {**found, ACTION: vectors[ACTION]}
