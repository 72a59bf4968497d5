"""Limits of motion hold for every stream of commands, and streams that keep them pass unchanged."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mode_policy.deploy.motion import Motion, MotionLimits, limit, stop_plan
from mode_policy.errors import ConfigError

RATE = 50.0


def limits(v=1.0, a=5.0, j=60.0, dims=1):
    return MotionLimits.per_second(RATE, np.full(dims, v), np.full(dims, a), np.full(dims, j))


def follow(wishes, bounds, low=-np.inf, high=np.inf, start=0.0, overshoot=False):
    """Return start and commands ``(T + 3, D)``; the robot stood still before."""
    wishes = np.asarray(wishes, float)
    dims = wishes.shape[1]
    motion = Motion.at_rest(np.full(dims, start))
    positions = [motion.position] * 3
    for wish in wishes:
        motion = limit(motion, wish, bounds, np.full(dims, low), np.full(dims, high), overshoot=overshoot)
        positions.append(motion.position)
    return np.array(positions)


def worst(positions, order):
    return np.abs(np.diff(positions, order, axis=0)).max() * RATE**order


wish = st.floats(-100, 100) | st.sampled_from([-1.0, 0.0, 1.0])


@settings(max_examples=60, deadline=None)
@given(
    wishes=st.lists(st.tuples(wish, wish), min_size=1, max_size=80),
    v=st.floats(0.1, 10),
    a=st.floats(0.5, 100),
    j=st.floats(5, 5000),
    start=st.floats(-2, 2),
    overshoot=st.booleans(),
)
def test_no_stream_breaks_a_limit(wishes, v, a, j, start, overshoot):
    positions = follow(wishes, limits(v, a, j, dims=2), -1.5, 1.5, start, overshoot)
    assert worst(positions, 1) <= v * (1 + 1e-9)
    assert worst(positions, 2) <= a * (1 + 1e-7)
    assert worst(positions, 3) <= j * (1 + 1e-5)  # third differences amplify rounding by the cube of the rate
    assert positions.min() >= min(-1.5, start) - 1e-8
    assert positions.max() <= max(1.5, start) + 1e-8


@settings(max_examples=200, deadline=None)
@given(v=st.floats(-1, 1), a=st.floats(-1, 1))
def test_a_stop_plan_ends_at_rest_within_the_limits(v, a):
    bounds = limits(1.0, 3.0, 40.0)
    velocity, acceleration = v * bounds.velocity, a * bounds.acceleration
    plan = stop_plan(velocity, acceleration, bounds)
    assert abs((velocity + plan.sum(0)).item()) < 1e-12
    steps = np.concatenate([acceleration[None], plan, np.zeros((1, 1))])
    assert np.abs(steps).max() <= bounds.acceleration * (1 + 1e-9)
    assert np.abs(np.diff(steps, axis=0)).max(initial=0) <= bounds.jerk * (1 + 1e-9)


def smooth(ticks, size=0.3, seconds=4.0):
    """A motion whose first three derivatives begin and end at zero."""
    s = np.minimum(np.arange(1, ticks + 1) / RATE / seconds, 1)
    return (size * (35 * s**4 - 84 * s**5 + 70 * s**6 - 20 * s**7))[:, None]


def test_a_stream_within_the_limits_passes_unchanged_and_without_lag():
    wishes = smooth(300)
    np.testing.assert_array_equal(follow(wishes, limits())[3:], wishes)


def test_a_jump_is_caught_up_with_without_overshooting():
    wishes = np.zeros((200, 1))
    wishes[10:] = 0.7
    positions = follow(wishes, limits())[3:]
    assert positions.max() <= 0.7 + limits().jerk.item(), "at most what one tick can change"
    assert positions[-1, 0] == pytest.approx(0.7, abs=1e-6)
    # The fastest possible takes 0.7/v + v/a + a/j = 0.98 s.
    assert np.argmax(positions[:, 0] > 0.69) - 10 < 1.25 * RATE


def test_after_a_jump_a_moving_stream_is_met_again():
    t = np.arange(400)
    wishes = smooth(400, size=0.5, seconds=8.0) + np.where(t > 100, 0.2, 0)[:, None]
    error = np.abs(follow(wishes, limits())[3:] - wishes).max(1)
    assert error[100] < 1e-9
    assert error[105] > 0.1
    assert error[250:].max() < 1e-3


def test_it_brakes_before_a_bound():
    positions = follow(np.full((100, 1), 50.0), limits(), high=0.5)[3:]
    assert positions.max() <= 0.5 + 1e-8
    assert positions[-1, 0] > 0.45
    assert positions[-1, 0] == positions[-2, 0]


def test_outside_of_the_bounds_only_inwards():
    outwards = follow(np.full((20, 1), 5.0), limits(), high=1.0, start=2.0)
    assert outwards.max() == 2.0
    inwards = follow(np.full((200, 1), 0.0), limits(), high=1.0, start=2.0)
    assert inwards.max() == 2.0
    assert abs(inwards[-1, 0]) < 1e-6


def test_without_jerk_and_acceleration_only_velocity_is_limited():
    bounds = MotionLimits.per_second(RATE, np.ones(1))
    positions = follow(np.array([[5.0]] * 10 + [[-5.0]] * 10), bounds)
    steps = np.diff(positions[2:], axis=0) * RATE
    np.testing.assert_allclose(steps[:10], 1, rtol=1e-5)
    np.testing.assert_allclose(steps[10:], -1, rtol=1e-5)


def test_limits_that_could_never_stop_are_refused():
    with pytest.raises(ConfigError, match="raise acceleration or jerk"):
        MotionLimits.per_second(100.0, np.ones(1), np.full(1, 1e-3), np.full(1, 1e-3))
