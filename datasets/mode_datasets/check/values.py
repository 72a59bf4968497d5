"""Checks of the numbers of vectors: not finite, constant, far off, at their bounds, stuck.

Legend: T steps of all episodes, D dimensions of a feature.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mode_datasets.check.contents import CONSTANT, SWITCH_VALUES, Contents, runs, spread
from mode_datasets.check.findings import Finding, plural, shortened
from mode_policy.types import ACTION, feature_kind

#: A value is an outlier beyond the 1 % and 99 % quantiles by this many of the ranges between them. Above this
#: share of steps, they are the rare motions of a dimension that rests most of the time.
OUTLIER_RANGES, OUTLIER_SHARE = 3.0, 0.002

#: Share of steps at a dimension's bounds that is worth a note, and a warning.
SATURATION_NOTE, SATURATION_WARNING = 0.1, 0.5

#: A state that repeats exactly this long, in seconds and in steps, while the actions move this share of their
#: range, is stuck; unless it repeats in so many of all steps, as the pose of an object that nobody touches.
STUCK_SECONDS, STUCK_STEPS, STUCK_TRAVEL, RESTING_SHARE = 1.0, 10, 0.2, 0.2


def not_finite(contents: Contents) -> Iterator[Finding]:
    """Find NaN and infinite values."""
    for key, x in contents.vectors.items():
        bad = np.flatnonzero(~np.isfinite(x).all(1) & contents.readable[key])
        if not len(bad):
            continue
        first, dim = int(bad[0]), int(np.flatnonzero(~np.isfinite(x[bad[0]]))[0])
        yield Finding(
            check="not_finite",
            severity="error",
            what=f"{plural(len(bad), 'step')} with NaN or infinity, first {x[first, dim]} in "
            f"{contents.name(key, dim)}",
            fix="repair the source and convert it again, or leave these episodes out with mode-data filter",
            feature=key,
            episodes=contents.episodes_of(bad),
            step=contents.step_in_episode(first),
        )


def dead_dimensions(contents: Contents) -> Iterator[Finding]:
    """Find dimensions that never vary."""
    for key, x in contents.vectors.items():
        x = x[contents.finite]
        if len(x) < 2:
            continue
        ranges = x.max(0) - x.min(0)
        dead = np.flatnonzero(ranges <= CONSTANT * ranges.max())
        if not len(dead):
            continue
        whole = len(dead) == x.shape[1]
        named = shortened([contents.name(key, dim) for dim in dead])
        yield Finding(
            check="dead_dimension",
            severity="warning" if whole or feature_kind(key) == "action" else "info",
            what="no dimension ever varies" if whole else f"{len(dead)} of {x.shape[1]} never vary: {named}",
            fix="check that the recording fills them; if they are unused, they do no harm beyond their cost",
            feature=key,
        )


def outliers(contents: Contents) -> Iterator[Finding]:
    """Find values far beyond nearly all others, which squeeze the rest when they are normalised."""
    for key, x in contents.vectors.items():
        low, high = contents.quantiles[key]
        span = high - low
        margin = np.where(span > CONSTANT * span.max(), OUTLIER_RANGES * span, np.inf)
        margin[list(contents.store.features[key].angles)] = np.inf
        far = ((x < low - margin) | (x > high + margin)) & contents.finite[:, None]
        steps = np.flatnonzero(far.any(1))
        if not len(steps):
            continue
        dims = np.flatnonzero(far.any(0))
        named = shortened([contents.name(key, dim) for dim in dims])
        worst = int(dims[0])
        value = x[far[:, worst], worst][0]
        rare = len(steps) <= max(3, OUTLIER_SHARE * len(x))
        yield Finding(
            check="outlier",
            severity="warning" if feature_kind(key) == "action" and rare else "info",
            what=f"{plural(len(steps), 'step')} far outside the rest in {named}: {value:g}, while 98 % lie "
            f"in [{low[worst]:.4g}, {high[worst]:.4g}]",
            fix="look at them with mode-data view; leave glitches out, or train with "
            f"policy.normalize_{'action' if key == ACTION else 'state'}=quantile",
            feature=key,
            episodes=contents.episodes_of(steps),
            step=contents.step_in_episode(int(steps[0])),
        )


def saturation(contents: Contents) -> Iterator[Finding]:
    """Find action dimensions that are often at their bounds: what was asked for beyond them is lost."""
    x = contents.vectors[ACTION][contents.finite]
    shares = saturation_shares(x)
    dims = np.flatnonzero(shares >= SATURATION_NOTE)
    if len(dims):
        named = shortened([f"{contents.name(ACTION, d)} {shares[d]:.0%}" for d in dims])
        yield Finding(
            check="saturation",
            severity="warning" if shares.max() >= SATURATION_WARNING else "info",
            what=f"share of steps at the lowest or highest value: {named}",
            fix="expected of scripted experts and of actions clipped to limits; else raise the limits of the "
            "recording",
            feature=ACTION,
        )


def saturation_shares(x: np.ndarray) -> np.ndarray:
    """Return the share of steps at the bounds of each dimension, ``(D,)``; 0 for switches such as grippers.

    Args:
        x: ``(T, D)``, finite.
    """
    if not len(x):
        return np.zeros(x.shape[1])
    low, high = x.min(0), x.max(0)
    slack = 1e-6 * (high - low)
    shares: np.ndarray = ((x <= low + slack) | (x >= high - slack)).mean(0)
    switches = [len(np.unique(column)) <= SWITCH_VALUES for column in x.T]
    return np.where(switches, 0.0, shares)


def stuck_states(contents: Contents) -> Iterator[Finding]:
    """Find states that repeat exactly while the actions go on: a sensor or a connection that had stopped."""
    actions = contents.actions
    scale = spread(actions)
    scale[scale <= CONSTANT * scale.max(initial=0)] = np.inf
    for key, columns in contents.state_columns.items():
        x = contents.vectors[key][:, columns]
        same = np.concatenate([[False], (x[1:] == x[:-1]).all(1) & contents.continues[1:]])
        if not columns or same.mean() > RESTING_SHARE:
            continue
        first, length = runs(same)
        least = max(STUCK_STEPS, round(STUCK_SECONDS * contents.store.fps))
        stuck = [
            int(start)
            for start, n in zip(first[length >= least], length[length >= least], strict=True)
            if (np.ptp(actions[start : start + n], axis=0) / scale).max() >= STUCK_TRAVEL
        ]
        if stuck:
            yield Finding(
                check="stuck_state",
                severity="warning",
                what=f"{plural(len(stuck), 'time')}, the same values for {least} steps or more while the "
                "actions change",
                fix="a sensor or its connection had stopped: leave these episodes out with mode-data filter",
                feature=key,
                episodes=contents.episodes_of(np.array(stuck)),
                step=contents.step_in_episode(stuck[0]),
            )


def still_episodes(contents: Contents) -> Iterator[Finding]:
    """Find episodes in which neither states nor actions change."""
    x = np.concatenate(list(contents.vectors.values()), axis=1)
    changed = np.concatenate([[False], (x[1:] != x[:-1]).any(1) & contents.continues[1:]])
    moves = np.bincount(contents.episode, weights=changed)
    still = np.flatnonzero((moves == 0) & (contents.store.episode_lengths > 1))
    if len(still):
        yield Finding(
            check="still_episode",
            severity="warning",
            what=f"{plural(len(still), 'episode')} in which nothing ever changes",
            fix="leave them out with mode-data filter",
            episodes=tuple(still.tolist()),
        )
