"""From messages that arrive when they like to steps of a fixed rate.

Legend: n messages, T steps, D dimensions. Times are seconds, increasing.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from mode_policy.errors import DataError


def grid(stamps: Mapping[str, np.ndarray], rate: float) -> np.ndarray:
    """Return the times of the steps: from when the last topic has begun to when the first has ended,
    ``(T,)``.

    Args:
        stamps: Topic → times of its messages ``(n,)``.
        rate: Steps per second.

    Raises:
        DataError: if a topic has no messages, or topics do not overlap in time.
    """
    for topic, times in stamps.items():
        if not len(times):
            raise DataError(f"topic {topic!r} has no messages")
    first = max(times[0] for times in stamps.values())
    last = min(times[-1] for times in stamps.values())
    if last < first:
        late = max(stamps, key=lambda topic: float(stamps[topic][0]))
        early = min(stamps, key=lambda topic: float(stamps[topic][-1]))
        raise DataError(f"{early!r} ends {first - last:.2f} s before {late!r} begins, so no step has both")
    # A last step that falls on the last message counts, in spite of rounding.
    return np.asarray(first + np.arange(int((last - first) * rate + 1e-6) + 1) / rate)


def nearest(times: np.ndarray, steps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the message nearest to each step, int ``(T,)``, and its distance in seconds ``(T,)``.

    Of two that are equally near, the earlier one.
    """
    after = np.clip(np.searchsorted(times, steps), 1, max(1, len(times) - 1))
    before = after - 1
    after = np.minimum(after, len(times) - 1)
    chosen = np.where(np.abs(times[after] - steps) < np.abs(times[before] - steps), after, before)
    return chosen, np.abs(times[chosen] - steps)


def interpolate(times: np.ndarray, values: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Interpolate values ``(n, D)`` linearly at the steps, ``(T, D)``; outside, the end values count."""
    return np.stack([np.interp(steps, times, column) for column in values.T], axis=1)


def check_gaps(topic: str, steps: np.ndarray, distance: np.ndarray, tolerance: float) -> None:
    """Refuse steps for which no message is near enough.

    Args:
        topic: What messages call the messages.
        steps: Times of the steps ``(T,)``.
        distance: From each step to its nearest message ``(T,)``.
        tolerance: The farthest allowed, in seconds.

    Raises:
        DataError: saying how many gaps there are, where the longest is and how long.
    """
    # Times of a long recording are only good to a fraction of a microsecond.
    missing = distance > tolerance + 1e-6
    if not missing.any():
        return
    edges = np.flatnonzero(np.diff(np.concatenate([[0], missing.astype(int), [0]])))
    starts, ends = edges[::2], edges[1::2]
    longest = int(np.argmax(ends - starts))
    start, end = int(starts[longest]), int(ends[longest])
    raise DataError(
        f"topic {topic!r} has {len(starts)} gaps ({int(missing.sum())} of {len(steps)} steps have no message "
        f"within {tolerance:g} s); the longest is {end - start} steps long and begins "
        f"{steps[start] - steps[0]:.2f} s after the start, where the nearest message is "
        f"{distance[start:end].max():.3f} s away. Allow more with --tolerance"
    )
