"""Picking something up and putting it where a predicate wants it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mode_envs.libero_skills.articulate import open_wider
from mode_envs.libero_skills.clearance import FULLY_OPEN, Held
from mode_envs.libero_skills.grasps import Grasp, propose, tilted
from mode_envs.libero_skills.motion import CLOSED, OPEN, Actions, Context, follow, hold
from mode_envs.libero_skills.placements import Rest, rests
from mode_envs.libero_skills.poses import Pose, angle_between
from mode_envs.libero_skills.routes import UP, route, way_out
from mode_envs.libero_skills.scene import Predicate
from mode_envs.libero_skills.slide import can_slide, slide

_CLOSING, _OPENING = 10, 8  # steps that the fingers need
_TRIED = 250  # grasps that are considered
_LOOKED_AT = 12  # grasps for which a place is sought
_LOW = 0.02  # m to fall that need not be improved on
_LEAST = 0.0015  # m between fingers that hold something
_SLIP = 0.035  # m that an object may move in the hand
_DROPS = (0.004, 0.015, 0.03, 0.06, 0.1, 0.15)  # m above its rest at which it is let go
_MANNERS = ((0.0, False), (0.0, True), (math.pi / 2, False), (math.pi / 2, True), (math.pi / 4, True))
"""How an object is put down: tipped by an angle (rad), at the edge of a region; the first that works."""
_LEANS = (0.35, 0.7, 1.05, 1.4)


@dataclass(frozen=True)
class _Transfer:
    """A grasp with all that follows from it: the poses before it, after it, and at the other end.

    It is perched if the object would rest higher than where there is room for it: what is let go there tilts.
    """

    grasp: Grasp
    before: Pose
    lifted: Pose
    rest: Rest
    drop: float
    perched: bool


@dataclass(frozen=True)
class _Release:
    """Where the hand lets go and comes from, how far the object falls (m), and where to."""

    rest: Rest
    hand: Pose
    arrival: Pose
    drop: float


def carry(context: Context, predicate: Predicate) -> Actions:
    """Pick up the predicate's first argument and put it where the predicate holds."""
    name = predicate[1]
    transfer = _choose(context, predicate)
    if (transfer is None or transfer.perched) and (yield from open_wider(context, predicate)):
        transfer = _choose(context, predicate)
    if transfer is None and can_slide(context, predicate):
        return (yield from slide(context, predicate))
    if transfer is None:
        return context.failed(f"no way to carry {name} to {predicate[2]}")
    scene, grasp = context.scene, transfer.grasp
    in_object = scene.pose(name).inverse() @ grasp.hand
    path = route(context, scene.hand, transfer.before)
    yield from follow(context, path, OPEN, tolerance=(0.02, 0.2))
    if not (yield from follow(context, [grasp.hand], OPEN, speed=0.12)):
        context.failed_grasps.setdefault(name, []).append(in_object)
        return context.failed(f"the hand did not get to {name}")
    yield from hold(context, grasp.hand, CLOSED, _CLOSING)
    if scene.opening < _LEAST:
        context.failed_grasps.setdefault(name, []).append(in_object)
        return context.failed(f"the fingers missed {name}")
    held = Held(name, scene.hand.inverse() @ scene.pose(name))
    lifted = Pose(transfer.lifted.position - grasp.hand.position + scene.hand.position, scene.hand.rotation)
    yield from follow(context, [lifted], CLOSED, speed=0.15, tolerance=(0.02, 0.2))
    if not _holds(context, held):
        context.failed_grasps.setdefault(name, []).append(in_object)
        return context.failed(f"{name} slipped while it was lifted")
    return (yield from _put(context, predicate, transfer.rest))


def _put(context: Context, predicate: Predicate, rest: Rest) -> Actions:
    """Put what the hand holds to rest."""
    scene, name = context.scene, predicate[1]
    held = Held(name, scene.hand.inverse() @ scene.pose(name))
    release = _where_to(context, predicate, held, rest)
    path = route(context, scene.hand, release.arrival, scene.opening, held)
    yield from follow(context, path, CLOSED, speed=0.2, tolerance=(0.015, 0.15))
    if not _holds(context, held):
        return context.failed(f"{name} was lost on the way")
    # It has moved in the hand: aim again.
    now = scene.hand.inverse() @ scene.pose(name)
    wanted = release.rest.pose.moved(release.drop * UP) @ now.inverse()
    if np.linalg.norm(wanted.position - release.hand.position) < _SLIP:
        above = wanted.moved(release.arrival.position - release.hand.position)
        yield from follow(context, [above], CLOSED, tolerance=(0.004, 0.03))
        release = _Release(release.rest, wanted, above, release.drop)
    yield from follow(context, [release.hand], CLOSED, speed=0.1, tolerance=(0.006, 0.08), patience=12)
    here = scene.hand
    yield from hold(context, here, OPEN, _OPENING)
    out = way_out(context, scene.hand) or scene.hand.moved(0.1 * UP)
    yield from follow(context, [out], OPEN, speed=0.15, tolerance=(0.02, 0.2))
    return scene.holds(predicate) or context.failed(f"{name} is not where it was let go")


