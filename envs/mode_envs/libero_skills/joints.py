"""Ways to move a drawer, a door or a knob: hold or push a part of it and go where it goes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from mode_envs.libero_skills.clearance import FULLY_OPEN
from mode_envs.libero_skills.grasps import Grasp, propose, tilted
from mode_envs.libero_skills.motion import Context
from mode_envs.libero_skills.poses import Pose
from mode_envs.libero_skills.pushes import Push, carried, is_slide, pushes, touching
from mode_envs.libero_skills.routes import way_out
from mode_envs.libero_skills.scene import Predicate, Scene

_VALUES = 200  # of the joint at which the predicate is asked
_INTO = 0.2  # how far to go into the range in which it holds, as a fraction of it
_TURNING = (1.0, 0.5, 0.0)  # how much of a hinge's turn the hand follows
_LEANS = (0.0, 0.4, 0.8, 1.2, 1.5)
_HOLDING = 0.4  # cost of holding something rather than pushing it
_CLOSED_ON = 0.03  # m between the fingers while they hold
_PARTS = (0.25, 0.5, 0.75, 1.0)  # of the way, at which it is tried
_ENOUGH = 8  # ways to go but a part
_THICKEST, _LONGEST = 0.07, 0.16  # m, of a handle or a knob


@dataclass(frozen=True)
class JointWay:
    """A way to move a joint.

    Attributes:
        path: Poses of the hand, from the open to where it holds or touches.
        grips: Whether it holds on, rather than pushes.
        turning: How much of a hinge's turn the hand follows, 0 to 1.
        part: Of the way to the joint's target that the hand can follow, 0 to 1.
    """

    path: tuple[Pose, ...]
    grips: bool
    turning: float
    part: float


def target_value(scene: Scene, predicate: Predicate, joint: int) -> float | None:
    """Return a value of the joint (m or rad) at which the predicate holds, or None if there is none."""
    low, high = scene.model.jnt_range[joint]
    values = np.linspace(low, high, _VALUES + 1)
    good = np.array([scene.with_joint(predicate, joint, float(v)) for v in values])
    if not good.any():
        return None
    now = scene.joint_value(joint)
    nearest = int(np.argmin(np.where(good, np.abs(values - now), np.inf)))
    way = 1 if values[nearest] >= now else -1
    last = nearest
    while 0 <= last + way <= _VALUES and good[last + way]:
        last += way
    return float(values[nearest] + _INTO * (values[last] - values[nearest]))


def farthest_value(scene: Scene, predicate: Predicate, joint: int) -> float | None:
    """Return the end of the joint's range (m or rad) at which the predicate holds, or None."""
    ends = (float(end) for end in scene.model.jnt_range[joint])
    return next((end for end in ends if scene.with_joint(predicate, joint, end)), None)


def doors(scene: Scene, predicate: Predicate) -> list[tuple[int, list[str]]]:
    """Return the joints that bar what a predicate puts something into, and the predicates that open them."""
    if predicate[0] != "in":
        return []
    region, owner = predicate[2], scene.owner_of_region(predicate[2])
    name = region if scene.joints(region) else owner
    return [(joint, ["open", name]) for joint in scene.joints(name)]


def ways(context: Context, joint: int, target: float) -> Iterator[JointWay]:
    """Yield ways to take a joint to a value, the best first; then those that only go a part of the way."""
    scene = context.scene
    change = target - scene.joint_value(joint)
    geoms = scene.joint_geoms(joint)
    grasps = propose(
        scene.boxes(_slender(scene, geoms)), scene.hand, context.rng, tilted(_LEANS, 4), yaws=8, each=4
    )
    candidates: list[Grasp | Push] = [*pushes(context, geoms, joint, change), *grasps]
    candidates.sort(key=lambda c: c.cost + _HOLDING * isinstance(c, Grasp))
    partial: list[JointWay] = []
    for candidate in candidates:
        grips = isinstance(candidate, Grasp)
        opening, start = (FULLY_OPEN if grips else 0.0), candidate.hand
        hand = start if isinstance(candidate, Grasp) else touching(context, candidate)
        if hand is None or (grips and not context.clearance.free(hand, opening, margin=0.001)):
            continue
        turning, part = _reachable(context, hand, joint, change, geoms, _CLOSED_ON if grips else 0.0)
        if part < _PARTS[1] or (part < 1.0 and len(partial) == _ENOUGH):
            continue
        before = way_out(context, start, opening)
        if before is None:
            continue
        way = JointWay((before, hand) if grips else (before, start, hand), grips, turning, part)
        if part == 1.0:
            yield way
        else:
            partial.append(way)
    yield from sorted(partial, key=lambda way: -way.part)


def _slender(scene: Scene, geoms: np.ndarray) -> np.ndarray:
    """Return the geometries that a hand can close on: handles and knobs, not the walls of a drawer."""
    sides = np.sort(2 * scene.model.geom_aabb[geoms, 3:], axis=1)
    return geoms[(sides[:, 1] < _THICKEST) & (sides[:, 2] < _LONGEST)]


def _reachable(
    context: Context, hand: Pose, joint: int, change: float, geoms: np.ndarray, opening: float
) -> tuple[float, float]:
    """Return how much of the turn the hand should follow, and which part of the way it can."""
    start = context.arm.solve(hand)
    # Objects may stand in the way of the arm that the joint pushes aside or carries along.
    if start is None or not context.arm.clear(start, ignore=context.scene.objects):
        return 0.0, 0.0
    hinge = not is_slide(context.scene, joint)
    best = (0.0, 0.0)
    for turning in _TURNING if hinge else (1.0,):
        angles: np.ndarray | None = start
        for part in _PARTS:
            pose = carried(context.scene, joint, hand, part * change, turning)
            free = context.clearance.free(pose, opening, margin=0.0, ignore_geoms=geoms)
            angles = context.arm.solve(pose, angles) if free else None
            if angles is None:
                break
            if part > best[1]:
                best = (turning, part)
        if best[1] == 1.0:
            break
    return best
