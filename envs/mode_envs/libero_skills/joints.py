"""Ways to move a drawer, a door or a knob: hold or push a part of it and go where it goes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from mode_envs.libero_skills.clearance import FULLY_OPEN
from mode_envs.libero_skills.grasps import DOWN, propose, tilted
from mode_envs.libero_skills.motion import Context
from mode_envs.libero_skills.poses import Pose, rotation_about
from mode_envs.libero_skills.routes import way_out
from mode_envs.libero_skills.scene import Predicate, Scene

_SLIDE = 2  # MuJoCo's number of the type
_VALUES = 200  # of the joint at which the predicate is asked
_INTO = 0.2  # how far to go into the range in which it holds, as a fraction of it
_TURNING = (1.0, 0.5, 0.0)  # how much of a hinge's turn the hand follows
_LEANS = (0.0, 0.4, 0.8, 1.2, 1.5)
_ACROSS = (0.0, 0.6, -0.6)  # of the half sides of a face
_AGAINST = 0.8  # cosine between a face's normal and the way it is pushed
_HOLDING = 0.4  # cost of holding something rather than pushing it
_CLOSED_ON = 0.03  # m between the fingers while they hold
_APART = 0.04  # m from the face before a push
_PARTS = (0.25, 0.5, 0.75, 1.0)  # of the way, at which it is tried
_ENOUGH = 8  # ways to go but a part
_THICKEST, _LONGEST = 0.07, 0.16  # m, of a handle or a knob
_FINE = 0.002  # m between poses on the way to it


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


@dataclass(frozen=True)
class _Candidate:
    """A pose to hold something with, or before pushing against a normal; lower costs are better."""

    cost: float
    hand: Pose
    normal: np.ndarray | None


def carried(scene: Scene, joint: int, pose: Pose, change: float, turning: float) -> Pose:
    """Return where a pose gets to when a joint that it is fixed to changes (m or rad)."""
    axis, anchor = scene.data.xaxis[joint], scene.data.xanchor[joint]
    if scene.model.jnt_type[joint] == _SLIDE:
        return pose.moved(axis * change)
    around = rotation_about(axis, change)
    position = anchor + around @ (pose.position - anchor)
    return Pose(position, rotation_about(axis, turning * change) @ pose.rotation)


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


def ways(context: Context, joint: int, target: float) -> Iterator[JointWay]:
    """Yield ways to take a joint to a value, the best first; then those that only go a part of the way."""
    scene = context.scene
    change = target - scene.joint_value(joint)
    geoms = scene.joint_geoms(joint)
    candidates = _pushes(context, geoms, joint, change)
    grasps = propose(
        scene.boxes(_slender(scene, geoms)), scene.hand, context.rng, tilted(_LEANS, 4), yaws=8, each=4
    )
    candidates += [_Candidate(_HOLDING + grasp.cost, grasp.hand, None) for grasp in grasps]
    candidates.sort(key=lambda c: c.cost)
    partial: list[JointWay] = []
    for candidate in candidates:
        grips = candidate.normal is None
        opening = FULLY_OPEN if grips else 0.0
        start = candidate.hand
        hand = start if candidate.normal is None else _touching(context, start, candidate.normal)
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
    if start is None or not context.arm.clear(start):
        return 0.0, 0.0
    hinge = context.scene.model.jnt_type[joint] != _SLIDE
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


def _pushes(context: Context, geoms: np.ndarray, joint: int, change: float) -> list[_Candidate]:
    """Return poses some way off a face, from which going straight on would push it."""
    scene = context.scene
    boxes = scene.boxes(geoms)
    found = []
    for center, rotation, half in zip(boxes.center, boxes.rotation, boxes.half, strict=True):
        for axis in range(3):
            for sign in (-1.0, 1.0):
                normal = sign * rotation[:, axis]
                others = [i for i in range(3) if i != axis]
                for u in _ACROSS:
                    for v in _ACROSS:
                        point = center + normal * half[axis]
                        point = point + rotation[:, others] @ (half[others] * (u, v))
                        found += _pushes_at(context, point, normal, joint, change, abs(u) + abs(v))
    return found


def _pushes_at(
    context: Context, point: np.ndarray, normal: np.ndarray, joint: int, change: float, off: float
) -> list[_Candidate]:
    scene = context.scene
    step = math.copysign(0.01, change)
    moved = carried(scene, joint, Pose(point, np.eye(3)), step, 0.0).position - point
    distance = float(np.linalg.norm(moved))
    slide = scene.model.jnt_type[joint] == _SLIDE
    if distance < 1e-4 or normal @ moved / distance > -_AGAINST:
        return []
    # The longer the lever, the less force: metres of the point per radian.
    lever = 0.0 if slide else 0.3 * 0.02 / distance
    found = []
    for approach in _leaning(normal):
        lean = math.acos(np.clip(-approach[2], -1.0, 1.0))
        side = np.cross(approach, normal)
        if np.linalg.norm(side) < 0.2:
            side = np.array([1.0, 0.0, 0.0]) if abs(approach[0]) < 0.9 else np.array([0.0, 1.0, 0.0])
        side -= approach * (side @ approach)
        side /= np.linalg.norm(side)
        across = np.cross(approach, side)
        for closing in (side, -side, across, -across):
            rotation = np.column_stack([closing, np.cross(approach, closing), approach])
            turn = float(np.arccos(np.clip((np.trace(rotation @ scene.hand.rotation.T) - 1) / 2, -1, 1)))
            cost = 0.3 * turn + 0.4 * lean + 0.1 * off + lever + float(context.rng.normal(0.0, 0.03))
            found.append(_Candidate(cost, Pose(point + _APART * normal, rotation), normal))
    return found


def _leaning(normal: np.ndarray) -> Sequence[np.ndarray]:
    """Return directions for the hand: down, and leaning ever more towards a face."""
    flat = -normal * np.array([1.0, 1.0, 0.0])
    length = float(np.linalg.norm(flat))
    if length < 0.3:
        return [DOWN]
    flat /= length
    return [math.cos(a) * DOWN + math.sin(a) * flat for a in (0.0, 0.5, 1.0, 1.5)]


def _touching(context: Context, pose: Pose, normal: np.ndarray) -> Pose | None:
    """Return how far the closed hand can go towards a face, or None if it is not free to begin with."""
    if not context.clearance.free(pose, 0.0, margin=0.001):
        return None
    for _ in range(int(1.5 * _APART / _FINE)):
        closer = pose.moved(-_FINE * normal)
        if not context.clearance.free(closer, 0.0, margin=0.0):
            return pose
        pose = closer
    return None
