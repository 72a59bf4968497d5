"""Where a closed hand can push something that a joint moves: faces that look against the way it goes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mode_envs.libero_skills.grasps import DOWN
from mode_envs.libero_skills.motion import Context
from mode_envs.libero_skills.poses import Pose, rotation_about
from mode_envs.libero_skills.scene import Scene

_SLIDE = 2  # MuJoCo's number of the type
_ACROSS = (0.0, 0.6, -0.6)  # of the half sides of a face
_AGAINST = 0.8  # cosine between a face's normal and the way it is pushed
_APART = 0.04  # m from the face before a push
_FINE = 0.002  # m between poses on the way to it


@dataclass(frozen=True)
class Push:
    """A way to push.

    Attributes:
        hand: Pose of the closed hand, some way off a face.
        normal: The face's, from which going straight against it would push.
        cost: Lower is better.
    """

    hand: Pose
    normal: np.ndarray
    cost: float


def is_slide(scene: Scene, joint: int) -> bool:
    """Return whether a joint slides rather than turns."""
    return bool(scene.model.jnt_type[joint] == _SLIDE)


def carried(scene: Scene, joint: int, pose: Pose, change: float, turning: float) -> Pose:
    """Return where a pose gets to when a joint that it is fixed to changes (m or rad)."""
    axis, anchor = scene.data.xaxis[joint], scene.data.xanchor[joint]
    if is_slide(scene, joint):
        return pose.moved(axis * change)
    around = rotation_about(axis, change)
    position = anchor + around @ (pose.position - anchor)
    return Pose(position, rotation_about(axis, turning * change) @ pose.rotation)


def pushes(context: Context, geoms: np.ndarray, joint: int, change: float) -> list[Push]:
    """Return ways to push what a joint moves, in no order."""
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
) -> list[Push]:
    scene = context.scene
    step = math.copysign(0.01, change)
    moved = carried(scene, joint, Pose(point, np.eye(3)), step, 0.0).position - point
    distance = float(np.linalg.norm(moved))
    if distance < 1e-4 or normal @ moved / distance > -_AGAINST:
        return []
    # The longer the lever, the less force: metres of the point per radian.
    lever = 0.0 if is_slide(scene, joint) else 0.3 * 0.02 / distance
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
            found.append(Push(Pose(point + _APART * normal, rotation), normal, cost))
    return found


def _leaning(normal: np.ndarray) -> Sequence[np.ndarray]:
    """Return directions for the hand: down, and leaning ever more towards a face."""
    flat = -normal * np.array([1.0, 1.0, 0.0])
    length = float(np.linalg.norm(flat))
    if length < 0.3:
        return [DOWN]
    flat /= length
    return [math.cos(a) * DOWN + math.sin(a) * flat for a in (0.0, 0.5, 1.0, 1.5)]


def touching(context: Context, push: Push) -> Pose | None:
    """Return how far the closed hand can go towards the face, or None if it is not free to begin with."""
    pose = push.hand
    if not context.clearance.free(pose, 0.0, margin=0.001):
        return None
    for _ in range(int(1.5 * _APART / _FINE)):
        closer = pose.moved(-_FINE * push.normal)
        if not context.clearance.free(closer, 0.0, margin=0.0):
            return pose
        pose = closer
    return None
