"""Observations that must not be acted upon."""

import numpy as np
import pytest

from mode_policy.deploy.config import SafetyConfig
from mode_policy.deploy.guard import ObservationGuard, Seen
from mode_policy.deploy.interventions import NONE, Intervention

STATE, TOP, WRIST = "observation.state", "observation.images.top", "observation.images.wrist"
SHAPES = {STATE: (3,), TOP: (4, 6, 3)}


def good(value=0.0):
    return {STATE: np.full(3, value, np.float32), TOP: np.full((4, 6, 3), int(value * 10) % 255, np.uint8)}


def check(arrays, *, captured=10.0, now=10.01, seen=None, moving=True, **safety):
    guard = ObservationGuard(SHAPES, SafetyConfig(**safety))
    return guard.check(seen or Seen(), arrays, captured, now, moving)


def test_a_good_observation_passes():
    assert check(good())[:2] == (NONE, ())


@pytest.mark.parametrize(
    ("change", "flag", "words"),
    [
        ({TOP: None}, Intervention.OBSERVATION_MISSING, "observation.images.top is missing"),
        (
            {STATE: np.array([0, np.nan, 0], np.float32)},
            Intervention.OBSERVATION_INVALID,
            "observation.state is not finite",
        ),
        ({STATE: np.zeros(2)}, Intervention.OBSERVATION_INVALID, r"has shape (2,) instead of (3,)"),
        ({TOP: np.zeros((6, 4, 3), np.uint8)}, Intervention.OBSERVATION_INVALID, "has shape (6, 4, 3)"),
    ],
)
def test_what_is_wrong_is_named(change, flag, words):
    arrays = {k: v for k, v in (good() | change).items() if v is not None}
    opinion = check(arrays)
    assert opinion.interventions == flag
    assert words in opinion.problems[0]


def test_old_observations_are_stale():
    assert not check(good(), captured=10.0, now=10.49).interventions
    opinion = check(good(), captured=10.0, now=10.6)
    assert opinion.interventions == Intervention.OBSERVATION_STALE
    assert opinion.problems == ("the observation is 0.60 s old",)


def test_an_observation_from_the_future_has_another_clock():
    assert not check(good(), captured=10.02, now=10.0).interventions, "clocks are read one after the other"
    opinion = check(good(), captured=1.7e9, now=10.0)
    assert opinion.interventions == Intervention.OBSERVATION_INVALID
    assert "is it another clock's?" in opinion.problems[0]


def stream(values, moving=True, dt=0.1, **safety):
    """Return the flags for a stream of observations, each a number that state and picture are made of."""
    guard, seen, flags = ObservationGuard(SHAPES, SafetyConfig(**safety)), Seen(), []
    for i, (state, picture) in enumerate(values):
        now = i * dt
        arrays = {STATE: good(state)[STATE], TOP: good(picture)[TOP]}
        opinion = guard.check(seen, arrays, now, now, moving)
        seen = opinion.seen
        flags.append(bool(opinion.interventions & Intervention.OBSERVATION_FROZEN))
    return flags


def test_a_frozen_camera_is_noticed_and_forgiven():
    values = [(i, min(i, 3)) for i in range(10)] + [(10 + i, 10 + i) for i in range(3)]
    flags = stream(values, images_frozen_after=0.35)
    assert flags == [False] * 7 + [True] * 3 + [False] * 3


def test_a_frozen_state_counts_only_in_motion():
    values = [(0, i) for i in range(10)]
    assert any(stream(values, moving=True, states_frozen_after=0.35))
    assert not any(stream(values, moving=False, states_frozen_after=0.35))


def test_equal_pictures_are_allowed_by_default():
    assert not any(stream([(0, 0)] * 20))


def test_features_that_the_policy_does_not_read_are_ignored():
    assert not check(good() | {WRIST: np.zeros(1)}).interventions
