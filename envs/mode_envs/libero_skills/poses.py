"""Positions with orientations, and the little of rotations that skills need."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Pose:
    """Where something is: position (m), float64 ``(3,)``, and rotation matrix, float64 ``(3, 3)``."""

    position: np.ndarray
    rotation: np.ndarray

    def __matmul__(self, other: Pose) -> Pose:
        """Return ``other``, given in this frame, in the frame that this is given in."""
        return Pose(self.position + self.rotation @ other.position, self.rotation @ other.rotation)

    def inverse(self) -> Pose:
        """Return the pose that undoes this one."""
        return Pose(-self.rotation.T @ self.position, self.rotation.T)

    def moved(self, offset: np.ndarray) -> Pose:
        """Return this pose shifted by ``(3,)`` metres of the outer frame."""
        return Pose(self.position + offset, self.rotation)


def rotation_vector(rotation: np.ndarray) -> np.ndarray:
    """Return axis times angle (rad, up to pi) of a rotation matrix."""
    antisymmetric = np.array(
        [
            rotation[2, 1] - rotation[1, 2],
            rotation[0, 2] - rotation[2, 0],
            rotation[1, 0] - rotation[0, 1],
        ]
    )
    sine, cosine = np.linalg.norm(antisymmetric) / 2, (np.trace(rotation) - 1) / 2
    angle = math.atan2(sine, cosine)
    if sine > 1e-6:
        return antisymmetric / (2 * sine) * angle
    if cosine > 0:
        return antisymmetric / 2
    # Half a turn: the axis is what the rotation leaves as it is.
    column = int(np.argmax(np.diag(rotation)))
    axis = rotation[:, column] + np.eye(3)[column]
    return axis / np.linalg.norm(axis) * angle


def rotation_about(axis: np.ndarray, angle: float) -> np.ndarray:
    """Return the rotation matrix of an angle (rad) about a unit axis (Rodrigues)."""
    x, y, z = axis
    cross = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    return np.eye(3) + math.sin(angle) * cross + (1 - math.cos(angle)) * cross @ cross


def angle_between(first: np.ndarray, second: np.ndarray) -> float:
    """Return the angle (rad) from one rotation to another."""
    return float(np.linalg.norm(rotation_vector(second @ first.T)))


def between(first: Pose, second: Pose, fraction: float) -> Pose:
    """Return the pose at a fraction of the straight way from one to another."""
    turn = rotation_vector(second.rotation @ first.rotation.T)
    angle = float(np.linalg.norm(turn))
    rotation = (
        first.rotation if angle < 1e-9 else rotation_about(turn / angle, fraction * angle) @ first.rotation
    )
    return Pose(first.position + fraction * (second.position - first.position), rotation)


def sampled(path: Sequence[Pose], step: float, turn: float = 0.3) -> list[Pose]:
    """Return poses along a path, at most ``step`` m and ``turn`` rad apart, without its first one."""
    poses: list[Pose] = []
    for first, second in itertools.pairwise(path):
        length = float(np.linalg.norm(second.position - first.position))
        parts = max(1, math.ceil(max(length / step, angle_between(first.rotation, second.rotation) / turn)))
        poses += [between(first, second, (i + 1) / parts) for i in range(parts)]
    return poses
