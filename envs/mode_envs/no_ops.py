"""Steps of a demonstration in which nothing happens.

A policy that is trained on many of them learns to stand still. OpenVLA (Kim et al. 2024, arXiv 2406.09246)
leaves out steps whose motion is nearly zero and whose gripper command is that of the step before, and
executes the others. Here nothing may move, either: a hand that waits for its fingers to close does something.
"""

from __future__ import annotations

import numpy as np

_STILL = 1e-3  # m, rad or a share of the opening, by which the robot's state may change in a step


def no_ops(
    actions: np.ndarray, executed: np.ndarray, states: np.ndarray, scale: np.ndarray, below: float
) -> np.ndarray:
    """Return which steps are no-ops, bool ``(T,)``. The last one never is: what follows it is not known.

    Args:
        actions: The expert's, displacements and then the gripper's command, ``(T, A)``.
        executed: The same with their disturbance, ``(T, A)``.
        states: The robot's own, before each action, ``(T, D)``.
        scale: Half of the actions' range, ``(A,)``.
        below: Motion of a no-op, as a share of ``scale``.
    """
    small = np.abs(executed / scale)[:, :-1].max(axis=1) < below
    same_grip = np.append(True, actions[1:, -1] == actions[:-1, -1])
    still = np.append(np.abs(np.diff(states, axis=0)).max(axis=1) < _STILL, False)
    return small & same_grip & still
