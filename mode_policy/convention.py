"""What the numbers of a robot's data mean beyond their shape, and whether two sides mean the same.

Demonstrations, policies and environments each carry a `Convention`. Where two of them meet, `differences`
finds what would otherwise show as a robot that moves the wrong way: a gripper that opens where the data
closed it, deltas taken for positions, images upside down, another control rate.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from mode_policy.errors import ConventionError, DataError
from mode_policy.types import ACTION, Features, feature_kind

ActionKind = Literal["unknown", "absolute", "delta", "velocity"]
ActionFrame = Literal["unknown", "world", "base", "end_effector", "joint", "image"]
Gripper = Literal["unknown", "none", "plus_closes", "plus_opens", "one_closes", "one_opens"]
Orientation = Literal["unknown", "upright", "upside_down", "rotated_180"]

_CHOICES = {"action_kind": ActionKind, "action_frame": ActionFrame, "gripper": Gripper}


@dataclass(frozen=True, kw_only=True)
class Convention:
    """Meaning of actions and time. ``"unknown"`` (or an empty scale, or None) is not compared.

    Attributes:
        action_kind: Actions are targets (``absolute``), changes (``delta``) or speeds (``velocity``).
        action_frame: What they are expressed in.
        action_scale: Physical size of 1.0 of each action dimension, in the action feature's unit; empty if
            actions are in that unit already or the scale is not known.
        gripper: Meaning of the last action dimension: ``plus_closes`` is −1 open, +1 closed; ``one_closes``
            is 0 open, 1 closed; ``none`` if it is not a gripper.
        fps: Control rate in Hz, or None.

    Raises:
        DataError: for a value that is none of these.
    """

    action_kind: ActionKind = "unknown"
    action_frame: ActionFrame = "unknown"
    action_scale: tuple[float, ...] = ()
    gripper: Gripper = "unknown"
    fps: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "action_scale", tuple(float(x) for x in self.action_scale))
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in get_args(choices):
                raise DataError(
                    f"{name} {getattr(self, name)!r} is none of {', '.join(get_args(choices))}; correct it"
                )
        if self.fps is not None and not self.fps > 0:
            raise DataError(f"fps is {self.fps}; it must be the control rate in Hz, above 0")

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready mapping; ``Convention(**mapping)`` inverts it."""
        return asdict(self) | {"action_scale": list(self.action_scale)}


#: A convention of which nothing is known.
UNKNOWN = Convention()


@dataclass(frozen=True, kw_only=True)
class Side:
    """One of two sides that are compared: what it is called, its features and its convention."""

    name: str
    features: Features
    convention: Convention


@dataclass(frozen=True)
class Difference:
    """Something that two sides mean differently.

    Attributes:
        what: e.g. ``"gripper"``.
        first, second: The values.
        fix: The setting that adapts the first side (the data) to the second, or what else to do.
    """

    what: str
    first: str
    second: str
    fix: str


def differences(data: Side, other: Side) -> list[Difference]:
    """Compare demonstrations with a policy or an environment, or one store with another.

    Only features that both sides have are compared; `missing` finds those that one lacks.
    """
    a, b = data.convention, other.convention
    found: list[Difference] = []
    if _known(a.gripper, b.gripper) and a.gripper != b.gripper:
        found.append(Difference("gripper", a.gripper, b.gripper, _gripper_fix(a.gripper, b.gripper)))
    if _known(a.action_kind, b.action_kind) and a.action_kind != b.action_kind:
        fix = f"convert the actions to {b.action_kind} ones: no setting can, as it needs the robot's state"
        found.append(Difference("action kind", a.action_kind, b.action_kind, fix))
    if _known(a.action_frame, b.action_frame) and a.action_frame != b.action_frame:
        fix = f"convert the actions to the {b.action_frame} frame: no setting can, as it needs kinematics"
        found.append(Difference("action frame", a.action_frame, b.action_frame, fix))
    if a.action_scale and b.action_scale and not _close(a.action_scale, b.action_scale):
        found.append(
            Difference(
                "action scale",
                str(list(a.action_scale)),
                str(list(b.action_scale)),
                f"dataset.adapt.action_scale={list(b.action_scale)}",
            )
        )
    if a.fps and b.fps and not math.isclose(a.fps, b.fps, rel_tol=1e-3):
        found.append(Difference("control rate", f"{a.fps:g} Hz", f"{b.fps:g} Hz", _rate_fix(a, b)))
    for key in sorted(set(data.features) & set(other.features)):
        found += _feature_differences(key, data.features, other.features)
    return found


