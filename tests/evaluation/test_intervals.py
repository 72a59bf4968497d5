from __future__ import annotations

from math import comb, sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mode_policy.evaluation import Interval, bootstrap_mean, wilson

Z = 1.959963984540054  # the normal's 97.5 % point


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        # Newcombe, "Two-sided confidence intervals for the single proportion" (1998), table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (10, 10, 10 / (10 + Z**2), 1.0),  # the formula in closed form at the borders
        (0, 10, 0.0, Z**2 / (10 + Z**2)),
        (95, 100, 0.8882, 0.9785),
    ],
)
def test_wilson_known_values(successes: int, trials: int, low: float, high: float) -> None:
    assert wilson(successes, trials) == pytest.approx((low, high), abs=5e-5)


@given(trials=st.integers(1, 5000), data=st.data(), confidence=st.floats(0.5, 0.999))
def test_wilson_is_where_the_score_test_rejects(trials: int, data: st.DataObject, confidence: float) -> None:
    """Wilson's ends p solve |rate - p| = z √(p(1-p)/n), which is how he defined them."""
    from statistics import NormalDist

    successes = data.draw(st.integers(0, trials))
    z, rate = NormalDist().inv_cdf(0.5 + confidence / 2), successes / trials
    low, high = wilson(successes, trials, confidence)
    assert 0 <= low <= rate <= high <= 1
    for end in (low, high):
        if end not in (0, 1):
            assert abs(rate - end) == pytest.approx(z * sqrt(end * (1 - end) / trials), rel=1e-6, abs=1e-9)


@given(trials=st.integers(1, 300), data=st.data())
def test_wilson_is_symmetric_and_monotone(trials: int, data: st.DataObject) -> None:
    successes = data.draw(st.integers(0, trials - 1))
    here, more, failures = (wilson(s, trials) for s in (successes, successes + 1, trials - successes))
    assert here.low < more.low
    assert here.high < more.high
    assert here == pytest.approx((1 - failures.high, 1 - failures.low))
    wider, narrower = wilson(successes, trials, 0.99), wilson(2 * successes, 2 * trials)
    assert wider.low <= here.low <= narrower.low
    assert narrower.high <= here.high <= wider.high


@pytest.mark.parametrize("trials", [10, 50, 200])
def test_wilson_covers_95_percent_on_average(trials: int) -> None:
    """Exact coverage from the binomial law, averaged over true rates; no simulation noise."""
    rates = np.linspace(0.005, 0.995, 199)
    coverage = np.zeros_like(rates)
    for successes in range(trials + 1):
        low, high = wilson(successes, trials)
        law = comb(trials, successes) * rates**successes * (1 - rates) ** (trials - successes)
        coverage += law * ((low <= rates) & (rates <= high))
    assert coverage.mean() == pytest.approx(0.95, abs=0.01)
    assert coverage.min() > 0.82  # the known dip close to 0 and 1; the textbook interval falls to 0.05


def test_wilson_borders_are_exact() -> None:
    assert wilson(0, 0) == Interval(0.0, 1.0)
    for trials in range(1, 100):
        assert wilson(0, trials).low == 0.0
        assert wilson(trials, trials).high == 1.0


@pytest.mark.parametrize(("successes", "trials"), [(-1, 3), (4, 3), (0, -1)])
def test_wilson_refuses_impossible_counts(successes: int, trials: int) -> None:
    with pytest.raises(ValueError, match=f"{successes} successes in {trials} trials"):
        wilson(successes, trials)


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95])
def test_confidence_is_a_probability(confidence: float) -> None:
    with pytest.raises(ValueError, match="strictly between 0 and 1"):
        wilson(1, 2, confidence)
    with pytest.raises(ValueError, match="strictly between 0 and 1"):
        bootstrap_mean([1.0], confidence=confidence)


def test_bootstrap_matches_the_normal_interval_of_many_values() -> None:
    values = np.random.default_rng(1).uniform(size=400)
    half = Z * values.std() / sqrt(values.size)
    low, high = bootstrap_mean(values.tolist(), resamples=20_000)
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.05 * half)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40), st.integers(0, 100))
def test_bootstrap_is_deterministic_ordered_and_in_range(values: list[float], seed: int) -> None:
    low, high = bootstrap_mean(values, seed, resamples=50)
    assert (low, high) == bootstrap_mean(values, seed, resamples=50)
    assert min(values) <= low <= high <= max(values)


def test_bootstrap_needs_values() -> None:
    with pytest.raises(ValueError, match="no values"):
        bootstrap_mean([])