def _where_to(context: Context, predicate: Predicate, held: Held, rest: Rest) -> _Release:
    """Return where to let go and where to come from: as planned, or else the best there is now."""
    opening = context.scene.opening
    if (found := _release(context, held, rest, opening)) is not None:
        return found
    for other in rests(context.scene, context.clearance, predicate, context.rng):
        if (found := _release(context, held, other, opening)) is not None:
            return found
    context.failed(f"no clear way to put {held.name} down")
    hand = rest.pose.moved(_DROPS[2] * UP) @ held.in_hand.inverse()
    return _Release(rest, hand, hand.moved(0.1 * UP), _DROPS[2])


def _holds(context: Context, held: Held) -> bool:
    """Return whether an object is still held where it was; it may have turned about the fingers."""
    scene = context.scene
    there = (scene.pose(held.name) @ held.in_hand.inverse()).position
    return scene.opening > _LEAST and float(np.linalg.norm(there - scene.hand.position)) < _SLIP


def _choose(context: Context, predicate: Predicate) -> _Transfer | None:
    """Find a grasp with which the object can also be put down, from as low as possible."""
    scene, name = context.scene, predicate[1]
    boxes = scene.boxes(scene.geoms(name))
    grasps = {False: propose(boxes, scene.hand, context.rng)}
    for tip, edge in _MANNERS:
        goals = rests(scene, context.clearance, predicate, context.rng, tip=tip, edge=edge)
        for leaning in (False, True):
            if leaning not in grasps:
                grasps[leaning] = propose(boxes, scene.hand, context.rng, tilted(_LEANS), yaws=8, each=6)
            if goals and (best := _best(context, name, grasps[leaning], goals)) is not None:
                return best
    return None


def _best(context: Context, name: str, grasps: Sequence[Grasp], goals: Sequence[Rest]) -> _Transfer | None:
    """Return the first of the grasps that can be released low, or else that which can be released lowest."""
    scene = context.scene
    best: _Transfer | None = None
    lowest = min(goal.pose.position[2] for goal in goals)
    looked_at: list[Grasp] = []
    avoided = [scene.pose(name) @ hand for hand in context.failed_grasps.get(name, [])]
    for grasp in grasps[:_TRIED]:
        if any(_alike(grasp.hand, other.hand) for other in looked_at):
            continue
        if any(_alike(grasp.hand, other) for other in avoided):
            continue
        before = _before(context, grasp)
        if before is None:
            continue
        held = Held(name, grasp.hand.inverse() @ scene.pose(name))
        lifted = way_out(context, grasp.hand, grasp.width, held)
        if lifted is None:
            continue
        looked_at.append(grasp)
        for rest in goals:
            release = _release(context, held, rest, grasp.width)
            if release is not None and (best is None or release.drop < best.drop - _LOW / 2):
                perched = bool(rest.pose.position[2] > lowest + _LOW)
                best = _Transfer(grasp, before, lifted, rest, release.drop, perched)
            if best is not None and best.drop < _LOW:
                break
        if (best is not None and best.drop < _LOW) or len(looked_at) == _LOOKED_AT:
            break
    return best


def _alike(grasp: Pose, other: Pose) -> bool:
    """Return whether two grasps are so near each other that what bars one bars the other."""
    apart = float(np.linalg.norm(grasp.position - other.position))
    return apart < 0.012 and angle_between(grasp.rotation, other.rotation) < 0.45


def _before(context: Context, grasp: Grasp) -> Pose | None:
    """Return where the hand comes from, or None if the grasp cannot be reached."""
    if not context.clearance.free(grasp.hand, margin=0.001) or not context.arm.reaches(grasp.hand):
        return None
    return way_out(context, grasp.hand)


def _release(context: Context, held: Held, rest: Rest, opening: float) -> _Release | None:
    """Return where the hand lets go, and where it comes from, or None if it cannot."""
    for drop in (d for d in _DROPS if d <= max(rest.headroom, _DROPS[0])):
        hand = rest.pose.moved(drop * UP) @ held.in_hand.inverse()
        if not context.clearance.free(hand, FULLY_OPEN, ignore=(held.name,), margin=0.001):
            continue
        if not context.arm.reaches(hand, ignore=(held.name,)):
            return None
        arrival = way_out(context, hand, opening, held)
        if arrival is not None:
            return _Release(rest, hand, arrival, drop)
    return None
