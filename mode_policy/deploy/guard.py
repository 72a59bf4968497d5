"""What makes an observation untrustworthy: missing, malformed, not finite, too old, or frozen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from mode_policy.deploy.config import SafetyConfig
from mode_policy.deploy.interventions import NONE, Intervention

IMAGE_PREFIX = "observation.images."  # as in `mode_policy.types`, which imports torch


@dataclass(frozen=True)
class Seen:
    """The last value of each feature, and since when it has not changed."""

    values: Mapping[str, np.ndarray] = field(default_factory=dict)
    since: Mapping[str, float] = field(default_factory=dict)


class Opinion(NamedTuple):
    """``problems`` in words, for the log; empty for an observation that can be acted upon."""

    interventions: Intervention
    problems: tuple[str, ...]
    seen: Seen


class ObservationGuard:
    """Judges observations before a policy sees them.

    Args:
        shapes: feature key → shape of one time step, of all that the policy reads.
        safety: the time-outs.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], safety: SafetyConfig) -> None:
        self.shapes = dict(shapes)
        self.stale_after = safety.stale_after
        self.images_frozen_after = safety.images_frozen_after
        self.states_frozen_after = safety.states_frozen_after

    def check(
        self, seen: Seen, arrays: Mapping[str, np.ndarray], captured: float, now: float, moving: bool
    ) -> Opinion:
        """Judge one observation.

        Args:
            seen: of the last tick.
            arrays: feature key → value.
            captured: when it was taken, in seconds of the monotonic clock.
            now: the present, on the same clock.
            moving: whether the robot is commanded to move, so that its state ought to change.
        """
        flags, problems = NONE, []
        values: dict[str, np.ndarray] = {}
        since: dict[str, float] = {}
        if now - captured > self.stale_after:
            flags |= Intervention.OBSERVATION_STALE
            problems.append(f"the observation is {now - captured:.2f} s old")
        if captured > now + self.stale_after:
            flags |= Intervention.OBSERVATION_INVALID
            problems.append(f"the observation is from {captured - now:.2f} s ahead; is it another clock's?")
        for key, shape in self.shapes.items():
            value = arrays.get(key)
            if value is None:
                flags |= Intervention.OBSERVATION_MISSING
                problems.append(f"{key} is missing")
                continue
            if value.shape != shape:
                flags |= Intervention.OBSERVATION_INVALID
                problems.append(f"{key} has shape {value.shape} instead of {shape}")
                continue
            image = key.startswith(IMAGE_PREFIX)
            if not image and not np.isfinite(value).all():
                flags |= Intervention.OBSERVATION_INVALID
                problems.append(f"{key} is not finite: {value}")
                continue
            limit = self.images_frozen_after if image else self.states_frozen_after
            if limit is None:
                continue
            before = seen.values.get(key)
            same = before is not None and np.array_equal(before, value) and (image or moving)
            values[key] = before if same and before is not None else value.copy()
            since[key] = seen.since[key] if same else now
            if now - since[key] > limit:
                flags |= Intervention.OBSERVATION_FROZEN
                problems.append(f"{key} has not changed for {now - since[key]:.2f} s")
        return Opinion(flags, tuple(problems), Seen(values, since))
