"""Timing one thing, or several in turns."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch


def in_turns(
    runs: Mapping[str, Callable[[], object]], rounds: int, warm_up: int = 2
) -> dict[str, list[float]]:
    """Run each in turn, ``rounds`` times, so that what disturbs the machine disturbs all alike.

    Returns:
        Seconds of each run, by name; warm-up rounds are left out.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(rounds + warm_up):
        for name, run in runs.items():
            seconds = timed(run)
            if i >= warm_up:
                times[name].append(seconds)
    return times


def timed(run: Callable[[], object]) -> float:
    """Return the wall-clock seconds of a run, a GPU's work included."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


class Others:
    """How many processors other programs used while this one measured; 0 on a quiet machine."""

    def __init__(self) -> None:
        self._start = _seconds()

    def processors(self) -> float | None:
        """Return their average number since this was made, None where the system does not tell."""
        now = _seconds()
        if self._start is None or now is None:
            return None
        wall, busy, own = (after - before for after, before in zip(now, self._start, strict=True))
        return round(max(0.0, busy - own) / wall, 2)


def _seconds() -> tuple[float, float, float] | None:
    """Wall clock, seconds that all processors were busy, and those of this process."""
    file = Path("/proc/stat")
    if not file.is_file():
        return None
    user, nice, system, _, _, *interrupts = map(int, file.read_text().split("\n", 1)[0].split()[1:8])
    busy = (user + nice + system + sum(interrupts)) / os.sysconf("SC_CLK_TCK")
    return time.monotonic(), busy, time.process_time()


def percentiles(seconds: list[float]) -> dict[str, float]:
    """Return p50, p95, p99 and the least of a list of times, in milliseconds."""
    p95, p99 = np.quantile(seconds, [0.95, 0.99])
    values = {"p50": statistics.median(seconds), "p95": p95, "p99": p99, "min": min(seconds)}
    return {f"{name}_ms": round(1e3 * float(value), 3) for name, value in values.items()}
