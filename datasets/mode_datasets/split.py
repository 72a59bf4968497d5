"""Which episodes train and which validate."""

from __future__ import annotations

import numpy as np

from mode_datasets.store import DemonstrationStore
from mode_policy.errors import DataError


def split_episodes(
    store: DemonstrationStore, validation_fraction: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Split episodes into training and validation, task by task.

    Whole episodes are held out, because neighbouring windows are nearly the same. Above a fraction of 0, each
    task with two episodes or more gives at least one to each side; a task's split depends on no other task.

    Args:
        store: The demonstrations.
        validation_fraction: Share of each task's episodes to hold out, in ``[0, 1)``.
        seed: Non-negative; determines which.

    Returns:
        Indices of training and of validation episodes, each int64 and increasing.

    Raises:
        DataError: if an argument is out of range.
    """
    if not 0 <= validation_fraction < 1 or seed < 0:
        raise DataError(
            f"validation_fraction {validation_fraction} must be in [0, 1), and seed {seed} at least 0"
        )
    held_out = np.zeros(store.num_episodes, dtype=bool)
    for task in range(len(store.tasks)):
        episodes = np.flatnonzero(store.episode_tasks == task)
        if validation_fraction > 0 and len(episodes) > 1:
            count = np.clip(round(validation_fraction * len(episodes)), 1, len(episodes) - 1)
            held_out[np.random.default_rng([seed, task]).permutation(episodes)[:count]] = True
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)
