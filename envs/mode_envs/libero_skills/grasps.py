"""Where two parallel fingers can hold something: lines through its boxes, in and out within reach.

A line along the closing direction meets the object in stretches of material. The fingers can close on any of
them, or on neighbours together, that is narrower than the open hand: the wall of a bowl, the handle of a pan,
the sides of a box. What else stands in the way is left to `Clearance`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mode_envs.libero_skills.poses import Pose, angle_between, rotation_about
from mode_envs.libero_skills.scene import Boxes

DOWN = np.array([0.0, 0.0, -1.0])
_GRID = 0.008  # m between lines
_WIDEST = 0.070  # m between the fingers
_GAP = 0.002  # m; narrower gaps are material
_FLUSH = 0.006  # m by which neighbouring lines may differ on a face that the finger pads lie on
_DEEPEST = 0.056  # m from what the fingers come to first; beyond, the palm would touch


@dataclass(frozen=True)
class Grasp:
    """A way to hold something.

    Attributes:
        hand: Pose of the hand, in the world.
        width: Distance between the fingers when they hold, m.
        cost: Lower is better.
    """

    hand: Pose
    width: float
    cost: float


def tilted(angles: Sequence[float], directions: int = 8) -> list[np.ndarray]:
    """Return unit directions that lean from straight down by angles (rad), all around."""
    found = []
    for angle in angles:
        for k in range(directions if angle else 1):
            turn = 2 * math.pi * k / directions
            found.append(
                np.array(
                    [math.sin(angle) * math.cos(turn), math.sin(angle) * math.sin(turn), -math.cos(angle)]
                )
            )
    return found


def propose(
    boxes: Boxes,
    hand: Pose,
    rng: np.random.Generator,
    approaches: Sequence[np.ndarray] = (DOWN,),
    jitter: float = 0.05,
    yaws: int = 16,
    each: int = 60,
) -> list[Grasp]:
    """Return grasps of boxes, the best first.

    Args:
        boxes: What to hold.
        hand: Where the hand is; turning it less is better.
        rng: Draws a little cost for each, so that demonstrations differ.
        approaches: Unit directions in which the hand may point.
        jitter: Standard deviation of the cost that is drawn.
        yaws: Closing directions over half a turn.
        each: Grasps for each orientation of the hand.
    """
    middle = boxes.corners()
    middle = (middle.min(0) + middle.max(0)) / 2
    found: list[Grasp] = []
    for approach in approaches:
        lean = math.acos(np.clip(-approach[2], -1.0, 1.0))
        across = np.cross(approach, [0.0, 1.0, 0.0])
        if np.linalg.norm(across) < 0.1:
            across = np.cross(approach, [1.0, 0.0, 0.0])
        across /= np.linalg.norm(across)
        for k in range(yaws):
            closing = rotation_about(approach, math.pi * k / yaws) @ across
            rotation = np.column_stack([closing, np.cross(approach, closing), approach])
            turned = angle_between(hand.rotation, rotation)
            other = rotation * np.array([-1.0, -1.0, 1.0])
            if (turned_other := angle_between(hand.rotation, other)) < turned:
                rotation, turned = other, turned_other
            base = 0.35 * turned + 0.5 * lean
            alike = []
            for point, width, quality in _lines(boxes, rotation):
                off = point - middle
                cost = base + 3.0 * float(np.linalg.norm(off[:2])) + 5.0 * max(0.0, float(off[2]))
                cost += 1.5 * (1.0 - quality) + 10.0 * max(0.0, width - 0.055)
                alike.append(Grasp(Pose(point, rotation), width, cost))
            found += sorted(alike, key=lambda g: g.cost)[:each]
    noise = rng.normal(0.0, jitter, len(found))
    order = np.argsort([grasp.cost + extra for grasp, extra in zip(found, noise, strict=True)])
    return [found[i] for i in order]


def _lines(boxes: Boxes, rotation: np.ndarray) -> list[tuple[np.ndarray, float, float]]:
    """Return middle, width and quality in [0, 1] of each stretch that the fingers can hold."""
    corners = boxes.corners() @ rotation
    low, high = corners.min(0), corners.max(0)
    aside = np.arange(low[1] + 0.002, high[1], _GRID)
    ahead = np.arange(low[2] + 0.003, min(high[2], low[2] + _DEEPEST), _GRID)
    if not len(aside) or not len(ahead):
        return []
    grid = np.stack(np.meshgrid(aside, ahead, indexing="ij"), -1).reshape(-1, 2)
    start, end, square = _crossings(boxes, rotation, grid)
    order = np.argsort(start, axis=1)
    start, end, square = (np.take_along_axis(x, order, 1) for x in (start, end, square))
    reach = np.maximum.accumulate(end, axis=1)
    begins = np.isfinite(start)
    begins[:, 1:] &= start[:, 1:] > reach[:, :-1] + _GAP
    runs = [_runs(start[i], reach[i], square[i], begins[i]) for i in range(len(grid))]
    found = []
    for i, (b, a) in enumerate(grid):
        for first, last, facing in runs[i]:
            row, column = divmod(i, len(ahead))
            beside = [
                (row + r) * len(ahead) + column + c
                for r, c in ((-1, 0), (1, 0), (0, -1), (0, 1))
                if 0 <= row + r < len(aside) and 0 <= column + c < len(ahead)
            ]
            flush = sum(
                any(abs(f - first) < _FLUSH and abs(e - last) < _FLUSH for f, e, _ in runs[n]) for n in beside
            )
            if flush:
                point = rotation @ np.array([(first + last) / 2, b, a])
                found.append((point, last - first, facing * flush / 4))
    return found


def _crossings(
    boxes: Boxes, rotation: np.ndarray, grid: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return where each line enters and leaves each box, and how squarely it meets the face it enters.

    Lines run along the first axis of ``rotation`` through ``grid``, L points on its other two. All are
    ``(L, N)``; a line that misses a box enters it at infinity.
    """
    direction = np.einsum("nji,j->ni", boxes.rotation, rotation[:, 0])
    points = grid @ rotation[:, 1:].T
    local = np.einsum("nji,lnj->lni", boxes.rotation, points[:, None] - boxes.center)
    safe = np.where(np.abs(direction) < 1e-9, 1e-9, direction)
    one, two = (-boxes.half - local) / safe, (boxes.half - local) / safe
    entries, exits = np.minimum(one, two), np.maximum(one, two)
    start, end = entries.max(-1), exits.min(-1)
    axis = entries.argmax(-1)
    square = np.abs(direction)[np.arange(len(direction))[None], axis]
    hit = start < end
    return np.where(hit, start, np.inf), np.where(hit, end, -np.inf), square


def _runs(
    start: np.ndarray, reach: np.ndarray, square: np.ndarray, begins: np.ndarray
) -> list[tuple[float, float, float]]:
    """Return begin, end and squareness of stretches, alone and with their neighbours, that fit the hand."""
    firsts = np.flatnonzero(begins)
    finite = int(np.isfinite(start).sum())
    lasts = [*(firsts[1:] - 1), finite - 1]
    return [
        (float(start[firsts[i]]), float(reach[lasts[j]]), float(square[firsts[i]]))
        for i in range(len(firsts))
        for j in range(i, len(firsts))
        if reach[lasts[j]] - start[firsts[i]] <= _WIDEST
    ]
