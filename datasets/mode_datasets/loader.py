"""Batches made ahead of time by worker processes, in the order that the sampler gives to the steps."""

from __future__ import annotations

import itertools
import multiprocessing
from collections.abc import Iterator
from typing import Literal, Protocol

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from mode_policy.errors import ConfigError
from mode_policy.types import Batch


class Sampler(Protocol):
    """Says which windows a step sees."""

    def indices(self, step: int) -> np.ndarray:
        """Return windows, int64 ``(batch,)``."""
        ...


class WindowSource(Protocol):
    """What batches are cut from: `Windows` or a `Mixture` of them."""

    def __len__(self) -> int: ...

    def batch(self, indices: np.ndarray) -> Batch:
        """Return the windows at ``indices``."""
        ...


class BatchLoader:
    """Maps the number of a step to its batch; a pure function of it, whatever the number of workers.

    Args:
        windows: Where batches are cut from.
        sampler: Which windows a step sees.
        workers: Processes that make batches ahead; 0 makes each batch when it is asked for.
        prefetch: Batches that each worker is ahead.
        start: How workers begin: ``fork`` (at once, sharing memory) or ``spawn`` (also where threads run).
        pin_memory: Put batches where a GPU copies them from without waiting.

    Raises:
        ConfigError: if ``workers`` is negative.
    """

    def __init__(
        self,
        windows: WindowSource,
        sampler: Sampler,
        *,
        workers: int = 0,
        prefetch: int = 4,
        start: Literal["fork", "spawn"] = "fork",
        pin_memory: bool = False,
    ) -> None:
        if workers < 0:
            raise ConfigError(f"workers={workers}; give 0 or the number of processes that load data")
        self.windows = windows
        self.sampler = sampler
        self.workers = workers
        self.prefetch = prefetch
        self.start = start
        self.pin_memory = pin_memory
        self._next = -1
        self._batches: Iterator[Batch] = iter(())

    def __call__(self, step: int) -> Batch:
        """Return the batch of a step; asking for steps in their order is fast.

        Raises:
            DataError: if a file of the demonstrations is damaged.
        """
        if self.workers == 0:
            return self.windows.batch(self.sampler.indices(step))
        if step != self._next:
            self._batches = self._from(step)
        self._next = step + 1
        return next(self._batches)

    def close(self) -> None:
        """End the workers."""
        self._next = -1
        self._batches = iter(())

    def _from(self, step: int) -> Iterator[Batch]:
        loader: DataLoader[Batch] = DataLoader(
            _Steps(self.windows, self.sampler),
            batch_size=None,
            sampler=itertools.count(step),
            num_workers=self.workers,
            prefetch_factor=self.prefetch,
            multiprocessing_context=multiprocessing.get_context(self.start),
            pin_memory=self.pin_memory,
        )
        return iter(loader)


class _Steps(Dataset[Batch]):
    """The batches of all steps, as torch's loader wants them."""

    def __init__(self, windows: WindowSource, sampler: Sampler) -> None:
        self.windows = windows
        self.sampler = sampler

    def __getitem__(self, step: int) -> Batch:
        batch = self.windows.batch(self.sampler.indices(step))
        # Shared here rather than by the thread that hands batches over: it may be copying when the worker
        # ends, and then takes the process down.
        return batch if get_worker_info() is None else batch.map(Tensor.share_memory_)
