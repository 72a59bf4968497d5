"""The order in which windows are seen: a pure function of the step, so that resuming needs no state."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mode_policy.errors import DataError


class BatchSampler:
    """Draw batches from an endless row of permutations, one for each epoch.

    With ``G = batch_size · world_size``, global batch ``step`` is positions ``[step·G, (step + 1)·G)`` of
    that row: batches run across the borders of epochs, and no window is dropped. Each rank takes its slice.

    Args:
        num_windows: Number of windows n, at least 1; it may be less than a batch.
        batch_size: Windows per step and rank.
        seed: Non-negative; with the epoch, it determines the permutation.
        rank: This process, in ``[0, world_size)``.
        world_size: Number of processes.

    Raises:
        DataError: if an argument is out of range.
    """

    def __init__(
        self, num_windows: int, batch_size: int, seed: int, rank: int = 0, world_size: int = 1
    ) -> None:
        if num_windows < 1 or batch_size < 1 or seed < 0 or not 0 <= rank < world_size:
            raise DataError(
                f"cannot sample batches of {batch_size} from {num_windows} windows with seed {seed} as rank "
                f"{rank} of {world_size}: sizes must be positive, the seed not negative, and the rank below "
                "the world size"
            )
        self.num_windows = num_windows
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self._permutations: dict[int, np.ndarray] = {}

    def indices(self, step: int) -> np.ndarray:
        """Return this rank's windows at a step (from 0), int64 ``(batch_size,)``."""
        start = (step * self.world_size + self.rank) * self.batch_size
        epochs, offsets = np.divmod(np.arange(start, start + self.batch_size), self.num_windows)
        # Only the permutations of this step are kept: the next step needs the same, or the next one.
        self._permutations = {
            epoch: self._permutations[epoch] if epoch in self._permutations else self._permutation(epoch)
            for epoch in range(int(epochs[0]), int(epochs[-1]) + 1)
        }
        windows = np.empty(self.batch_size, dtype=np.int64)
        for epoch, permutation in self._permutations.items():
            here = epochs == epoch
            windows[here] = permutation[offsets[here]]
        return windows

    def _permutation(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self.seed, epoch]).permutation(self.num_windows)


class WeightedSampler:
    """Draw batches from groups of windows, each with a weight of its own, with replacement.

    Groups are the tasks of a store, or the parts of a mixture. A step's windows are a pure function of seed
    and step; all ranks draw the same global batch and each takes its slice of it.

    Args:
        groups: Windows of each group, int arrays; none may be empty.
        weights: Of each group, not negative; shares of the batch on average, after division by their sum.
        batch_size: Windows per step and rank.
        seed: Non-negative.
        rank: This process, in ``[0, world_size)``.
        world_size: Number of processes.

    Raises:
        DataError: if an argument is out of range.
    """

    def __init__(
        self,
        groups: Sequence[np.ndarray],
        weights: Sequence[float],
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if len(groups) != len(weights) or not groups or min(weights) < 0 or not sum(weights) > 0:
            raise DataError(
                f"weights {list(weights)} for {len(groups)} groups: one each, none negative, one positive"
            )
        empty = [
            i
            for i, (group, weight) in enumerate(zip(groups, weights, strict=True))
            if weight and not len(group)
        ]
        if empty:
            raise DataError(
                f"group {empty[0]} has weight {weights[empty[0]]} but no windows; give it weight 0"
            )
        if batch_size < 1 or seed < 0 or not 0 <= rank < world_size:
            raise DataError(
                f"cannot sample batches of {batch_size} with seed {seed} as rank {rank} of {world_size}: "
                "sizes must be positive, the seed not negative, and the rank below the world size"
            )
        self.groups = groups
        self.shares = np.asarray(weights, dtype=np.float64) / sum(weights)
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size

    def indices(self, step: int) -> np.ndarray:
        """Return this rank's windows at a step (from 0), int64 ``(batch_size,)``."""
        rng = np.random.default_rng([self.seed, step])
        total = self.batch_size * self.world_size
        chosen = rng.choice(len(self.groups), total, p=self.shares)
        within = rng.random(total)
        here = slice(self.rank * self.batch_size, (self.rank + 1) * self.batch_size)
        return np.array(
            [
                self.groups[g][int(u * len(self.groups[g]))]
                for g, u in zip(chosen[here], within[here], strict=True)
            ],
            dtype=np.int64,
        )
