"""The contents of a store as the checks look at them.

Legend: T steps of all episodes, N episodes, D dimensions of a feature.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from mode_datasets.check.lag import Lag, estimate_lag
from mode_datasets.store import DemonstrationStore
from mode_policy.types import ACTION, feature_kind

#: A dimension is constant below this range, relative to the largest of its feature (as in normalisation).
CONSTANT = 1e-5

#: Steps that the lag is estimated from, at most.
LAG_STEPS = 100_000

#: With so few different values, a dimension is a switch (a gripper), and its bounds are its values.
SWITCH_VALUES = 8


@dataclass(frozen=True, kw_only=True, eq=False)
class Contents:
    """A store that was opened leniently, and what several checks need of it.

    Attributes:
        store: The store; its vectors are NaN where they cannot be read.
        attributes: Its attributes as they are stored; empty for a store of another layout.
        damage: Array path → rows that cannot be read, bool ``(rows of the array,)``.
    """

    store: DemonstrationStore
    attributes: Mapping[str, Any]
    damage: Mapping[str, np.ndarray]

    @cached_property
    def vectors(self) -> dict[str, np.ndarray]:
        """All low-dimensional features, float32 ``(T, D)``."""
        return self.store.vectors()

    @cached_property
    def episode(self) -> np.ndarray:
        """Episode of each step, int64 ``(T,)``."""
        return np.repeat(np.arange(self.store.num_episodes), self.store.episode_lengths)

    @cached_property
    def continues(self) -> np.ndarray:
        """Whether a step belongs to the same episode as the one before it, bool ``(T,)``."""
        return np.diff(self.episode, prepend=-1) == 0

    @cached_property
    def readable(self) -> dict[str, np.ndarray]:
        """Which steps of each low-dimensional feature can be read, bool ``(T,)``."""
        steps = self.store.num_steps
        damage = {key: self.damage.get(self.store.array(key).path) for key in self.vectors}
        return {k: np.ones(steps, bool) if d is None else ~d[:steps] for k, d in damage.items()}

    @cached_property
    def finite(self) -> np.ndarray:
        """Whether all vectors of a step are finite, bool ``(T,)``."""
        return np.logical_and.reduce([np.isfinite(x).all(1) for x in self.vectors.values()])

    @cached_property
    def quantiles(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """The 1 % and 99 % quantiles of each low-dimensional feature, float64 ``(D,)``, of finite steps."""
        return {key: _quantiles(x) for key, x in self.vectors.items()}

    @cached_property
    def actions(self) -> np.ndarray:
        """Actions, float64 ``(T, D)``."""
        return self.vectors[ACTION].astype(np.float64)

    @cached_property
    def state_columns(self) -> dict[str, list[int]]:
        """State feature → those of its dimensions that are not time stamps."""
        stamps = set(self.stamp_columns)
        return {
            key: [i for i in range(x.shape[1]) if (key, i) not in stamps]
            for key, x in self.vectors.items()
            if feature_kind(key) == "state"
        }

    @cached_property
    def stamp_columns(self) -> tuple[tuple[str, int], ...]:
        """Feature and dimension of each time stamp, known by the name of either."""
        columns = []
        for key in self.vectors:
            names = self.store.features[key].names
            if key.endswith(".timestamp"):
                columns.append((key, 0))
            elif "timestamp" in names:
                columns.append((key, names.index("timestamp")))
        return tuple(columns)

    @cached_property
    def travel(self) -> np.ndarray:
        """What tells whether the robot moves, scaled to the range of the data, float32 ``(T, D)``.

        These are the states, or the actions of a store without states. Dimensions that hardly vary beside
        the others of their feature are left out: what they hold is noise.
        """
        chosen = {key: columns for key, columns in self.state_columns.items() if columns}
        columns = []
        for key, dims in (chosen or {ACTION: list(range(self.actions.shape[1]))}).items():
            x = self._unwrapped(key, self.store.num_steps)[:, dims]
            span = spread(x)
            moving = span > 0.05 * span.max(initial=0)
            columns.append((x[:, moving] / span[moving]).astype(np.float32))
        return np.concatenate(columns, axis=1)

    @cached_property
    def lag(self) -> Lag | None:
        """By how many steps the states follow the actions, or None where it cannot be told."""
        steps = min(self.store.num_steps, LAG_STEPS)
        columns = [self._unwrapped(key, steps)[:, dims] for key, dims in self.state_columns.items()]
        states = np.concatenate(columns, axis=1) if columns else np.empty((steps, 0))
        return estimate_lag(states, self.actions[:steps], self.episode[:steps], self.store.fps)

    def step_in_episode(self, step: int) -> int:
        """Return a step's number in its episode."""
        return int(step - self.store.episode_starts[self.episode[step]])

    def name(self, key: str, dim: int) -> str:
        """Return a name for a dimension of a feature: its own, or its number."""
        names = self.store.features[key].names
        return names[dim] if dim < len(names) else f"dimension {dim}"

    def episodes_of(self, steps: np.ndarray) -> tuple[int, ...]:
        """Return the episodes that steps belong to, sorted."""
        return tuple(int(i) for i in np.unique(self.episode[steps]))

    def _unwrapped(self, key: str, steps: int) -> np.ndarray:
        """Return the first steps of a feature as float64, its angles continuous within each episode."""
        x, episode = self.vectors[key][:steps].astype(np.float64), self.episode[:steps]
        starts = self.store.episode_starts[: episode[-1] + 1]
        for dim in self.store.features[key].angles:
            change = np.diff(x[:, dim], prepend=x[0, dim])
            total = np.nancumsum((change + np.pi) % (2 * np.pi) - np.pi)
            x[:, dim] = total + (x[starts, dim] - total[starts])[episode]
        return x


def spread(x: np.ndarray) -> np.ndarray:
    """Return the range from the 1 % to the 99 % quantile, ``(D,)``, over the finite rows of ``(T, D)``."""
    low, high = _quantiles(x)
    result: np.ndarray = high - low
    return result


def _quantiles(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    x = x[np.isfinite(x).all(1)]
    if not len(x):
        return np.zeros(x.shape[1]), np.zeros(x.shape[1])
    low, high = np.quantile(x, [0.01, 0.99], axis=0).astype(np.float64)
    return low, high


def runs(same: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find runs of equal rows.

    Args:
        same: bool ``(T,)``: whether a row equals the one before it.

    Returns:
        First row and number of rows of each run of two rows or more, int64 ``(R,)``.
    """
    edges = np.diff(np.concatenate([[False], same, [False]]).astype(np.int8))
    first = np.flatnonzero(edges == 1) - 1
    return first, np.flatnonzero(edges == -1) - first
