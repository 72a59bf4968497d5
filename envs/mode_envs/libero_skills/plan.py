"""From a goal's predicates to skills, in the order that they need."""

from __future__ import annotations

import numpy as np

from mode_envs.libero_skills.articulate import articulate
from mode_envs.libero_skills.carry import carry
from mode_envs.libero_skills.joints import doors
from mode_envs.libero_skills.motion import OPEN, Actions, Context, hold
from mode_envs.libero_skills.scene import Predicate, Scene

_MOVING = ("on", "in")
_PROGRESS = 0.02  # m or rad
_ATTEMPTS = 8  # at a goal
_IDLE = 2  # attempts that found nothing to do, after which there is no use in others
_WAIT = 10  # steps between those


def pursue(context: Context) -> Actions:
    """Make all of the goal's predicates hold, with a bounded number of attempts."""
    scene = context.scene
    tries: dict[str, int] = {}
    origins: dict[str, np.ndarray] = {}
    farthest: dict[str, float] = {}
    idle = 0
    for _ in range(_ATTEMPTS):
        pending = [p for p in ordered(scene, scene.goal) if not scene.holds(p)]
        if not pending:
            return True
        predicate = _needed_first(scene, pending[0])
        key = " ".join(predicate)
        steps, origin = context.steps, origins.setdefault(key, _joint_values(scene, predicate))
        yield from achieve(context, predicate, tries.get(key, 0))
        moved = float(np.abs(_joint_values(scene, predicate) - origin).max(initial=0.0))
        # What went a part of the way may go on as it began, unless it came back.
        tries[key] = 0 if moved > farthest.get(key, 0.0) + _PROGRESS else tries.get(key, 0) + 1
        farthest[key] = max(moved, farthest.get(key, 0.0))
        idle = idle + 1 if context.steps == steps else 0
        if idle == _IDLE:
            break
        if idle:
            # What falls or rolls at first, as in some published states, is not in the way once it rests.
            yield from hold(context, scene.hand, OPEN, _WAIT)
    return False


def _joint_values(scene: Scene, predicate: Predicate) -> np.ndarray:
    return np.array(
        [] if predicate[0] in _MOVING else [scene.joint_value(j) for j in scene.joints(predicate[1])]
    )


def achieve(context: Context, predicate: Predicate, attempt: int) -> Actions:
    """Make one predicate hold."""
    if predicate[0] in _MOVING:
        return (yield from carry(context, predicate))
    done = True
    for joint in context.scene.joints(predicate[1]):
        done &= yield from articulate(context, predicate, joint, attempt)
    return done


def ordered(scene: Scene, goal: list[list[str]]) -> list[list[str]]:
    """Return predicates in their given order, but for what has to come first.

    Things are put into a drawer before it is closed, and what carries another thing is put down before it.
    """
    left, done = list(goal), []
    while left:
        free = next((p for p in left if not any(_precedes(scene, q, p) for q in left if q is not p)), left[0])
        done.append(free)
        left.remove(free)
    return done


def _precedes(scene: Scene, first: Predicate, second: Predicate) -> bool:
    if first[0] not in _MOVING:
        return False
    if second[0] == "close":
        return set(scene.joints(second[1])) <= {joint for joint, _ in doors(scene, first)} != set()
    return second[0] in _MOVING and scene.owner_of_region(second[2]) == first[1]


def _needed_first(scene: Scene, predicate: Predicate) -> list[str]:
    """Return the predicate, or that what it puts something into be open, if that is not."""
    closed = (opened for _, opened in doors(scene, predicate) if not scene.holds(opened))
    return next(closed, list(predicate))
