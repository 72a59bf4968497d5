"""Where an object can be put so that a predicate holds, and the hand with it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from mode_envs.libero_skills.clearance import Clearance
from mode_envs.libero_skills.poses import Pose, rotation_about
from mode_envs.libero_skills.scene import Predicate, Scene

UP = np.array([0.0, 0.0, 1.0])
_STEP = 0.01  # m, of the search downwards
_FINE = 0.001
_TRIED = 150  # spots and turns
_LEVEL = tuple(np.array(axis) for axis in ((1.0, 0, 0), (-1.0, 0, 0), (0, 1.0, 0), (0, -1.0, 0)))
_ROOM = 0.006  # m around an object that can be put down with ease
_TIGHT = 0.5  # cost of less
_ON_TOP = 0.10  # m above a region that still count as on it
_HEADROOM = 0.15  # m above a rest that are looked at
_SPREAD = (0.0, 0.35, -0.35, 0.7, -0.7)  # of a region's half sizes
_EDGE = 0.93  # of a region's half size
_SIDE = 0.65  # of a region's half size, for objects that share it
_NEAR = (0.0, 0.01, -0.01)  # m from the middle of an object
_TURNS = tuple(math.radians(a) for a in (0, 30, -30, 60, -60, 90, -90, 120, -120, 150, -150, 180))


@dataclass(frozen=True)
class Rest:
    """A pose at which an object rests and a predicate holds.

    Attributes:
        pose: The object's.
        headroom: How far the object can rise from there before it touches something, at most 0.15 m.
        cost: Lower is better.
    """

    pose: Pose
    headroom: float
    cost: float


def rests(
    scene: Scene,
    clearance: Clearance,
    predicate: Predicate,
    rng: np.random.Generator,
    enough: int = 10,
    tip: float = 0.0,
    edge: bool = False,
) -> list[Rest]:
    """Return poses for the predicate's first argument, the best first.

    Args:
        scene: The scene.
        clearance: Of the scene.
        predicate: Such as ``["on", "milk_1", "plate_1"]``.
        rng: Varies them a little.
        enough: How many will do.
        tip: Angle (rad) by which to lay the object on a side instead of setting it down as it stands.
        edge: Look at the edge of a region, too, which the hand may reach where it does not get inside.
    """
    name, target = predicate[1], predicate[2]
    region = scene.region(target)
    now = scene.pose(name)
    if region is None:
        spots = [] if edge else _spots_on_object(scene, target, rng)
    else:
        spots = _spots_in(scene, predicate, rng, edge)
    candidates = []
    frame = (
        scene.pose(scene.owner_of_region(target)).rotation
        if region is None
        else scene.site(region[0]).rotation
    )
    aligned = _aligned(scene, name, frame)
    turns = [(turn, now.rotation) for turn in (*_TURNS, *aligned)]
    if tip:
        tips = [rotation_about(axis, tip) @ now.rotation for axis in _LEVEL]
        turns = [(turn, side) for side in tips for turn in aligned]
    for spot, heights, cost in spots:
        for turn, standing in turns:
            extra = 0.15 * abs(turn) + float(rng.normal(0.0, 0.02))
            candidates.append((cost + extra, spot, heights, rotation_about(UP, turn) @ standing))
    candidates.sort(key=lambda c: c[0])
    found: list[Rest] = []
    for cost, spot, heights, rotation in candidates[:_TRIED]:
        pose = _settle(clearance, name, Pose(np.array([*spot, heights[1]]), rotation), heights[0])
        if pose is not None and scene.would_hold(predicate, name, pose.moved(-2 * _FINE * UP)):
            tight = clearance.object_touches(name, pose.moved(_ROOM * UP), margin=0.8 * _ROOM)
            found.append(Rest(pose, _headroom(clearance, name, pose), cost + _TIGHT * tight))
            if len(found) == enough:
                break
    return sorted(found, key=lambda rest: rest.cost)


def _aligned(scene: Scene, name: str, frame: np.ndarray) -> list[float]:
    """Return the turns (rad) that set the sides of an object's largest box along the axes of a frame."""
    boxes = scene.boxes(scene.geoms(name))
    rotation = boxes.rotation[int(np.argmax(boxes.half.prod(1)))]

    def heading(axes: np.ndarray) -> float:
        flat = axes[:, int(np.argmin(np.abs(axes[2])))]
        return math.atan2(flat[1], flat[0])

    turn = heading(frame) - heading(rotation)
    return [math.remainder(turn + k * math.pi / 2, 2 * math.pi) for k in range(4)]


