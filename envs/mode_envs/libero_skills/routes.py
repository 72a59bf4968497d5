"""Ways for the hand, and what it holds, around what stands between."""

from __future__ import annotations

import numpy as np

from mode_envs.libero_skills.clearance import FULLY_OPEN, Held
from mode_envs.libero_skills.motion import Context
from mode_envs.libero_skills.poses import Pose, sampled

UP = np.array([0.0, 0.0, 1.0])
_SIDEWAYS = tuple(np.array(d) for d in ((-1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, -1.0, 0.0), (1.0, 0.0, 0.0)))
_RISES = (0.0, 0.04, 0.08, 0.14, 0.20, 0.26, 0.32)  # m above the higher end
_ROOMS = (0.012, 0.003)  # m around hand and object on the way, as wished and as needed


def way_out(
    context: Context, pose: Pose, opening: float = FULLY_OPEN, held: Held | None = None, length: float = 0.10
) -> Pose | None:
    """Return where the hand gets to by a straight line into the open, or None if every line is barred.

    The first centimetre may touch what the hand or the object touches already.
    """
    back = -pose.rotation[:, 2]
    directions = [UP, back] if held or back[2] > 0.9 else [back, UP]
    directions += [(UP + s) / np.sqrt(2) for s in _SIDEWAYS] + list(_SIDEWAYS)
    for direction in directions:
        for reach in (length, 2.2 * length) if abs(direction[2]) < 0.5 else (length,):
            end = pose.moved(direction * reach)
            steps = sampled([pose, end], 0.015)
            margins = [min(0.004, 0.2 * 0.015 * (i + 1) - 0.003) for i in range(len(steps))]
            if (
                all(
                    context.clearance.free(p, opening, held, margin=m)
                    for p, m in zip(steps, margins, strict=True)
                )
                and _leads_out(context, end, opening, held)
                and context.arm.solve(end) is not None
            ):
                return end
    return None


def _leads_out(context: Context, pose: Pose, opening: float, held: Held | None) -> bool:
    """Return whether the hand can rise freely from a pose."""
    return context.clearance.along(sampled([pose, pose.moved(0.12 * UP)], 0.03), opening, held, margin=0.0)


def route(
    context: Context, start: Pose, goal: Pose, opening: float = FULLY_OPEN, held: Held | None = None
) -> list[Pose]:
    """Return the poses of a way from one pose to another: straight, or up, across and down.

    The lowest that keeps its distance from everything, or else the one that is barred least.
    """
    height = max(start.position[2], goal.position[2])
    paths = [[goal]]
    for rise in _RISES:
        over = Pose(np.array([*goal.position[:2], height + rise]), goal.rotation)
        up = Pose(np.array([*start.position[:2], height + rise]), start.rotation)
        paths.append([up, over, goal])
    barred = []
    for margin in _ROOMS:
        for path in paths:
            poses = sampled([start, *path], 0.03)
            barred.append(
                sum(not context.clearance.free(p, opening, held, margin=margin) for p in poses[:-1])
            )
            if not barred[-1]:
                return path
    return paths[int(np.argmin(barred[-len(paths) :]))]
