"""Learning-rate and averaging schedules, as functions of the step."""

from __future__ import annotations

import math


def tri_stage(
    step: float,
    total: float,
    *,
    peak: float = 1.0,
    warmup: float = 0.02,
    hold: float = 0.08,
    start_scale: float = 0.1,
    final_scale: float = 1e-6,
) -> float:
    """Learning rate at ``step`` of ``total``: linear warm-up, hold, cosine to ``peak · final_scale``.

    The three-stage schedule of SpecAugment (arXiv 1904.08779) with a cosine, as the authors of MoDE use it.
    ``warmup`` and ``hold`` are shares of ``total``. A run that stops by the clock passes its share of the
    time.
    """
    warmup_end, hold_end = total * warmup, total * (warmup + hold)
    if step < warmup_end:
        return peak * (start_scale + (1 - start_scale) * step / warmup_end)
    if step <= hold_end:
        return peak
    share = min((step - hold_end) / (total - hold_end), 1.0)
    return peak * (final_scale + (1 - final_scale) * (1 + math.cos(math.pi * share)) / 2)


def ema_decay(step: int, *, power: float = 2 / 3, maximum: float = 0.9999) -> float:
    """Decay of the weights' moving average after ``step`` updates: 1 − step^(−2/3), at most ``maximum``."""
    return min(max(0.0, 1 - max(step, 1) ** -power), maximum)
