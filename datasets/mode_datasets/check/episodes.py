"""Checks of whole episodes: too short, and the same one twice.

Legend: N episodes, P points of a resampled episode, D dimensions of all vectors together.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mode_datasets.check.contents import CONSTANT, Contents
from mode_datasets.check.findings import Finding, plural, shortened
from mode_datasets.inspection import episode_digests

#: An episode is short below so many steps, or below this share of the median length of its task.
SHORT_STEPS, SHORT_SHARE = 4, 0.2

#: Points that an episode is resampled to, and the distance of near-identical ones: a share of the median
#: distance between episodes of a task; where there are only two, of the spread of the data.
POINTS, NEAR_SHARE, NEAR_PAIR = 32, 0.05, 0.01

#: Episodes that are compared with all others at once, and episodes that the median distance is taken from.
_BLOCK, _SAMPLE = 1024, 500


def short_episodes(contents: Contents) -> Iterator[Finding]:
    """Find episodes that are much shorter than the others of their task."""
    store = contents.store
    lengths = store.episode_lengths
    least = np.empty(store.num_episodes)
    for task in np.unique(store.episode_tasks):
        of_task = store.episode_tasks == task
        least[of_task] = max(SHORT_STEPS, SHORT_SHARE * float(np.median(lengths[of_task])))
    short = np.flatnonzero(lengths < least)
    if len(short):
        yield Finding(
            check="short_episode",
            severity="warning",
            what=f"{plural(len(short), 'episode')} of {shortened(np.unique(lengths[short]))} steps; the "
            f"median is {np.median(lengths):g}",
            fix="most likely aborted recordings: leave them out with mode-data filter --min-length",
            episodes=tuple(short.tolist()),
        )


def duplicate_episodes(contents: Contents) -> Iterator[Finding]:
    """Find episodes that are copies of others, exactly or nearly."""
    exact = _exact(contents)
    if exact:
        yield _finding(exact, "equal to others", "remove them, or training and validation share data")
    near = {copy: kept for copy, kept in _near(contents, set(exact)).items() if copy not in exact}
    if near:
        yield _finding(
            near, "nearly the same as others", "look at them with mode-data view, and keep one of each"
        )


def _finding(copies: dict[int, int], what: str, fix: str) -> Finding:
    pairs = shortened([f"{copy} = {kept}" for copy, kept in sorted(copies.items())], most=4)
    return Finding(
        check="duplicate_episode",
        severity="warning",
        what=f"{plural(len(copies), 'episode')} {what}: {pairs}",
        fix=fix,
        episodes=tuple(sorted(copies)),
    )


def _exact(contents: Contents) -> dict[int, int]:
    """Return the later of each pair of equal episodes → the earlier one."""
    seen: dict[bytes, int] = {}
    copies = {}
    store = contents.store
    for i, digest in enumerate(episode_digests(store)):
        if digest in seen:
            copies[i] = seen[digest]
        elif contents.finite[store.episode_starts[i] : store.episode_ends[i]].all():
            seen[digest] = i
    return copies


def _near(contents: Contents, leave_out: set[int]) -> dict[int, int]:
    """Return the later of each pair of near-identical episodes of a task → the earlier one."""
    copies: dict[int, int] = {}
    trajectories = resampled(contents)
    for task in range(len(contents.store.tasks)):
        members = np.flatnonzero(contents.store.episode_tasks == task)
        sound = np.isfinite(trajectories[members]).all(axis=(1, 2))
        members = np.array([i for i in members[sound] if i not in leave_out], dtype=np.int64)
        if len(members) < 2:
            continue
        x = trajectories[members].reshape(len(members), -1)
        near = NEAR_PAIR
        if len(members) > 2:
            some = x[np.linspace(0, len(x) - 1, min(len(x), _SAMPLE)).astype(int)]
            near = NEAR_SHARE * float(np.median(_distances(some, some)[np.triu_indices(len(some), 1)]))
        for start in range(0, len(x), _BLOCK):
            close = _distances(x[start : start + _BLOCK], x) < near
            rows, columns = np.nonzero(np.tril(close, start - 1))
            for later, earlier in zip(members[start + rows].tolist(), members[columns].tolist(), strict=True):
                copies.setdefault(later, earlier)
    return copies


def resampled(contents: Contents) -> np.ndarray:
    """Return all vectors of each episode at P moments from its first to its last step, float32 ``(N, P, D)``.

    Dimensions are centred, scaled by their range and clipped to a few of it, so that none dominates; those
    that hardly vary are left out.
    """
    store = contents.store
    columns = []
    for key, x in contents.vectors.items():
        low, high = contents.quantiles[key]
        varies = high - low > CONSTANT * (high - low).max(initial=0)
        centre, scale = ((high + low)[varies] / 2).astype(np.float32), (high - low)[varies].astype(np.float32)
        columns.append(np.clip((x[:, varies] - centre) / scale, -2, 2))
    x = np.concatenate(columns, axis=1)
    at = store.episode_starts[:, None] + np.linspace(0, 1, POINTS) * (store.episode_lengths[:, None] - 1)
    low = np.floor(at).astype(np.int64)
    high = np.minimum(low + 1, store.episode_ends[:, None] - 1)
    weight = (at - low)[..., None].astype(np.float32)
    return x[low] * (1 - weight) + x[high] * weight


def _distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return root mean square distances between rows, ``(len(a), len(b))``."""
    squares = (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T
    result: np.ndarray = np.sqrt(np.maximum(squares, 0) / a.shape[1])
    return result