def _settle(clearance: Clearance, name: str, top: Pose, lowest: float) -> Pose | None:
    """Lower an object from a pose to where it touches something, and return that, or None."""
    pose, free = top, None
    while pose.position[2] > lowest:
        if not clearance.object_touches(name, pose):
            free = pose
        elif free is not None:
            break
        pose = pose.moved(-_STEP * UP)
    if free is None:
        return None
    fine = free
    for _ in range(int(_STEP / _FINE)):
        lower = fine.moved(-_FINE * UP)
        if clearance.object_touches(name, lower):
            return fine
        fine = lower
    return fine if fine.position[2] > lowest else None


def _headroom(clearance: Clearance, name: str, rest: Pose) -> float:
    """Return how far an object can rise from where it rests, m."""
    for step in range(1, round(_HEADROOM / _STEP) + 1):
        if clearance.object_touches(name, rest.moved(step * _STEP * UP)):
            return (step - 1) * _STEP
    return _HEADROOM


Spot = tuple[np.ndarray, tuple[float, float], float]
"""Position ``(2,)``, lowest and highest height (m), cost."""


def _spots_on_object(scene: Scene, target: str, rng: np.random.Generator) -> list[Spot]:
    middle = scene.pose(target).position
    top = scene.boxes(scene.geoms(target)).corners()[:, 2].max()
    heights = (float(middle[2]) - 0.02, float(top) + 0.2)
    spots = []
    for x in _NEAR:
        for y in _NEAR:
            shift = np.array([x, y]) + rng.normal(0.0, 0.002, 2)
            spots.append((middle[:2] + shift, heights, 20 * float(np.linalg.norm(shift))))
    return spots


def _spots_in(scene: Scene, predicate: Predicate, rng: np.random.Generator, edge: bool) -> list[Spot]:
    region = scene.region(predicate[2])
    assert region is not None
    pose, extent = scene.site(region[0]), np.abs(scene.site(region[0]).rotation @ region[1])
    top = pose.position[2] + extent[2] + (_ON_TOP if predicate[0] == "on" else 0.0)
    heights = (float(pose.position[2] - extent[2]) - 0.03, float(top))
    wished = _share(scene, predicate) * extent[:2]
    spots = []
    spread = (-_EDGE, 0.0, _EDGE) if edge else _SPREAD
    for x in spread:
        for y in spread:
            shift = np.clip(np.array([x, y]) + rng.normal(0.0, 0.05, 2), -_EDGE, _EDGE) * extent[:2]
            spots.append((pose.position[:2] + shift, heights, 6 * float(np.linalg.norm(shift - wished))))
    return spots


def _share(scene: Scene, predicate: Predicate) -> np.ndarray:
    """Return where in a region an object should stand, ``(2,)`` in its half sizes, to leave others room.

    Objects that the goal wants in the same region stand side by side.
    """
    sharing = [p[1] for p in scene.goal if p[0] == predicate[0] and p[-1] == predicate[2]]
    share = np.zeros(2)
    if len(sharing) > 1 and predicate[1] in sharing:
        corners = scene.boxes(scene.geoms(predicate[1])).corners()
        narrow = int(np.argmin(np.ptp(corners[:, :2], axis=0)))
        share[narrow] = _SIDE * (2 * sharing.index(predicate[1]) / (len(sharing) - 1) - 1)
    return share
