"""What a run of the control loop came to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What a run came to.

    Attributes:
        outcome: "done" (the robot says so), "ticks" (as many as asked for), "interrupted", "emergency stop",
            "no action" (for longer than allowed), or "inference failed".
        ticks: control periods that were worked on.
        skipped: that were left out, because the loop was late by a whole one.
        interventions: name → number of ticks.
        chunks: that arrived.
        losses: how often inference was lost.
        late_ms: how late ticks began: 50 %, 99 % and the largest, in milliseconds, of the ticks in the ring.
        info: the robot's last word.
        error: what went wrong, or "".
    """

    outcome: str
    ticks: int
    skipped: int
    interventions: Mapping[str, int]
    chunks: int
    losses: int
    late_ms: tuple[float, float, float]
    info: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""


def lateness(rows: np.ndarray) -> tuple[float, float, float]:
    """Return median, 99th percentile and maximum of how late ticks began, in ms, of telemetry's records."""
    if not len(rows):
        return (0.0, 0.0, 0.0)
    late = 1e3 * (rows["started"] - rows["due"])
    return (float(np.median(late)), float(np.quantile(late, 0.99)), float(late.max()))
