"""Batches made ahead of time by worker processes, in the order that the sampler gives to the steps.

Workers write batches into slots of memory that they share with the process that trains, which reads them
there: nothing is copied, and memory is allocated once. A slot is used again when the last tensor of its
batch is gone. Without workers, batches are made in slots, too: memory that is new costs a fifth of the time.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import weakref
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import connection
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from mode_datasets.shared import SharedArray
from mode_datasets.windows import tensors_of
from mode_policy.errors import ConfigError, DataError
from mode_policy.types import Batch

#: Slots beyond those that workers fill: for the batches that the caller holds. Further ones are copied.
HELD = 2

#: Seconds after which a worker looks whether the process that started it is still there.
WATCH_SECONDS = 5.0

#: Seconds that a worker has to finish a batch when it is told to end.
END_SECONDS = 5.0

#: Bytes that each tensor of a slot begins at a multiple of.
_ALIGNMENT = 64


class Sampler(Protocol):
    """Says which windows a step sees."""

    def indices(self, step: int) -> np.ndarray:
        """Return windows, int64 ``(batch,)``; the same number of them at each step."""
        ...


class WindowSource(Protocol):
    """What batches are cut from: `Windows` or a `Mixture` of them."""

    def __len__(self) -> int: ...

    @property
    def fork_safe(self) -> bool:
        """Whether a process that was forked can go on reading."""
        ...

    def batch(self, indices: np.ndarray, out: Batch | None = None) -> Batch:
        """Return the windows at ``indices``, in ``out`` if it is given."""
        ...


@dataclass(frozen=True)
class _Worker:
    process: Any  # of the context's own class
    pipe: connection.Connection


class BatchLoader:
    """Maps the number of a step to its batch; a pure function of it, whatever the number of workers.

    Args:
        windows: Where batches are cut from.
        sampler: Which windows a step sees.
        workers: Processes that make batches ahead; 0 makes each batch when it is asked for.
        prefetch: Batches that each worker is ahead.
        start: How workers begin: ``fork`` (at once, sharing memory) or ``spawn`` (in a second or two, also
            where threads run); by default as the data and this machine allow.
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
        start: Literal["fork", "spawn"] | None = None,
        pin_memory: bool = False,
    ) -> None:
        if workers < 0:
            raise ConfigError(f"workers={workers}; give 0 or the number of processes that load data")
        self.windows = windows
        self.sampler = sampler
        self.workers = workers
        self.prefetch = prefetch
        # Threads of a GPU's runtime do not survive a fork either.
        forks = windows.fork_safe and not torch.cuda.is_available()
        self.start = start or ("fork" if forks else "spawn")
        self.pin_memory = pin_memory
        self._pool: tuple[_Worker, ...] = ()
        self._layout: Batch | None = None  # shapes and types of the batches in slots
        self._end: weakref.finalize[Any, Any] | None = None
        self._waiting: deque[tuple[int, int]] = deque()  # steps that workers are at, and their slots
        self._free: deque[int] = deque()  # slots

    def __call__(self, step: int) -> Batch:
        """Return the batch of a step; asking for steps in their order is fast.

        Raises:
            DataError: if a file of the demonstrations is damaged, or a worker dies.
        """
        try:
            batch = self._next(step) if self.workers else self._make(step)
        except BaseException:
            self.close()
            raise
        return batch.pin_memory() if self.pin_memory else batch

    def close(self) -> None:
        """End the workers; batches that were delivered stay as they are."""
        if self._end is not None:
            self._end()
        self._pool, self._end = (), None

    def _make(self, step: int) -> Batch:
        """Make a batch here, in memory of one that is gone if there is such."""
        indices = self.sampler.indices(step)
        if self._layout is None:
            first = self.windows.batch(indices)
            self._lay_out(first)
            self._memory = np.empty((HELD, self._bytes), np.uint8)
            self._free = deque(range(HELD))
            return first
        if not self._free:
            return self.windows.batch(indices)
        return self.windows.batch(indices, carve(self._lease(self._free.popleft()), self._layout))

    def _next(self, step: int) -> Batch:
        if not self._pool:
            first = self.windows.batch(self.sampler.indices(step))
            self._begin(first)
            self._order(step + 1)
            return first
        while self._waiting and self._waiting[0][0] != step:  # made for other steps
            self._free.append(self._receive())
        self._order(self._waiting[-1][0] + 1 if self._waiting else step)
        slot = self._receive()
        assert self._layout is not None
        held = len(self._memory) - len(self._waiting) - len(self._free)
        batch = carve(self._lease(slot), self._layout)
        return batch if held <= HELD else batch.map(Tensor.clone)

    def _lay_out(self, like: Batch) -> None:
        """Let slots be for batches like this one."""
        self._layout = like.map(lambda x: torch.empty_like(x, device="meta"))
        self._bytes = sum(_aligned(x.nbytes) for x in tensors_of(like))

    def _begin(self, like: Batch) -> None:
        """Make the slots and start the workers."""
        context = multiprocessing.get_context(self.start)
        self._lay_out(like)
        slots = self.workers * self.prefetch + HELD
        shared = SharedArray((slots, self._bytes))
        self._memory = shared.array
        self._waiting, self._free = deque(), deque(range(slots))
        pool: list[_Worker] = []
        self._end = weakref.finalize(self, _end, pool, os.getpid())
        for _ in range(self.workers):
            ours, theirs = context.Pipe()
            work = (self.windows, self.sampler, self._layout, shared, theirs, os.getpid())
            process: Any = context.Process(target=_work, args=work, daemon=True)  # type: ignore[attr-defined]
            process.start()
            theirs.close()
            pool.append(_Worker(process, ours))
        self._pool = tuple(pool)

    def _order(self, step: int) -> None:
        """Let workers make the batches from a step on, in turn, while there are slots for them."""
        while self._free and len(self._waiting) < self.workers * self.prefetch:
            slot = self._free.popleft()
            self._waiting.append((step, slot))
            with contextlib.suppress(BrokenPipeError):  # told when its batch is due
                self._pool[step % self.workers].pipe.send((step, slot))
            step += 1

    def _receive(self) -> int:
        """Wait for the first of the batches that are being made; return its slot."""
        step, slot = self._waiting.popleft()
        worker = self._pool[step % self.workers]
        connection.wait([worker.pipe, worker.process.sentinel])
        try:
            failure = worker.pipe.recv() if worker.pipe.poll() else EOFError()
        except (EOFError, ConnectionResetError) as error:
            failure = error
        if isinstance(failure, EOFError | ConnectionResetError):
            worker.process.join(END_SECONDS)
            raise DataError(
                f"a process that loads data died (exit code {worker.process.exitcode}), perhaps for lack of "
                "memory; try fewer with dataset.workers"
            )
        if failure is not None:
            raise failure
        return slot

    def _lease(self, slot: int) -> Tensor:
        """Return a slot's memory; it is free again when no tensor refers to it."""
        row = self._memory[slot]
        # An object of its own, which the tensors keep.
        lease: np.ndarray = np.ndarray(row.shape, row.dtype, buffer=row)
        weakref.finalize(lease, self._free.append, slot).atexit = False
        return torch.from_numpy(lease)


