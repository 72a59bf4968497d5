"""The reasons for which a robot is not sent what its policy proposed."""

from __future__ import annotations

import enum
from collections.abc import Iterator


class Intervention(enum.IntFlag):
    """Why a command is not what the policy proposed; a command can have several reasons."""

    BOUNDS = enum.auto()
    WORKSPACE = enum.auto()
    VELOCITY = enum.auto()
    ACCELERATION = enum.auto()
    JERK = enum.auto()
    BRAKING = enum.auto()  # in time for a bound, or to meet the proposal without overshooting it
    GRIPPER = enum.auto()
    ACTION_INVALID = enum.auto()  # not finite, or of another shape
    LATE = enum.auto()  # no action for this tick
    OBSERVATION_MISSING = enum.auto()
    OBSERVATION_INVALID = enum.auto()  # not finite, or of another shape
    OBSERVATION_STALE = enum.auto()
    OBSERVATION_FROZEN = enum.auto()
    EMERGENCY_STOP = enum.auto()


NONE = Intervention(0)

#: Observations with one of these are not shown to the policy, and its older actions are not executed either.
BLIND = (
    Intervention.OBSERVATION_MISSING
    | Intervention.OBSERVATION_INVALID
    | Intervention.OBSERVATION_STALE
    | Intervention.OBSERVATION_FROZEN
)


def names(interventions: int) -> Iterator[str]:
    """Yield the name of each reason, in lower case, e.g. ``"late"``."""
    for flag in Intervention:
        if interventions & flag:
            yield flag.name.lower() if flag.name else str(int(flag))
