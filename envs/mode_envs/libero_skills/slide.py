"""Sliding what cannot be picked up: closed fingers press on its middle and drag it along."""

from __future__ import annotations

import numpy as np

from mode_envs.libero_skills.motion import CLOSED, Actions, Context, follow
from mode_envs.libero_skills.poses import Pose, rotation_about
from mode_envs.libero_skills.pushes import Push, touching
from mode_envs.libero_skills.routes import UP, route
from mode_envs.libero_skills.scene import Predicate

_ABOVE = 0.04  # m over the object at which the hand begins to come down
_PRESS = 0.02  # m below the surface that the hand is asked to be
_AHEAD = 0.03  # m that the hand is asked to be ahead
_LEVEL = 0.03  # m that the region may be higher or lower
_TURNS = (0.0, 0.8, -0.8, 1.57)  # rad, of the hand
_LONGEST = 120  # steps of one drag


def can_slide(context: Context, predicate: Predicate) -> bool:
    """Return whether the predicate's region lies where its object stands, but for the height of a plate."""
    scene = context.scene
    region = scene.region(predicate[2])
    if region is None or predicate[0] != "on":
        return False
    return abs(scene.site(region[0]).position[2] - scene.pose(predicate[1]).position[2]) < _LEVEL


def slide(context: Context, predicate: Predicate) -> Actions:
    """Drag the predicate's first argument into the region until the predicate holds."""
    scene, name = context.scene, predicate[1]
    region = scene.region(predicate[2])
    assert region is not None
    goal = scene.site(region[0]).position
    middle = scene.pose(name).position.copy()
    middle[2] = scene.boxes(scene.geoms(name)).corners()[:, 2].max() + _ABOVE
    headings = [Pose(middle, rotation_about(UP, turn) @ scene.hand.rotation) for turn in _TURNS]
    touches = [(above, touching(context, Push(above, UP, 0.0))) for above in headings]
    above, touch = next(((a, t) for a, t in touches if t and context.arm.reaches(t)), (headings[0], None))
    if touch is None:
        return context.failed(f"no way to press on {name}")
    yield from follow(context, route(context, scene.hand, above, 0.0), CLOSED, tolerance=(0.02, 0.2))
    yield from follow(context, [touch], CLOSED, speed=0.1)
    for _ in range(_LONGEST):
        if scene.holds(predicate):
            break
        way = (goal - scene.pose(name).position) * np.array([1.0, 1.0, 0.0])
        way *= min(1.0, _AHEAD / max(float(np.linalg.norm(way)), 1e-9))
        target = np.array([*(scene.hand.position + way)[:2], touch.position[2] - _PRESS])
        yield context.towards(Pose(target, touch.rotation), CLOSED)
    yield from follow(context, [scene.hand.moved(0.1 * UP)], CLOSED, speed=0.15, tolerance=(0.02, 0.2))
    return scene.holds(predicate) or context.failed(f"{name} did not slide to {predicate[2]}")
