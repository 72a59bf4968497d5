"""Following a path with the hand by bounded, smooth actions."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field

import numpy as np

from mode_envs.libero_skills.arm import Arm
from mode_envs.libero_skills.clearance import Clearance
from mode_envs.libero_skills.poses import Pose, between, rotation_vector
from mode_envs.libero_skills.scene import Scene

Actions = Generator[np.ndarray, None, bool]
"""Yields actions ``(7,)``; after each the scene is up to date. Returns whether it succeeded."""

OPEN, CLOSED = -1.0, 1.0
METRES, RADIANS = 0.05, 0.5  # of an action of 1
RATE = 20.0  # actions a second
_GAIN = 2.0  # of the position's error that an action asks for; the controller is critically damped at 1
_TURN_GAIN = 1.2
_TURN_LIMIT = 0.5  # of the action
_SLEW = 0.25  # largest change of an action's motion from one step to the next
_LEAD = 0.05  # m that the reference may be ahead of the hand
_TURN_LEAD = 0.4  # rad


@dataclass
class Context:
    """What skills share: the scene, what can be asked about it, chance, the last action, what failed.

    Attributes:
        scene: The scene.
        clearance: Of the scene.
        arm: Of the scene.
        rng: What varies from episode to episode.
        pace: How fast it is done; 1 is the usual.
        last: Motion of the last action, ``(6,)``.
        events: What went wrong.
        steps: Actions so far.
        failed_grasps: Poses of the hand in the frames of objects that could not be held so.
    """

    scene: Scene
    clearance: Clearance
    arm: Arm
    rng: np.random.Generator
    pace: float = 1.0
    last: np.ndarray = field(default_factory=lambda: np.zeros(6))
    events: list[str] = field(default_factory=list)
    steps: int = 0
    failed_grasps: dict[str, list[Pose]] = field(default_factory=dict)

    def failed(self, why: str) -> bool:
        """Note why a skill gives up, and return False."""
        self.events.append(why)
        return False

    def towards(self, target: Pose, grip: float) -> np.ndarray:
        """Return the action that takes the hand towards a pose, float32 ``(7,)`` in [-1, 1]."""
        self.steps += 1
        hand = self.scene.hand
        move = _GAIN * (target.position - hand.position) / METRES
        move *= min(1.0, 1.0 / max(float(np.abs(move).max()), 1e-9))
        turn = _TURN_GAIN * rotation_vector(target.rotation @ hand.rotation.T) / RADIANS
        turn *= min(1.0, _TURN_LIMIT / max(float(np.abs(turn).max()), 1e-9))
        wanted = np.concatenate([move, turn])
        change = wanted - self.last
        change *= min(1.0, _SLEW / max(float(np.abs(change).max()), 1e-9))
        self.last = np.clip(self.last + change, -1.0, 1.0)
        return np.append(self.last, grip).astype(np.float32)


def follow(
    context: Context,
    path: Sequence[Pose],
    grip: float,
    speed: float = 0.22,
    tolerance: tuple[float, float] = (0.008, 0.08),
    patience: int = 20,
) -> Actions:
    """Take the hand along straight lines between poses.

    Args:
        context: The context.
        path: Where to go; the hand starts from where it is.
        grip: `OPEN` or `CLOSED`.
        speed: Of the reference, m/s.
        tolerance: Distance (m) and angle (rad) from the last pose at which it has arrived.
        patience: Steps to wait for that once the reference is there.
    """
    start = context.scene.hand
    for goal in path:
        shift = float(np.linalg.norm(goal.position - start.position))
        turn = float(np.linalg.norm(rotation_vector(goal.rotation @ start.rotation.T)))
        seconds = max(shift / speed, turn / (6.0 * speed), 1e-6) / context.pace
        fraction, stuck = 0.0, 0
        while fraction < 1.0 and stuck < patience:
            target = between(start, goal, fraction)
            hand = context.scene.hand
            lag = float(np.linalg.norm(target.position - hand.position))
            twist = float(np.linalg.norm(rotation_vector(target.rotation @ hand.rotation.T)))
            if lag < _LEAD and twist < _TURN_LEAD:
                fraction, stuck = min(1.0, fraction + 1.0 / (RATE * seconds)), 0
            else:
                stuck += 1
            yield context.towards(between(start, goal, fraction), grip)
        start = goal
    for _ in range(patience):
        if _arrived(context.scene.hand, start, tolerance):
            return True
        yield context.towards(start, grip)
    return _arrived(context.scene.hand, start, tolerance)


def hold(context: Context, pose: Pose, grip: float, steps: int) -> Actions:
    """Stay at a pose for some steps."""
    for _ in range(steps):
        yield context.towards(pose, grip)
    return True


def _arrived(hand: Pose, goal: Pose, tolerance: tuple[float, float]) -> bool:
    distance = float(np.linalg.norm(goal.position - hand.position))
    return distance < tolerance[0] and (
        float(np.linalg.norm(rotation_vector(goal.rotation @ hand.rotation.T))) < tolerance[1]
    )
