"""A LIBERO scene rebuilt from observations, to ask about its geometry and its goal.

The expert knows the task's static model and sees what any policy sees in ``obs_mode="state"``; all that moves
is in an observation. So it works on another machine than the simulator, and costs the simulator nothing.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mode_envs.contract import ENVIRONMENT_STATE, STATE, ObservationDict
from mode_envs.libero import JOINTS
from mode_envs.libero_simulator import build, release
from mode_envs.libero_skills.poses import Pose
from mode_envs.libero_tasks import LIBERO_SUITES

WORLD, ROBOT = "world", "robot"
Predicate = Sequence[str]
"""Such as ``["in", "milk_1", "basket_1_contain_region"]``."""


@dataclass(frozen=True)
class Boxes:
    """Boxes around what can be touched of a body, N of them.

    Attributes:
        center: ``(N, 3)``, m, in the world.
        rotation: ``(N, 3, 3)``; its columns are the boxes' axes.
        half: ``(N, 3)``, half of the sides, m.
    """

    center: np.ndarray
    rotation: np.ndarray
    half: np.ndarray

    def corners(self) -> np.ndarray:
        """Return all corners, ``(8 N, 3)``."""
        signs = np.array(np.meshgrid([-1, 1], [-1, 1], [-1, 1])).reshape(3, 8).T
        local = signs[None] * self.half[:, None]
        return (self.center[:, None] + np.einsum("nij,nkj->nki", self.rotation, local)).reshape(-1, 3)


class Scene:
    """The scene of a task.

    Args:
        suite: Key in `LIBERO_SUITES`.
        task: LIBERO's name of the task.

    Attributes:
        model: MuJoCo's model. It is shared; `update` writes into it where furniture stands.
        data: What `update` rebuilt: positions, no velocities.
        owner: Geometry → what it belongs to: a name of LIBERO's, `ROBOT` or `WORLD`.
        touchable: Geometry → whether it collides with anything, bool ``(ngeom,)``.
        version: How often it was updated.
        goal: Predicates that solve the task.
        objects: Names of what can be carried.
    """

    def __init__(self, suite: str, task: str) -> None:
        self._suite = LIBERO_SUITES[suite]
        self._problem, shared = build(self._suite.folder, task)
        weakref.finalize(self, release, shared)
        sim = self._problem.sim
        self.model, self.data = sim.model._model, sim.data._data
        self.goal: list[list[str]] = [list(p) for p in self._problem.parsed_problem["goal_state"]]
        self.objects = frozenset(self._problem.objects_dict)
        self.touchable = (self.model.geom_contype | self.model.geom_conaffinity) > 0
        robot = self._problem.robots[0]
        self.arm_addresses = np.array(robot._ref_joint_pos_indexes)
        self.finger_addresses = np.array(robot._ref_gripper_joint_pos_indexes)
        self.hand_site = int(robot.eef_site_id)
        self._bodies = self._problem.obj_body_id
        self._addresses = {
            n: sim.model.get_joint_qpos_addr(o.joints[-1])[0] for n, o in self._problem.objects_dict.items()
        }
        known = set(sim.model.joint_names)
        self._joint_addresses = [
            sim.model.get_joint_qpos_addr(j) if j in known else None for j in self._suite.joints
        ]
        self.version = 0
        self._geoms: dict[str, np.ndarray] = {}
        self._owner_of_body = self._owners()
        self.owner = np.array([self._owner_of_body[b] for b in self.model.geom_bodyid])

    def update(self, observation: ObservationDict) -> None:
        """Rebuild the scene as an observation describes it."""
        import mujoco

        qpos = self.data.qpos
        qpos[self.arm_addresses] = observation[JOINTS]
        qpos[self.finger_addresses] = observation[STATE][6:8]
        bodies = self._suite.bodies
        poses = observation[ENVIRONMENT_STATE][: 7 * len(bodies)].reshape(-1, 7)
        for name, pose in zip(bodies, poses, strict=True):
            if name in self._addresses:
                qpos[self._addresses[name] : self._addresses[name] + 7] = pose
            elif name in self._bodies:
                self.model.body_pos[self._bodies[name]] = pose[:3]
                self.model.body_quat[self._bodies[name]] = pose[3:]
        values = observation[ENVIRONMENT_STATE][7 * len(bodies) :]
        for address, value in zip(self._joint_addresses, values, strict=True):
            if address is not None:
                qpos[address] = value
        mujoco.mj_kinematics(self.model, self.data)
        self.version += 1

    @property
    def hand(self) -> Pose:
        """The hand: the point between its fingertips; they close along x, and z points away from the palm."""
        return self.site(self.hand_site)

    @property
    def opening(self) -> float:
        """Distance between the fingers, m."""
        return float(np.abs(self.data.qpos[self.finger_addresses]).sum())

    def site(self, site: int) -> Pose:
        """Return the pose of a site."""
        return Pose(self.data.site_xpos[site].copy(), self.data.site_xmat[site].reshape(3, 3).copy())

    def pose(self, name: str) -> Pose:
        """Return the pose of an object or a piece of furniture."""
        body = self._bodies[name]
        return Pose(self.data.xpos[body].copy(), self.data.xmat[body].reshape(3, 3).copy())

    def geoms(self, name: str) -> np.ndarray:
        """Return the ids of the touchable geometries of an object or a piece of furniture."""
        if name not in self._geoms:
            self._geoms[name] = np.flatnonzero((self.owner == name) & self.touchable)
        return self._geoms[name]

    def boxes(self, geoms: np.ndarray) -> Boxes:
        """Return the boxes around geometries."""
        rotation = self.data.geom_xmat[geoms].reshape(-1, 3, 3)
        local, half = self.model.geom_aabb[geoms, :3], self.model.geom_aabb[geoms, 3:]
        return Boxes(self.data.geom_xpos[geoms] + np.einsum("nij,nj->ni", rotation, local), rotation, half)

    def holds(self, predicate: Predicate) -> bool:
        """Return whether a predicate is true now."""
        import mujoco

        mujoco.mj_fwdPosition(self.model, self.data)
        return bool(self._problem._eval_predicate(list(predicate)))

    def would_hold(self, predicate: Predicate, name: str, pose: Pose) -> bool:
        """Return whether a predicate would be true with an object at a pose."""
        import mujoco

        address = self._addresses[name]
        before = self.data.qpos[address : address + 7].copy()
        quaternion = np.zeros(4)
        mujoco.mju_mat2Quat(quaternion, pose.rotation.ravel())
        self.data.qpos[address : address + 7] = [*pose.position, *quaternion]
        answer = self.holds(predicate)
        self.data.qpos[address : address + 7] = before
        mujoco.mj_kinematics(self.model, self.data)
        return answer

    def with_joint(self, predicate: Predicate, joint: int, value: float) -> bool:
        """Return whether a predicate would be true with a joint at a value (m or rad)."""
        import mujoco

        address = self.model.jnt_qposadr[joint]
        before = float(self.data.qpos[address])
        self.data.qpos[address] = value
        answer = self.holds(predicate)
        self.data.qpos[address] = before
        mujoco.mj_kinematics(self.model, self.data)
        return answer

    def region(self, name: str) -> tuple[int, np.ndarray] | None:
        """Return site id and half sizes of a region, or None if the name is an object's."""
        if name not in self._problem.object_sites_dict:
            return None
        size = np.asarray(self._problem.object_sites_dict[name].size, dtype=np.float64)
        return self._problem.sim.model.site_name2id(name), size

    def joints(self, name: str) -> list[int]:
        """Return the joints that open, close or turn a region or a piece of furniture."""
        regions = self._problem.object_sites_dict
        holder: Any = regions[name] if name in regions else self._problem.get_object(name)
        return (
            [self._problem.sim.model.joint_name2id(j) for j in (holder.joints or ())]
            if name not in self.objects
            else []
        )

    def owner_of_region(self, name: str) -> str:
        """Return what a region is part of, or the name itself."""
        regions = self._problem.object_sites_dict
        return str(regions[name].parent_name or WORLD) if name in regions else name

    def joint_value(self, joint: int) -> float:
        """Return where a joint is (m or rad)."""
        return float(self.data.qpos[self.model.jnt_qposadr[joint]])

    def joint_geoms(self, joint: int) -> np.ndarray:
        """Return the touchable geometries that a joint moves."""
        moved = np.zeros(self.model.nbody, bool)
        for body in range(self.model.nbody):
            parent = self.model.body_parentid[body]
            moved[body] = body == self.model.jnt_bodyid[joint] or (body > 0 and moved[parent])
        return np.flatnonzero(moved[self.model.geom_bodyid] & self.touchable)

    def _owners(self) -> list[str]:
        names = {body: name for name, body in self._bodies.items()}
        owners: list[str] = []
        for body in range(self.model.nbody):
            inherited = owners[self.model.body_parentid[body]] if body else WORLD
            text = self._problem.sim.model.body_id2name(body)
            robot = text.startswith(("robot0", "gripper0", "mount0"))
            owners.append(names.get(body, ROBOT if robot else inherited))
        return owners
