"""Confidence intervals: how far a measured success rate or mean can be trusted."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from statistics import NormalDist
from typing import NamedTuple

import numpy as np


class Interval(NamedTuple):
    """A confidence interval, in the unit of what it bounds."""

    low: float
    high: float


def wilson(successes: int, trials: int, confidence: float = 0.95) -> Interval:
    """Return Wilson's score interval of a success rate, within [0, 1].

    Unlike the textbook interval rate ± z·√(rate(1-rate)/n) it keeps its coverage for few trials and for rates
    near 0 and 1, where evaluations of good policies live. Without trials nothing is known: (0, 1).

    Source: Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927).

    Raises:
        ValueError: unless 0 ≤ successes ≤ trials and 0 < confidence < 1.
    """
    if not 0 <= successes <= trials:
        raise ValueError(f"{successes} successes in {trials} trials; need 0 <= successes <= trials")
    z = NormalDist().inv_cdf(0.5 + _checked(confidence) / 2)
    if trials == 0:
        return Interval(0.0, 1.0)
    rate = successes / trials
    centre = rate + z * z / (2 * trials)
    half = z * sqrt(rate * (1 - rate) / trials + (z / (2 * trials)) ** 2)
    scale = 1 + z * z / trials
    # The formula gives exactly 0 and 1 at the borders; rounding would miss them by an ulp.
    return Interval(
        0.0 if successes == 0 else (centre - half) / scale,
        1.0 if successes == trials else (centre + half) / scale,
    )


def bootstrap_mean(
    values: Sequence[float], seed: int = 0, confidence: float = 0.95, resamples: int = 2000
) -> Interval:
    """Return the percentile bootstrap interval of the mean of ``values``; the same seed gives the same one.

    For quantities that are not yes or no, such as coverage. With a handful of values it is too narrow; one
    value gives an interval of width 0.

    Source: Efron, "Bootstrap methods: another look at the jackknife", Annals of Statistics 7 (1979).

    Raises:
        ValueError: without values, or unless 0 < confidence < 1.
    """
    sample = np.asarray(values, dtype=np.float64)
    if sample.size == 0:
        raise ValueError("the mean of no values has no interval")
    tail = (1 - _checked(confidence)) / 2
    rows = np.random.default_rng(seed).integers(sample.size, size=(resamples, sample.size))
    means = sample[rows].mean(axis=1).clip(sample.min(), sample.max())  # rounding may leave the range
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(float(low), float(high))


def _checked(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; it is a probability strictly between 0 and 1")
    return confidence
