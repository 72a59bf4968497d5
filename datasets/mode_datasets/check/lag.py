"""By how many steps the state follows the action, estimated by cross-correlation.

Legend: T steps of all episodes, A action dimensions, D state dimensions, L lags.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

#: A lag is estimated where the correlation is at least this, and at least four times the spread that chance
#: gives it: of n unrelated steps, 1/√n.
SURE, _SPREADS = 0.5, 4

#: Of states that correlate this much less than the best, the one that follows first counts.
_RIVAL = 0.02

#: Lags that are tried, in seconds and in steps.
_TRIED_SECONDS, _TRIED_STEPS = 0.5, 10

Kind = Literal["absolute", "delta"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Lag:
    """How the state follows the action.

    Attributes:
        kind: What the actions look like: targets, or changes.
        lags: The lags that were tried, int64 ``(L,)``; 0 is a state that obeys within the very step.
        curves: Absolute correlation of each action dimension with the change of the state dimension that
            follows it best, ``(A, L)``.
        other: The highest correlation under the other kind.
        steps: The lag in steps, or None where no correlation is high enough.
    """

    kind: Kind
    lags: np.ndarray
    curves: np.ndarray
    other: float
    steps: int | None


def estimate_lag(states: np.ndarray, actions: np.ndarray, episode: np.ndarray, fps: float) -> Lag | None:
    """Estimate the lag; None without states or motion.

    As changes, the action ``a[t]`` is compared with ``s[t+1+k] - s[t+k]``; as targets, ``a[t+1] - a[t]`` is
    compared with ``s[t+2+k] - s[t+1+k]``, for lags of k steps. The better correlated of both kinds counts.

    Args:
        states: float64 ``(T, D)``; rows may be NaN.
        actions: float64 ``(T, A)``, likewise.
        episode: int64 ``(T,)``, the episode of each step, increasing.
        fps: Control rate in Hz.
    """
    third = int(np.median(np.bincount(episode))) // 3
    limit = min(max(_TRIED_STEPS, math.ceil(_TRIED_SECONDS * fps)), third)
    if not states.shape[1] or limit < 1:
        return None
    lags = np.arange(-limit, limit + 1)
    moves = _changes(states, episode)
    candidates: dict[Kind, np.ndarray] = {
        "delta": _correlations(actions, moves, lags, episode),
        "absolute": _correlations(_changes(actions, episode), moves, lags + 1, episode),
    }
    kind: Kind = "delta" if candidates["delta"].max() >= candidates["absolute"].max() else "absolute"
    other: Kind = "delta" if kind == "absolute" else "absolute"
    table = candidates[kind]
    if not table.max() > 0:
        return None
    sure = max(SURE, _SPREADS / math.sqrt(len(states)))
    curves, steps = [], []
    for of_states in table:  # (D, L)
        peaks = of_states.max(-1)
        rivals = np.flatnonzero(peaks >= peaks.max() - _RIVAL)
        state = rivals[np.abs(lags[of_states[rivals].argmax(-1)]).argmin()]
        curves.append(of_states[state])
        if peaks[state] >= sure:
            steps.append(int(lags[of_states[state].argmax()]))
    return Lag(
        kind=kind,
        lags=lags,
        curves=np.stack(curves),
        other=float(candidates[other].max()),
        steps=round(float(np.median(steps))) if steps else None,
    )


def _changes(x: np.ndarray, episode: np.ndarray) -> np.ndarray:
    """Return ``x[t+1] - x[t]``, ``(T, ·)``; NaN at the last step of each episode."""
    change = np.diff(x, axis=0, append=np.nan)
    change[np.diff(episode, append=-1) != 0] = np.nan
    return change


def _correlations(x: np.ndarray, y: np.ndarray, lags: np.ndarray, episode: np.ndarray) -> np.ndarray:
    """Return absolute correlations of ``x[t]`` ``(T, A)`` with ``y[t+k]`` ``(T, D)``, ``(A, D, L)``.

    Means are taken once, over all steps; sums only where both steps are finite and of one episode.
    """
    known_x, known_y = (np.isfinite(v).all(1) for v in (x, y))
    if not (known_x.any() and known_y.any()):
        return np.zeros((x.shape[1], y.shape[1], len(lags)))
    x = np.where(known_x[:, None], x - x[known_x].mean(0), 0)
    y = np.where(known_y[:, None], y - y[known_y].mean(0), 0)
    result = []
    for k in lags:
        start, stop = max(0, -k), min(len(x), len(x) - k)
        here, there = slice(start, stop), slice(start + k, stop + k)
        both = (episode[here] == episode[there]) & known_x[here] & known_y[there]
        a, b = x[here] * both[:, None], y[there] * both[:, None]
        norm = np.sqrt(np.outer((a**2).sum(0), (b**2).sum(0)))
        result.append(np.abs(np.divide(a.T @ b, norm, out=np.zeros_like(norm), where=norm > 1e-12)))
    return np.stack(result, axis=-1)
