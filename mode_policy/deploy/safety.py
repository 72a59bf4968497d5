"""The filter between policy and robot: nothing reaches a robot that has not passed `SafetyFilter.step`.

A pure function of the last state, the proposed action and the measured state: it returns the command that
may be sent, what was changed and why, and the next state. Where there is no valid proposal (none in time,
not finite, no trustworthy observation), it makes the configured safe motion of the last commands, and says
so.

Legend: A action dimensions; D of them move (all but grippers).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from mode_policy.deploy.bounds import bounds, check, vector
from mode_policy.deploy.config import ActionConfig, LateConfig, SafetyConfig
from mode_policy.deploy.interventions import NONE, Intervention
from mode_policy.deploy.motion import Motion, MotionLimits, limit, stop_plan
from mode_policy.errors import ConfigError


@dataclass(frozen=True)
class FilterState:
    """What the filter remembers from one tick to the next.

    Attributes:
        last: the last command ``(A,)``, or None before the first.
        valid: the last command that a policy's proposal led to.
        step: how far that one moved, ``(A,)``.
        late: ticks since.
        motion: of the moving dimensions, where their differences are limited.
        side: on which side of its threshold each gripper is, or None before the first command.
        asked: ticks for which each gripper has been asked for the other side.
    """

    last: np.ndarray | None = None
    valid: np.ndarray | None = None
    step: np.ndarray | None = None
    late: int = 0
    motion: Motion | None = None
    side: np.ndarray | None = None
    asked: np.ndarray | None = None

    def at_rest(self) -> FilterState:
        """Return the state of a robot that has had the time to stop where the last command led."""
        motion = None if self.motion is None else Motion.at_rest(self.motion.position)
        return replace(self, motion=motion, step=None if self.step is None else np.zeros_like(self.step))


class Verdict(NamedTuple):
    """``action`` ``(A,)`` may be sent; it is None only before the first valid proposal."""

    action: np.ndarray | None
    interventions: Intervention
    state: FilterState


class SafetyFilter:
    """Keeps commands inside the configured limits.

    Args:
        action: what the numbers of an action mean.
        safety: limits.
        late: what to do in ticks without a valid proposal.
        dim: A.
        rate: ticks per second.
        low: smallest action of the demonstrations ``(A,)``, or None where unknown.
        high: largest one.

    Raises:
        ConfigError: if a limit has another number of dimensions, or limits contradict each other.
    """

    def __init__(
        self,
        action: ActionConfig,
        safety: SafetyConfig,
        late: LateConfig,
        *,
        dim: int,
        rate: float,
        low: Sequence[float] | np.ndarray | None = None,
        high: Sequence[float] | np.ndarray | None = None,
    ) -> None:
        check(action, safety, late, dim)
        self.dim, self.late, self.is_delta = dim, late, action.kind == "delta"
        self.grip = np.array(sorted(action.gripper), int)
        self.move = np.array([i for i in range(dim) if i not in action.gripper], int)
        self.threshold, self.gripper_ticks = safety.gripper_threshold, safety.gripper_ticks
        self.fading_ticks = max(1, round(late.stop_seconds * rate))
        self.low, self.high = bounds(safety, dim, low, high)
        self.sensors = np.array(action.measured if action.measured is not None else [-1] * dim, int)
        self.scale = action.scale
        self.box_low, self.box_high = self._box(safety)
        if self.is_delta:  # standing still is always allowed
            self.low[self.move] = np.minimum(self.low[self.move], 0)
            self.high[self.move] = np.maximum(self.high[self.move], 0)
        else:
            self.low, self.high = np.maximum(self.low, self.box_low), np.minimum(self.high, self.box_high)
        if (self.low > self.high).any():
            raise ConfigError(f"the limits leave nothing: low {self.low}, high {self.high}")
        self.limits: MotionLimits | None = None
        # Where no jerk is configured, one follows from the acceleration; it is not what broke a limit.
        self.unnamed = NONE if safety.jerk is not None else Intervention.JERK
        self.unnamed |= NONE if safety.acceleration is not None else Intervention.ACCELERATION
        if safety.velocity is not None:
            velocity = vector("velocity", safety.velocity, dim)[self.move]
            higher = [("acceleration", safety.acceleration), ("jerk", safety.jerk)]
            others = [None if v is None else vector(n, v, dim)[self.move] for n, v in higher]
            self.limits = MotionLimits.per_second(rate, velocity, *others)

    def _box(self, safety: SafetyConfig) -> tuple[np.ndarray, np.ndarray]:
        """The workspace for each action dimension, infinite where nothing measures it."""
        low, high = np.full(self.dim, -np.inf), np.full(self.dim, np.inf)
        if safety.workspace_low is not None and safety.workspace_high is not None:
            measured = self.sensors >= 0
            if not len(safety.workspace_low) == len(safety.workspace_high) == measured.sum():
                raise ConfigError(
                    f"workspace_low={safety.workspace_low} and workspace_high={safety.workspace_high} need "
                    f"one number for each of the {measured.sum()} dimensions that action.measured names"
                )
            low[measured], high[measured] = safety.workspace_low, safety.workspace_high
        return low, high

    def measure(self, state: np.ndarray | None) -> np.ndarray:
        """Return what the robot's state says about each action dimension; NaN where nothing measures it."""
        if state is None:
            return np.full(self.dim, np.nan)
        return np.where(self.sensors >= 0, np.asarray(state, np.float64)[self.sensors], np.nan)

    def step(
        self,
        state: FilterState,
        proposal: np.ndarray | None,
        robot_state: np.ndarray | None = None,
        reason: Intervention = NONE,
    ) -> Verdict:
        """Return what may be sent.

        Args:
            state: of the last tick.
            proposal: what the policy wants, or None.
            robot_state: ``observation.state`` of this tick, or None if it cannot be trusted.
            reason: why there is no proposal; "late" by default.
        """
        flags = reason
        if proposal is not None:
            proposal = np.asarray(proposal, np.float64)
            if proposal.shape != (self.dim,) or not np.isfinite(proposal).all():
                flags, proposal = flags | Intervention.ACTION_INVALID, None
        valid = proposal is not None
        if not valid:
            flags = flags or Intervention.LATE
            proposal = self._fallback(state)
            if proposal is None:
                return Verdict(None, flags, replace(state, late=state.late + 1))
        assert proposal is not None
        command = np.clip(proposal, self.low, self.high)
        if valid and (command != proposal).any():
            outside = (proposal < self.box_low) | (proposal > self.box_high)
            flags |= Intervention.WORKSPACE if not self.is_delta and outside.any() else Intervention.BOUNDS
        command, side, asked, debounced = self._debounce(state, command)
        flags |= debounced
        command, motion, limited = self._limit(state, command, self.measure(robot_state))
        flags |= limited if valid else limited & Intervention.WORKSPACE
        if not np.isfinite(command).all():  # cannot be, and must not be sent if it is
            return Verdict(None, flags | Intervention.ACTION_INVALID, replace(state, late=state.late + 1))
        new = FilterState(
            last=command,
            valid=command if valid else state.valid,
            step=(command - (state.last if state.last is not None else command)) if valid else state.step,
            late=0 if valid else state.late + 1,
            motion=motion,
            side=side,
            asked=asked,
        )
        return Verdict(command, flags, new)

    def _fallback(self, state: FilterState) -> np.ndarray | None:
        """The command for a tick without a valid proposal."""
        if state.last is None or state.valid is None or state.step is None:
            return None
        command = state.last.copy()
        fading = max(0.0, 1 - (state.late + 1) / self.fading_ticks)
        if self.late.behaviour == "safe_pose":
            command[self.move] = np.asarray(self.late.pose)[self.move]
        elif self.late.behaviour == "hold":
            command[self.move] = 0.0 if self.is_delta else command[self.move]
        elif self.is_delta:
            command[self.move] = state.valid[self.move] * fading
        else:
            command[self.move] += state.step[self.move] * fading
        return command

    def _debounce(
        self, state: FilterState, command: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, Intervention]:
        """Let a gripper change sides only after it was asked to for some ticks in a row."""
        wanted = command[self.grip] > self.threshold
        if state.side is None or state.asked is None or state.last is None:
            return command, wanted, np.zeros(len(self.grip), int), NONE
        asked = np.where(wanted == state.side, 0, state.asked + 1)
        refused = (asked > 0) & (asked < self.gripper_ticks)
        if not refused.any():
            return command, wanted, np.where(asked >= self.gripper_ticks, 0, asked), NONE
        command = command.copy()
        command[self.grip] = np.where(refused, state.last[self.grip], command[self.grip])
        return command, np.where(refused, state.side, wanted), asked, Intervention.GRIPPER

    def _limit(
        self, state: FilterState, command: np.ndarray, measured: np.ndarray
    ) -> tuple[np.ndarray, Motion | None, Intervention]:
        """Keep the moving dimensions inside the workspace and their differences inside the limits."""
        wish, command, flags = command[self.move], command.copy(), NONE
        if self.is_delta:
            low, high = self._reach(measured)
            inside = np.clip(wish, low, high)
            flags |= Intervention.WORKSPACE if (inside != wish).any() else NONE
        else:
            low, high, inside = self.low[self.move], self.high[self.move], wish
        if self.limits is None:
            command[self.move] = inside
            return command, None, flags
        zero = np.zeros(len(wish))
        if state.motion is None:
            start = np.where(np.isfinite(measured[self.move]), measured[self.move], inside)
            motion = Motion.at_rest(zero if self.is_delta else start)
        else:
            motion = replace(state.motion, position=zero, wish=zero) if self.is_delta else state.motion
        after = limit(motion, inside, self.limits, low, high, overshoot=self.is_delta)
        flags |= _why(motion, inside, after, self.limits) & ~self.unnamed
        if self.is_delta:  # the box moves with what is measured, so a plan may no longer fit: the box decides
            sent = np.clip(after.velocity, low, high)
            if (sent != after.velocity).any():
                flags |= Intervention.WORKSPACE
                a = np.clip(sent - motion.velocity, -self.limits.acceleration, self.limits.acceleration)
                after = Motion(sent, sent, a, stop_plan(sent, a, self.limits), sent)
        command[self.move] = after.velocity if self.is_delta else after.position
        return command, after, flags

    def _reach(self, measured: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """How far a delta may go in each direction: within bounds and box, and always zero."""
        low, high = self.low[self.move], self.high[self.move]
        box_low, box_high, here = (x[self.move] for x in (self.box_low, self.box_high, measured))
        boxed = np.isfinite(box_low) | np.isfinite(box_high)
        unknown = boxed & ~np.isfinite(here)  # without a measurement nothing may move
        here = np.where(np.isfinite(here), here, 0.0)
        down = np.where(boxed, np.minimum((box_low - here) / self.scale, 0), low)
        up = np.where(boxed, np.maximum((box_high - here) / self.scale, 0), high)
        down, up = np.where(unknown, 0.0, down), np.where(unknown, 0.0, up)
        return np.maximum(low, down), np.minimum(high, up)


def _why(motion: Motion, wish: np.ndarray, after: Motion, limits: MotionLimits) -> Intervention:
    """Name the limits that a wish breaks, if the motion after it is another one."""
    if np.allclose(after.position, wish, rtol=0, atol=1e-9):
        return NONE
    v = wish - motion.position
    a = v - motion.velocity
    flags = NONE
    flags |= Intervention.VELOCITY if (np.abs(v) > limits.velocity).any() else NONE
    flags |= Intervention.ACCELERATION if (np.abs(a) > limits.acceleration).any() else NONE
    flags |= Intervention.JERK if (np.abs(a - motion.acceleration) > limits.jerk).any() else NONE
    return flags or Intervention.BRAKING
