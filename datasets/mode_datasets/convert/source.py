"""What demonstrations of any format look like to the converter, and what a user may say about them."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from mode_datasets.schema import Provenance
from mode_policy.convention import Convention, Orientation
from mode_policy.errors import ConfigError, DataError
from mode_policy.types import Episode, Features, Task

#: Feature key → the names, in the source, of the arrays that are joined to it; a name may choose some of the
#: numbers of its array, as in ``pose[0:3]`` or ``pose[-1:]``.
KeyMap = Mapping[str, tuple[str, ...]]

_PART = re.compile(r"(.+?)(?:\[(-?\d+)?:(-?\d+)?\])?", re.DOTALL)

_CONVENTION = ("action_kind", "action_frame", "action_scale", "gripper", "fps")


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """What a user says about a source; None leaves it to the format.

    Attributes:
        keys: Which arrays become which feature; all others are left out.
        instruction: What the demonstrations do, for formats or files that do not say.
        licence: Of the data, as an SPDX name.
        orientation: How images are stored, where the format does not say or is wrong.
        action_kind, action_frame, action_scale, gripper, fps: See `mode_policy.convention.Convention`.
        gripper_changes: Whether the gripper's action is a change, so that 0 keeps it as it is.
        episode_bytes: The most that one episode may declare to take in memory.
        mask: robomimic: name of the mask whose demonstrations are taken.
        split: RLDS: name of the split; CALVIN: ``training`` or ``validation``.
        absolute: CALVIN: absolute actions instead of relative ones.
        tolerance: MCAP: the farthest, in seconds, that a message may be from the step it is taken for.
        interpolate: MCAP: interpolate vectors linearly instead of taking the nearest message.
    """

    keys: KeyMap | None = None
    instruction: str | None = None
    licence: str | None = None
    orientation: Orientation | None = None
    action_kind: str | None = None
    action_frame: str | None = None
    action_scale: tuple[float, ...] | None = None
    gripper: str | None = None
    fps: float | None = None
    gripper_changes: bool = False
    episode_bytes: int = 8 * 2**30
    mask: str | None = None
    split: str | None = None
    absolute: bool = False
    tolerance: float | None = None
    interpolate: bool = False

    def convention(self, known: Convention) -> Convention:
        """Return what the format says, with what the user says on top.

        Raises:
            DataError: if neither gives the control rate, or a value is not one of a convention's.
        """
        said: dict[str, Any] = {name: getattr(self, name) for name in _CONVENTION}
        convention = replace(known, **{name: value for name, value in said.items() if value is not None})
        if convention.fps is None:
            raise DataError("the data do not say their control rate; give it in Hz with --fps")
        return convention


def split_part(name: str) -> tuple[str, slice]:
    """Return the array that a name of a `KeyMap` means, and which of its numbers, counted in C order."""
    match = _PART.fullmatch(name)
    assert match is not None  # no name is empty
    array, *limits = match.groups()
    return array, slice(*(None if limit is None else int(limit) for limit in limits))


def arrays_of(keys: KeyMap) -> list[str]:
    """Return the arrays that become features, each once."""
    return list(dict.fromkeys(split_part(name)[0] for names in keys.values() for name in names))


def parse_keys(pairs: list[str]) -> KeyMap | None:
    """Read ``FEATURE=NAME`` or ``FEATURE=NAME+NAME[0:3]`` of a command line.

    Raises:
        ConfigError: if one is malformed, or a feature is given twice.
    """
    keys: dict[str, tuple[str, ...]] = {}
    for pair in pairs:
        feature, equals, names = pair.partition("=")
        if not equals or not feature or not all(names.split("+")):
            raise ConfigError(
                f"cannot read --key {pair!r}; keys look like observation.state=eef_pos+gripper_qpos[0:1]"
            )
        if feature in keys:
            raise ConfigError(f"--key gives {feature!r} twice; join arrays with +, as in {feature}=a+b")
        keys[feature] = tuple(names.split("+"))
    return keys or None


@dataclass(frozen=True, kw_only=True)
class Source(ABC):
    """Demonstrations on disk, read one episode at a time and always in the same order.

    Sources can be pickled: several processes may read one.

    Attributes:
        path: File or folder.
        features: What each step holds.
        convention: What the numbers mean.
        provenance: Where the demonstrations come from.
        tasks: The tasks, as far as they are known before all episodes are read.
        notes: What was assumed or left out, for a person to read.
        gripper_changes: Whether the gripper's action is still a change, see `mode_datasets.convert.gripper`.
    """

    #: Whether an episode takes long enough to decode for several processes to pay.
    parallel: ClassVar[bool] = False

    path: Path
    features: Features
    convention: Convention
    provenance: Provenance
    tasks: tuple[Task, ...] = ()
    notes: tuple[str, ...] = ()
    gripper_changes: bool = False

    @property
    @abstractmethod
    def num_episodes(self) -> int:
        """Number of episodes, damaged ones included."""

    @abstractmethod
    def episode(self, index: int) -> Episode:
        """Read one episode, its images upright.

        Raises:
            DataError: if it is damaged, or does not fit the others.
        """

    def name(self, index: int) -> str:
        """Return what messages call an episode."""
        return f"episode {index}"