def carve(memory: Tensor, layout: Batch) -> Batch:
    """Return a batch whose tensors lie one after another in ``memory``, uint8 ``(bytes,)``.

    Args:
        memory: Where.
        layout: A batch of the same shapes and types.
    """
    start = 0

    def tensor(like: Tensor) -> Tensor:
        nonlocal start
        part = memory[start : start + like.nbytes].view(like.dtype).view(like.shape)
        start += _aligned(like.nbytes)
        return part

    return layout.map(tensor)


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _work(
    windows: WindowSource,
    sampler: Sampler,
    layout: Batch,
    memory: SharedArray,
    pipe: connection.Connection,
    parent: int,
) -> None:
    """Make the batches that are asked for, until told to end or left alone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that trains
    torch.set_num_threads(1)
    slots = [carve(torch.from_numpy(row), layout) for row in memory.array]
    with contextlib.suppress(EOFError, ConnectionError):
        while os.getppid() == parent:
            if not pipe.poll(WATCH_SECONDS):
                continue
            if (order := pipe.recv()) is None:
                return
            step, slot = order
            try:
                windows.batch(sampler.indices(step), slots[slot])
            except Exception as error:  # all are raised again where the batch is asked for
                pipe.send(_portable(error))
            else:
                pipe.send(None)


def _portable(error: Exception) -> Exception:
    try:
        multiprocessing.reduction.ForkingPickler.dumps(error)
    except Exception:
        return DataError(f"a process that loads data failed ({type(error).__name__}: {error})")
    return error


def _end(pool: Sequence[_Worker], owner: int) -> None:
    if os.getpid() != owner:  # a forked copy of the loader
        return
    for worker in pool:
        with contextlib.suppress(OSError):
            worker.pipe.send(None)
    for worker in pool:
        worker.process.join(END_SECONDS)
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()
        worker.pipe.close()
        worker.process.close()
