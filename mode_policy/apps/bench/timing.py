"""Timing one thing, or several in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

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


def percentiles(seconds: list[float]) -> dict[str, float]:
    """Return p50, p95, p99 and the least of a list of times, in milliseconds."""
    p95, p99 = np.quantile(seconds, [0.95, 0.99])
    values = {"p50": statistics.median(seconds), "p95": p95, "p99": p99, "min": min(seconds)}
    return {f"{name}_ms": round(1e3 * float(value), 3) for name, value in values.items()}
