"""What a task is about, as numbers that mean the same in every suite."""

from __future__ import annotations

from typing import Any

import numpy as np

GOAL_STATE = "observation.goal_state"
GOAL_PREDICATES = 3
"""Most predicates that a task's goal has."""
GOAL_DIMS = 2 * 7 * GOAL_PREDICATES


class GoalPoses:
    """Poses of what the predicates of a goal name.

    Of ``["on", "bowl_1", "plate_1"]`` the bowl's and the plate's; of ``["turnon", "flat_stove_1"]`` that of
    the part that turns (or slides, or swings), and zeros.

    Args:
        problem: Robosuite's environment.
        goal: Its predicates.
    """

    def __init__(self, problem: Any, goal: list[list[str]]) -> None:
        self._sim, self._bodies = problem.sim, problem.obj_body_id
        self._frames = [
            [self._moving_part(problem, *names)] if len(names) == 1 else [self._frame(name) for name in names]
            for _, *names in goal
        ]

    def __call__(self) -> np.ndarray:
        """Return float64 ``(42,)``.

        For each predicate position (m) and quaternion (w, x, y, z) of the thing, then of the place; zeros
        after the last predicate.
        """
        poses = np.zeros((GOAL_PREDICATES, 2, 7))
        for rows, frames in zip(poses, self._frames, strict=False):
            for row, (body, site) in zip(rows, frames, strict=False):
                row[:] = self._pose(body, site)
        return poses.ravel()

    def _pose(self, body: int, site: int | None) -> np.ndarray:
        import mujoco

        data, model = self._sim.data._data, self._sim.model._model
        if site is None:
            return np.concatenate([data.xpos[body], data.xquat[body]])
        # Not from the site's matrix: a quaternion made of that may change its sign from step to step.
        quaternion = np.empty(4)
        mujoco.mju_mulQuat(quaternion, data.xquat[body], model.site_quat[site])
        return np.concatenate([data.site_xpos[site], quaternion])

    def _frame(self, name: str) -> tuple[int, int | None]:
        """Return the body of an object or a piece of furniture; of a region, its body and its site."""
        if name in self._bodies:
            return self._bodies[name], None
        site = self._sim.model.site_name2id(name)
        return int(self._sim.model.site_bodyid[site]), site

    def _moving_part(self, problem: Any, name: str) -> tuple[int, None]:
        """Return the body that opens, closes or turns."""
        regions = problem.object_sites_dict
        holder = regions[name] if name in regions else problem.get_object(name)
        return int(self._sim.model.jnt_bodyid[self._sim.model.joint_name2id(holder.joints[0])]), None
