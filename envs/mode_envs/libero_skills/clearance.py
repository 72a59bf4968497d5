"""Whether the hand, and what it holds, would touch anything at a pose."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from mode_envs.libero_skills.poses import Pose
from mode_envs.libero_skills.scene import ROBOT, Scene

FULLY_OPEN = 0.08
"""Distance between the fingers of the open hand, m."""
MARGIN = 0.003
"""Distance to keep from everything, m."""
_PLANE = 0  # MuJoCo's number of the type


@dataclass(frozen=True)
class Held:
    """An object in the hand.

    Attributes:
        name: LIBERO's name.
        in_hand: Its pose in the frame of the hand.
    """

    name: str
    in_hand: Pose


class Clearance:
    """Asks MuJoCo for distances, with hand and object put where they are not."""

    def __init__(self, scene: Scene) -> None:
        import mujoco

        self._scene = scene
        self._ghost = mujoco.MjData(scene.model)
        self._obstacles = np.flatnonzero(scene.touchable & (scene.owner != ROBOT))
        model = scene.model
        names = {"robot0_right_hand", "gripper0_right_gripper", "gripper0_leftfinger", "gripper0_rightfinger"}
        names |= {"gripper0_finger_joint1_tip", "gripper0_finger_joint2_tip"}
        bodies = [b for b in range(model.nbody) if model.body(b).name in names]
        self._hand = np.flatnonzero(np.isin(model.geom_bodyid, bodies) & scene.touchable)
        self._closed, self._slide = self._shape()
        self._kept: dict[frozenset[str], np.ndarray] = {}
        self._version = -1
        self._everything: tuple[np.ndarray, np.ndarray]

    def free(
        self,
        hand: Pose,
        opening: float = FULLY_OPEN,
        held: Held | None = None,
        ignore: Collection[str] = (),
        margin: float = MARGIN,
        ignore_geoms: np.ndarray | None = None,
    ) -> bool:
        """Return whether nothing is nearer than the margin (m).

        Args:
            hand: Where the hand would be.
            opening: Distance between its fingers, m.
            held: What it would hold.
            ignore: Owners of geometries that may be touched.
            margin: Distance to keep, m.
            ignore_geoms: Further geometries that may be touched.
        """
        skip = frozenset({*ignore, held.name} if held else ignore)
        obstacles = self._without(skip, ignore_geoms)
        positions = self._closed[0] + self._slide * opening / 2
        if self._touches(self._hand, hand, positions, self._closed[1], obstacles, margin):
            return False
        return held is None or not self.object_touches(held.name, hand @ held.in_hand, skip, margin)

    def object_touches(
        self, name: str, pose: Pose, ignore: Collection[str] = (), margin: float = 0.0
    ) -> bool:
        """Return whether an object at a pose would touch anything but the robot."""
        geoms = self._scene.geoms(name)
        there = self._scene.pose(name).inverse()
        positions = self._scene.data.geom_xpos[geoms] @ there.rotation.T + there.position
        rotations = there.rotation @ self._scene.data.geom_xmat[geoms].reshape(-1, 3, 3)
        obstacles = self._without(frozenset({*ignore, name}), None)
        return self._touches(geoms, pose, positions, rotations, obstacles, margin)

    def along(
        self,
        path: Iterable[Pose],
        opening: float = FULLY_OPEN,
        held: Held | None = None,
        ignore: Collection[str] = (),
        margin: float = MARGIN,
    ) -> bool:
        """Return whether all poses of a path are free."""
        return all(self.free(pose, opening, held, ignore, margin) for pose in path)

    def _without(self, skip: frozenset[str], geoms: np.ndarray | None) -> np.ndarray:
        if skip not in self._kept:
            owners = self._scene.owner[self._obstacles]
            self._kept[skip] = self._obstacles[[owner not in skip for owner in owners]]
        kept = self._kept[skip]
        return kept if geoms is None else kept[~np.isin(kept, geoms)]

    def _touches(
        self,
        geoms: np.ndarray,
        frame: Pose,
        positions: np.ndarray,
        rotations: np.ndarray,
        obstacles: np.ndarray,
        margin: float,
    ) -> bool:
        import mujoco

        model, ghost, data = self._scene.model, self._ghost, self._scene.data
        if self._version != self._scene.version:
            self._version = self._scene.version
            self._everything = _bounds(model, np.arange(model.ngeom), data.geom_xpos, data.geom_xmat)
        ghost.geom_xpos[:], ghost.geom_xmat[:] = data.geom_xpos, data.geom_xmat
        ghost.geom_xpos[geoms] = frame.position + positions @ frame.rotation.T
        ghost.geom_xmat[geoms] = (frame.rotation @ rotations).reshape(-1, 9)
        low, high = _bounds(model, geoms, ghost.geom_xpos[geoms], ghost.geom_xmat[geoms])
        low, high = low - margin, high + margin
        other_low, other_high = (bound[obstacles] for bound in self._everything)
        planes = model.geom_type[obstacles] == _PLANE
        if planes.any() and low[:, 2].min() < data.geom_xpos[obstacles[planes], 2].max():
            return True
        near = (low[:, None] < other_high[None]).all(-1) & (high[:, None] > other_low[None]).all(-1)
        near &= ~planes[None]
        reach = max(margin, 0.0) + 1e-3
        return any(
            mujoco.mj_geomDistance(model, ghost, geoms[mine], obstacles[other], reach, None) < margin
            for mine, other in zip(*np.nonzero(near), strict=True)
        )

    def _shape(self) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
        """Return the hand's geometries in its frame with closed fingers, and how they move per metre."""
        import mujoco

        scene, ghost = self._scene, self._ghost

        def relative(opening: float) -> tuple[np.ndarray, np.ndarray]:
            ghost.qpos[:] = scene.data.qpos
            ghost.qpos[scene.finger_addresses] = [opening, -opening]
            mujoco.mj_kinematics(scene.model, ghost)
            rotation = ghost.site_xmat[scene.hand_site].reshape(3, 3)
            positions = (ghost.geom_xpos[self._hand] - ghost.site_xpos[scene.hand_site]) @ rotation
            return positions, rotation.T @ ghost.geom_xmat[self._hand].reshape(-1, 3, 3)

        closed, opened = relative(0.0), relative(0.01)
        return closed, (opened[0] - closed[0]) / 0.01


def _bounds(
    model: Any, geoms: np.ndarray, positions: np.ndarray, rotations: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the corners of axis-aligned boxes around N geometries, each ``(N, 3)``."""
    rotation, aabb = rotations.reshape(-1, 3, 3), model.geom_aabb[geoms]
    center = positions + np.einsum("nij,nj->ni", rotation, aabb[:, :3])
    half = np.einsum("nij,nj->ni", np.abs(rotation), aabb[:, 3:])
    return center - half, center + half
