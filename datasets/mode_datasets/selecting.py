"""Choosing episodes of a store by what is known of them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mode_datasets.store import DemonstrationStore
from mode_policy.errors import DataError, did_you_mean

#: Feature that says whether a step is a success, where a store holds it.
SUCCESS = "observation.success"

_CONDITION = re.compile(
    r"\s*(?P<of>\w+)\(\s*(?P<key>[\w.]+)\s*(\[\s*(?P<dim>\w+)\s*\])?\s*\)"
    r"\s*(?P<sign><=|>=|==|<|>)\s*(?P<value>[-+.\deE]+)\s*"
)
_SIGNS = {"<": np.less, "<=": np.less_equal, ">": np.greater, ">=": np.greater_equal, "==": np.equal}
_STATISTICS = ("min", "max", "mean", "first", "last")


@dataclass(frozen=True, kw_only=True)
class Criteria:
    """What an episode must be like to be chosen; what is not given does not count.

    Attributes:
        tasks: Names of the tasks to choose from.
        episodes: Numbers of the episodes to choose from.
        drop: Numbers of episodes that are not chosen.
        min_length: Least number of steps.
        max_length: Largest number of steps.
        success: Whether `SUCCESS` must be above ½ at some step.
        where: Conditions such as ``"max(observation.reward) >= 1"`` or ``"last(action[gripper]) < 0"``; of
            min, max, mean, first and last over the steps of an episode.
    """

    tasks: Sequence[str] = ()
    episodes: Sequence[int] | None = None
    drop: Sequence[int] = ()
    min_length: int = 0
    max_length: int | None = None
    success: bool = False
    where: Sequence[str] = ()


def select(store: DemonstrationStore, criteria: Criteria) -> np.ndarray:
    """Return the numbers of the episodes that meet all criteria, int64, increasing.

    Raises:
        DataError: if a criterion names a task, an episode or a feature that the store does not have.
    """
    chosen = np.ones(store.num_episodes, dtype=bool)
    if criteria.tasks:
        rows = {task.name: row for row, task in enumerate(store.tasks)}
        for name in criteria.tasks:
            if name not in rows:
                raise DataError(f"{store.location} has no task {name!r}.{did_you_mean(name, rows)}")
        chosen &= np.isin(store.episode_tasks, [rows[name] for name in criteria.tasks])
    if criteria.episodes is not None:
        chosen &= _mask(store, criteria.episodes)
    chosen &= ~_mask(store, criteria.drop)
    chosen &= store.episode_lengths >= criteria.min_length
    if criteria.max_length is not None:
        chosen &= store.episode_lengths <= criteria.max_length
    if criteria.success:
        if SUCCESS not in store.features:
            raise DataError(
                f"{store.location} does not record success: it has no {SUCCESS!r}. Say what counts as "
                f"success, e.g. --where 'max(FEATURE) >= 1'; features: {', '.join(store.features)}"
            )
        chosen &= _holds(store, f"max({SUCCESS}) > 0.5")
    for condition in criteria.where:
        chosen &= _holds(store, condition)
    return np.flatnonzero(chosen)


def parse_numbers(text: str) -> list[int]:
    """Return the numbers of ``"0-3,7"``: 0, 1, 2, 3, 7.

    Raises:
        DataError: if it is written otherwise.
    """
    numbers: list[int] = []
    for part in text.replace(" ", "").split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
        if match is None:
            raise DataError(f"cannot read {part!r} of {text!r}; episodes look like 0-3,7")
        first = int(match[1])
        numbers += range(first, int(match[2] or first) + 1)
    return numbers


def _mask(store: DemonstrationStore, episodes: Sequence[int]) -> np.ndarray:
    outside = [i for i in episodes if not 0 <= i < store.num_episodes]
    if outside:
        raise DataError(
            f"{store.location} has episodes 0 to {store.num_episodes - 1}; {outside[0]} is none of them"
        )
    mask = np.zeros(store.num_episodes, dtype=bool)
    mask[list(episodes)] = True
    return mask


def _holds(store: DemonstrationStore, condition: str) -> np.ndarray:
    """Return whether a condition holds, bool ``(N,)``."""
    match = _CONDITION.fullmatch(condition)
    if match is None or match["of"] not in _STATISTICS:
        raise DataError(
            f"cannot read the condition {condition!r}; it looks like 'max(observation.reward) >= 1', with "
            f"one of {', '.join(_STATISTICS)}"
        )
    key, vectors = match["key"], store.vectors()
    if key not in vectors:
        raise DataError(f"condition {condition!r}: no vector {key!r}.{did_you_mean(key, vectors)}")
    x = vectors[key][:, _dimension(store, key, match["dim"])].astype(np.float64)
    starts, ends = store.episode_starts, store.episode_ends
    values = {
        "min": lambda: np.minimum.reduceat(x, starts),
        "max": lambda: np.maximum.reduceat(x, starts),
        "mean": lambda: np.add.reduceat(x, starts) / store.episode_lengths,
        "first": lambda: x[starts],
        "last": lambda: x[ends - 1],
    }[match["of"]]()
    try:
        limit = float(match["value"])
    except ValueError:
        raise DataError(f"condition {condition!r}: {match['value']!r} is no number") from None
    result: np.ndarray = _SIGNS[match["sign"]](values, limit)
    return result


def _dimension(store: DemonstrationStore, key: str, name: str | None) -> int:
    feature = store.features[key]
    names = {str(i): i for i in range(feature.shape[0])} | {n: i for i, n in enumerate(feature.names)}
    if name is None and feature.shape[0] > 1:
        raise DataError(
            f"{key!r} has {feature.shape[0]} dimensions; name one, e.g. {key}[{next(iter(names))}]"
        )
    if name is not None and name not in names:
        raise DataError(f"{key!r} has no dimension {name!r}.{did_you_mean(name, names)}")
    return 0 if name is None else names[name]
