"""Opening, closing and turning: taking hold of a part, or pushing it, and following its joint."""

from __future__ import annotations

import math

import numpy as np

from mode_envs.libero_skills.joints import JointWay, doors, farthest_value, target_value, ways
from mode_envs.libero_skills.motion import CLOSED, OPEN, Actions, Context, follow, hold
from mode_envs.libero_skills.poses import Pose
from mode_envs.libero_skills.pushes import carried
from mode_envs.libero_skills.routes import UP, route, way_out
from mode_envs.libero_skills.scene import Predicate

_CLOSING, _OPENING = 10, 8  # steps that the fingers need
_AHEAD = 0.035  # m that the hand is asked to be ahead of the joint
_PATIENCE = 25  # steps without progress
_LONGEST = 160  # steps for one movement
_WIDER = 0.01  # m or rad, that are worth going for
_SHORT = 0.002  # m or rad before the end of a joint's range


def articulate(
    context: Context, predicate: Predicate, joint: int, attempt: int, target: float | None = None
) -> Actions:
    """Move a joint until a predicate holds.

    Args:
        context: The context.
        predicate: About the joint.
        joint: MuJoCo's number of it.
        attempt: Which of the ways to take; 0 for the best.
        target: Where to take the joint (m or rad); None for as little as makes the predicate hold.
    """
    scene = context.scene
    target = target_value(scene, predicate, joint) if target is None else target
    if target is None:
        return context.failed(f"nothing makes {predicate} hold")
    chosen: JointWay | None = None
    for number, way in enumerate(ways(context, joint, target)):
        chosen = way
        if number == attempt:
            break
    if chosen is None:
        return context.failed(f"no way to move the joint of {predicate}")
    grip = OPEN if chosen.grips else CLOSED
    opening = 0.08 if chosen.grips else 0.0
    path = route(context, scene.hand, chosen.path[0], opening)
    yield from follow(context, path, grip, tolerance=(0.02, 0.2))
    yield from follow(context, chosen.path[1:], grip, speed=0.12, patience=12)
    if chosen.grips:
        yield from hold(context, chosen.path[-1], CLOSED, _CLOSING)
    value = scene.joint_value(joint)
    yield from _move(context, predicate, joint, value + chosen.part * (target - value), chosen.turning)
    if chosen.grips:
        yield from hold(context, scene.hand, OPEN, _OPENING)
    grip = OPEN if chosen.grips else CLOSED
    out = way_out(context, scene.hand, opening) or scene.hand.moved(
        0.06 * UP - 0.04 * scene.hand.rotation[:, 2]
    )
    yield from follow(context, [out], grip, speed=0.18, tolerance=(0.02, 0.2))
    return scene.holds(predicate) or context.failed(f"the joint of {predicate} did not get there")


def open_wider(context: Context, predicate: Predicate) -> Actions:
    """Open what a predicate puts something into as wide as it goes; return whether that changed anything."""
    scene, wider = context.scene, False
    for joint, opened in doors(scene, predicate):
        end, before = farthest_value(scene, opened, joint), scene.joint_value(joint)
        if end is None or abs(end - before) < _WIDER:
            continue
        yield from articulate(context, opened, joint, 0, end - math.copysign(_SHORT, end - before))
        wider |= abs(end - before) - abs(end - scene.joint_value(joint)) > _WIDER / 2
    return wider


def _move(context: Context, predicate: Predicate, joint: int, target: float, turning: float) -> Actions:
    """Go where the joint goes, some way ahead of it."""
    scene = context.scene
    first, start = scene.joint_value(joint), scene.hand
    way = math.copysign(1.0, target - first)
    arm = np.linalg.norm(carried(scene, joint, start, 0.01, 0.0).position - start.position) / 0.01
    ahead = _AHEAD / max(float(arm), 0.02)
    best, idle = first, 0
    for _ in range(_LONGEST):
        value = scene.joint_value(joint)
        if (value - target) * way >= 0 or (idle > _PATIENCE and scene.holds(predicate)):
            return True
        if (value - best) * way > 0.02 * abs(target - first):
            best, idle = value, 0
        idle += 1
        if idle > _PATIENCE:
            return False
        goal: Pose = carried(scene, joint, start, value - first + way * ahead, turning)
        yield context.towards(goal, CLOSED)
    return False
