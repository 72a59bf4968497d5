"""Memory that a process shares with those that it starts, whether they are forked or spawned."""

from __future__ import annotations

import math
import mmap
import os
import tempfile
import weakref
from multiprocessing import reduction
from typing import Any

import numpy as np


class SharedArray:
    """An array of zeros in memory of its own; sent to a process that is being started, it arrives as the same
    memory.

    It is an unnamed file in memory: nothing is left behind by a kill, and the size of ``/dev/shm``, which
    containers keep small, does not matter.

    Args:
        shape: Of the array.
        dtype: Of its values.
    """

    def __init__(self, shape: tuple[int, ...], dtype: str = "uint8") -> None:
        descriptor = _unnamed_file()
        os.ftruncate(descriptor, max(1, math.prod(shape) * np.dtype(dtype).itemsize))
        self._attach(descriptor, shape, dtype)

    def _attach(self, descriptor: int, shape: tuple[int, ...], dtype: str) -> None:
        self._descriptor = descriptor
        weakref.finalize(self, os.close, descriptor)
        self.array: np.ndarray = np.ndarray(shape, dtype, buffer=mmap.mmap(descriptor, 0))

    def __reduce__(self) -> tuple[Any, ...]:
        """Send the file's descriptor instead of the values."""
        return _attached, (reduction.DupFd(self._descriptor), self.array.shape, self.array.dtype.str)


def _attached(descriptor: Any, shape: tuple[int, ...], dtype: str) -> SharedArray:
    shared = SharedArray.__new__(SharedArray)
    shared._attach(descriptor.detach(), shape, dtype)
    return shared


def _unnamed_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("mode_datasets")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
