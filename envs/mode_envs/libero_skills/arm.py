"""Inverse kinematics of the arm: whether a pose can be reached, and without folding into something."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from mode_envs.libero_skills.poses import Pose, rotation_vector
from mode_envs.libero_skills.scene import ROBOT, WORLD, Scene

_ITERATIONS = 40
_DAMPING = 0.05
_TOLERANCE = (0.004, 0.04)  # m, rad
_HOME = np.array([0.0, -0.16, 0.0, -2.44, 0.0, 2.23, 0.79])  # rad; from which LIBERO starts
_LIMIT = 0.03  # rad to keep from the joints' limits


class Arm:
    """The seven joints of the arm."""

    def __init__(self, scene: Scene) -> None:
        import mujoco

        self._scene = scene
        self._data = mujoco.MjData(scene.model)
        model = scene.model
        joints = [int(np.flatnonzero(model.jnt_qposadr == a)[0]) for a in scene.arm_addresses]
        self._dofs = model.jnt_dofadr[joints]
        self._low, self._high = model.jnt_range[joints].T + np.array([[_LIMIT], [-_LIMIT]])
        links = [
            b for b in range(model.nbody) if model.body(b).name in {f"robot0_link{i}" for i in range(3, 8)}
        ]
        self._obstacles = np.flatnonzero(scene.touchable & ~np.isin(scene.owner, [ROBOT, WORLD]))
        self._links = np.flatnonzero(np.isin(model.geom_bodyid, links) & scene.touchable)

    def solve(self, pose: Pose, start: np.ndarray | None = None) -> np.ndarray | None:
        """Return joint angles ``(7,)`` (rad) that put the hand at a pose, or None if none were found.

        The search begins at ``start``, or where the arm is and then where it starts from.
        """
        if start is not None:
            return self._search(pose, start)
        now = self._scene.data.qpos[self._scene.arm_addresses]
        found = self._search(pose, now)
        return self._search(pose, _HOME) if found is None else found

    def _search(self, pose: Pose, start: np.ndarray) -> np.ndarray | None:
        """Search by damped least squares (Wampler 1986)."""
        import mujoco

        scene, data = self._scene, self._data
        data.qpos[:] = scene.data.qpos
        angles = start.copy()
        jacobian = np.zeros((6, scene.model.nv))
        for _ in range(_ITERATIONS):
            data.qpos[scene.arm_addresses] = angles
            mujoco.mj_kinematics(scene.model, data)
            mujoco.mj_comPos(scene.model, data)
            shift = pose.position - data.site_xpos[scene.hand_site]
            turn = rotation_vector(pose.rotation @ data.site_xmat[scene.hand_site].reshape(3, 3).T)
            if np.linalg.norm(shift) < _TOLERANCE[0] and np.linalg.norm(turn) < _TOLERANCE[1]:
                return angles
            mujoco.mj_jacSite(scene.model, data, jacobian[:3], jacobian[3:], scene.hand_site)
            J = jacobian[:, self._dofs]
            error = np.concatenate([shift, turn])
            error *= min(1.0, 0.5 / max(float(np.linalg.norm(error)), 1e-9))
            angles = angles + J.T @ np.linalg.solve(J @ J.T + _DAMPING**2 * np.eye(6), error)
            angles = np.clip(angles, self._low, self._high)
        return None

    def reaches(self, pose: Pose, ignore: Collection[str] = ()) -> bool:
        """Return whether a pose can be reached with no part of the arm inside something.

        Args:
            pose: Of the hand.
            ignore: Objects that the arm may touch, such as that in the hand.
        """
        angles = self.solve(pose)
        return angles is not None and self.clear(angles, ignore)

    def clear(self, angles: np.ndarray, ignore: Collection[str] = ()) -> bool:
        """Return whether the links are free of furniture and objects, but for those to ignore."""
        import mujoco

        scene, data = self._scene, self._data
        data.qpos[:] = scene.data.qpos
        data.qpos[scene.arm_addresses] = angles
        mujoco.mj_kinematics(scene.model, data)
        obstacles = self._obstacles[~np.isin(scene.owner[self._obstacles], list(ignore))]
        if not len(obstacles):
            return True
        gaps = np.linalg.norm(data.geom_xpos[self._links, None] - data.geom_xpos[obstacles], axis=-1)
        radius = scene.model.geom_rbound
        near = gaps < radius[self._links, None] + radius[obstacles]
        return not any(
            mujoco.mj_geomDistance(scene.model, data, self._links[i], obstacles[j], 0.01, None) < 0.0
            for i, j in zip(*np.nonzero(near), strict=True)
        )