def missing(data: Side, needed: Side) -> list[Difference]:
    """Find the features that ``needed`` has and ``data`` lacks."""
    found = []
    spare = sorted(set(data.features) - set(needed.features))
    for key in sorted(set(needed.features) - set(data.features)):
        same_kind = [k for k in spare if feature_kind(k) == feature_kind(key)]
        fix = (
            f"dataset.adapt.rename={{{same_kind[0]}: {key}}}"
            if same_kind
            else "choose features that both have, with dataset.state_keys or dataset.image_keys"
        )
        found.append(Difference(key, "absent", "needed", fix))
    return found


def check_same(data: Side, other: Side, *, needs_all: bool = False) -> None:
    """Refuse to go on where two sides mean different things.

    Args:
        data: The demonstrations, or the policy that was trained on them.
        other: Who is to use them.
        needs_all: Whether ``data`` must have every feature of ``other``.

    Raises:
        ConventionError: listing each difference and the setting that fixes it.
    """
    found = differences(data, other) + (missing(data, other) if needs_all else [])
    if found:
        lines = [
            f"  {d.what}: {data.name} {d.first}, {other.name} {d.second}\n    fix: {d.fix}" for d in found
        ]
        raise ConventionError(
            f"{data.name} and {other.name} do not mean the same by their numbers:\n" + "\n".join(lines)
        )


def _known(*values: str) -> bool:
    return "unknown" not in values


def _close(a: Sequence[float], b: Sequence[float]) -> bool:
    return len(a) == len(b) and all(math.isclose(x, y, rel_tol=1e-6) for x, y in zip(a, b, strict=True))


def _gripper_fix(first: str, second: str) -> str:
    if "none" in (first, second):
        return "one side has no gripper: these are different robots"
    return f"dataset.adapt.gripper={second}"


def _rate_fix(a: Convention, b: Convention) -> str:
    assert a.fps is not None
    assert b.fps is not None
    stride = a.fps / b.fps
    if stride > 1 and math.isclose(stride, round(stride), rel_tol=1e-3):
        return f"dataset.adapt.stride={round(stride)}"
    if stride < 1 and math.isclose(1 / stride, round(1 / stride), rel_tol=1e-3):
        return f"bring the other side to {a.fps:g} Hz: steps that were not recorded cannot be made up"
    return "resample the data: neither rate is a multiple of the other"


def _feature_differences(key: str, first: Features, second: Features) -> list[Difference]:
    a, b = first[key], second[key]
    if feature_kind(key) == "image":
        # Encoders resize; a size is not a convention.
        return []
    if a.shape != b.shape:
        fix = (
            "these are different robots"
            if key == ACTION
            else "choose another feature with dataset.state_keys, or convert the data"
        )
        return [Difference(key, f"{a.shape[0]} dimensions", f"{b.shape[0]}", fix)]
    if a.names and b.names and a.names != b.names:
        at = next(i for i, (x, y) in enumerate(zip(a.names, b.names, strict=True)) if x != y)
        fix = f"reorder or rename the dimensions of {key}: dimension {at} is the first that differs"
        return [Difference(key, ", ".join(a.names), ", ".join(b.names), fix)]
    if a.unit and b.unit and a.unit != b.unit:
        return [Difference(f"unit of {key}", a.unit, b.unit, "convert the data to the same unit")]
    return []


def convert_gripper(from_: str, to: str) -> tuple[float, float]:
    """Return ``(factor, offset)`` with ``new = factor · old + offset``.

    Raises:
        DataError: if one of them is not a gripper's convention.
    """
    # Both as an affine function of the closing, 0 open … 1 closed: value = a·closed + b.
    forms: Mapping[str, tuple[float, float]] = {
        "plus_closes": (2.0, -1.0),
        "plus_opens": (-2.0, 1.0),
        "one_closes": (1.0, 0.0),
        "one_opens": (-1.0, 1.0),
    }
    if from_ not in forms or to not in forms:
        raise DataError(f"cannot convert a gripper from {from_!r} to {to!r}; use one of {', '.join(forms)}")
    (a, b), (c, d) = forms[from_], forms[to]
    return c / a, d - c * b / a
