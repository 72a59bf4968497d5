"""Limits of velocity, acceleration and jerk on a stream of commands that is not known in advance.

Commands are limited as the robot receives them: by their first, second and third differences. One question
decides whether a command may be sent: could the robot still stop after it without breaking a limit? So with
every command a *stop plan* is kept: accelerations that end at rest, inside all limits, beginning with the
next tick. A command is accepted if a stop plan exists from where it leads; otherwise the command closest to
it that has one is taken, and at worst the next step of the plan that is already there. By induction no
limit is ever broken, whatever a policy asks for. A stream that keeps the limits passes unchanged, without
lag.

A wish that cannot be reached in one tick is caught up with, without overshooting it if its present velocity
persists.

An online trajectory generator such as Ruckig limits the same quantities in continuous time, but it plans to
rest at each new target and so lags behind a stream that keeps the limits, and its open version bounds no
positions.

Everything is in units of one tick: velocity is the difference of two positions, and so on.
Legend: D dimensions, N ticks of a plan, F candidates.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mode_policy.errors import ConfigError

#: Limits are kept with this relative margin, so that rounding does not break them.
MARGIN = 1e-6
#: Fractions of the way from the fallback to the wish that are tried, besides the wish itself.
FRACTIONS = np.linspace(0.0, 1.0, 33)[1:-1]
#: Rounding that is allowed at a limit, relative to it, or to 1 + |position|.
SLACK = 1e-9
LONGEST_PLAN = 5000


@dataclass(frozen=True)
class MotionLimits:
    """Largest absolute first, second and third difference per tick, float64 ``(D,)`` each."""

    velocity: np.ndarray
    acceleration: np.ndarray
    jerk: np.ndarray

    @classmethod
    def per_second(
        cls,
        rate: float,
        velocity: np.ndarray,
        acceleration: np.ndarray | None = None,
        jerk: np.ndarray | None = None,
    ) -> MotionLimits:
        """Convert limits in units per second, second squared and cubed, for ``rate`` ticks per second.

        Without a limit of acceleration a tick may change the velocity from one extreme to the other; the
        same for jerk and acceleration.

        Raises:
            ConfigError: if stopping would take thousands of ticks, which no control loop means.
        """
        v = velocity / rate * (1 - MARGIN)
        a = 2 * v if acceleration is None else np.minimum(acceleration / rate**2 * (1 - MARGIN), 2 * v)
        j = 2 * a if jerk is None else np.minimum(jerk / rate**3 * (1 - MARGIN), 2 * a)
        ticks = float(np.max(a / j + 2 * np.maximum(np.sqrt(2 * v / j), 2 * v / a), initial=0))
        if ticks > LONGEST_PLAN:
            raise ConfigError(
                f"with these limits stopping takes about {ticks:.0f} ticks; raise acceleration or jerk"
            )
        return cls(v, a, j)


@dataclass(frozen=True)
class Motion:
    """Where the last command led.

    Attributes:
        position, velocity, acceleration: ``(D,)``, of the commands.
        plan: ``(N, D)``, accelerations that bring it to rest.
        wish: ``(D,)``, what was asked for.
    """

    position: np.ndarray
    velocity: np.ndarray
    acceleration: np.ndarray
    plan: np.ndarray
    wish: np.ndarray

    @classmethod
    def at_rest(cls, position: np.ndarray) -> Motion:
        """Return a motion that stands still."""
        position = np.asarray(position, np.float64)
        zero = np.zeros(len(position))
        return cls(position, zero, zero, np.zeros((0, len(position))), position)


def stop_plan(v: np.ndarray, a: np.ndarray, limits: MotionLimits) -> np.ndarray:
    """Return accelerations ``(N, *shape)`` that bring velocity ``v`` and acceleration ``a`` to zero.

    First the acceleration falls to zero as fast as the jerk allows; then a triangle of opposite
    acceleration takes away the velocity that is left, as short as its peak and its slope allow. Not the
    fastest stop, but one in closed form that ends exactly at rest.

    Args:
        v: velocities, any shape that broadcasts with the limits.
        a: accelerations of the same shape, within the limits.
        limits: what the plan keeps.
    """
    n = np.ceil(np.abs(a) / limits.jerk)  # ticks of the first part
    rest = v + a * np.maximum(n - 1, 0) / 2
    size = np.abs(rest)
    m = np.ceil(np.maximum(np.sqrt(size / limits.jerk), size / limits.acceleration))  # half the second part
    ticks = int(np.max(n + np.maximum(2 * m - 1, 0), initial=0))
    i = np.arange(1, ticks + 1).reshape(-1, *([1] * v.ndim))
    falling = a * (1 - i / np.maximum(n, 1))
    k = i - n
    triangle = -rest * np.maximum(np.minimum(k, 2 * m - k), 0) / np.maximum(m, 1) ** 2
    plan: np.ndarray = np.where(i <= n, falling, triangle)
    return plan


def limit(
    motion: Motion,
    wish: np.ndarray,
    limits: MotionLimits,
    low: np.ndarray,
    high: np.ndarray,
    *,
    overshoot: bool = False,
) -> Motion:
    """Return the motion after the command closest to ``wish`` that keeps all limits.

    Args:
        motion: before.
        wish: position ``(D,)`` that is asked for; finite.
        limits: of the differences.
        low: lower bounds of position ``(D,)``; a position that is already outside may only move inwards.
        high: upper bounds.
        overshoot: follow the wish in each tick as far as the limits allow, even if that leads beyond it
            later.
    """
    p, v, slack = motion.position, motion.velocity, SLACK * (1 + np.abs(motion.position))
    low, high = np.where(p < low - slack, p, low), np.where(p > high + slack, p, high)
    wish = np.clip(wish, low, high)
    change = wish - p - v
    least = np.maximum(-limits.acceleration, motion.acceleration - limits.jerk)
    most = np.minimum(limits.acceleration, motion.acceleration + limits.jerk)
    asked = np.clip(np.clip(change, -limits.velocity - v, limits.velocity - v), least, most)
    # What was met in the last tick is followed exactly, however it moves; else it is approached.
    follows = np.full(len(wish), True) if overshoot else np.abs(p - motion.wish) <= slack
    plan, fits = _stops(motion, asked[None], limits, low, high)
    if (fits[0] & follows & (asked == change)).all():
        return Motion(p + (v + asked), v + asked, asked, plan[:, 0], wish)
    # An exhausted plan leaves only rounding of the velocity, which is taken away.
    fallback = motion.plan[0] if len(motion.plan) else -v
    tried = np.concatenate([fallback + FRACTIONS[:, None] * (asked - fallback), asked[None]])
    plans, fits = _stops(motion, tried, limits, low, high)
    if not overshoot:
        fits &= _reaches(motion, tried, wish, limits) | (follows & (asked == change) & (tried == asked))
    best, dims = len(fits) - 1 - np.argmax(fits[::-1], axis=0), np.arange(len(wish))
    some = fits[best, dims]
    chosen = np.where(some, tried[best, dims], fallback)
    rest = motion.plan[1:]
    new = np.zeros((max(len(plans), len(rest)), len(wish)))
    new[: len(plans)] = np.where(some, plans[:, best, dims], 0.0)
    new[: len(rest)] = np.where(some, new[: len(rest)], rest)
    return Motion(p + (v + chosen), v + chosen, chosen, new, wish)


def _stops(
    motion: Motion, a_FD: np.ndarray, limits: MotionLimits, low: np.ndarray, high: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return stop plans ``(N, F, D)`` after accelerations, and whether command and plan keep the limits."""
    v_FD = motion.velocity + a_FD
    plan = stop_plan(v_FD, a_FD, limits)
    v_NFD = np.concatenate([v_FD[None], v_FD + np.cumsum(plan, axis=0)])
    p_NFD = motion.position + np.cumsum(v_NFD, axis=0)
    slack = SLACK * (1 + np.abs(motion.position))
    fits: np.ndarray = (
        (np.abs(v_NFD).max(0) <= limits.velocity * (1 + SLACK))
        & (p_NFD.min(0) >= low - slack)
        & (p_NFD.max(0) <= high + slack)
    )
    return plan, fits


def _reaches(motion: Motion, a_FD: np.ndarray, wish: np.ndarray, limits: MotionLimits) -> np.ndarray:
    """Whether the wish, moving on as it did, could be met from this side rather than overshot."""
    drift = np.clip(wish - motion.wish, -limits.velocity, limits.velocity)
    v_FD = motion.velocity + a_FD - drift  # as seen from the wish
    plan = stop_plan(v_FD, a_FD, limits)
    e_FD = motion.position + motion.velocity + a_FD - wish
    e_NFD = np.concatenate([e_FD[None], e_FD + np.cumsum(v_FD + np.cumsum(plan, axis=0), axis=0)])
    side = np.sign(wish - motion.position)
    beyond: np.ndarray = (side * e_NFD).max(0)
    return beyond <= limits.jerk / 2  # less than what one tick can change
