"""CALVIN's npz files (Mees et al. 2022, arXiv 2112.03227): one per time step, with spans that language
describes.

Each annotated span becomes an episode; where there is no annotation, each recording of play does. The
annotations are a pickle, which is read as data by `mode_datasets.convert.pickled_npy`, never unpickled.

Actions are ``rel_actions``: displacements in the world frame, 1.0 being 0.02 m and 0.05 rad, clipped to [−1,
1]; the gripper closes at −1 and opens at +1, the opposite of LIBERO. 30 steps a second.
"""

from __future__ import annotations

import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mode_datasets.convert.assemble import Slot, assemble, check_declared, features_of, task_of
from mode_datasets.convert.description import provenance_of
from mode_datasets.convert.pickled_npy import load_object
from mode_datasets.convert.source import KeyMap, Source, SourceOptions, arrays_of
from mode_policy.convention import Convention, Orientation
from mode_policy.errors import DataError, did_you_mean
from mode_policy.types import ACTION, ENVIRONMENT_STATE, IMAGE_PREFIX, STATE, Episode, Feature, Task

LOOKS_FOR = (
    "CALVIN: a folder with ep_start_end_ids.npy and episode_*.npz, or one with training/ that has them"
)

_POSE = ("x", "y", "z", "rx", "ry", "rz")
_BLOCKS = tuple(f"{colour}_block_{axis}" for colour in ("red", "blue", "pink") for axis in _POSE)
KNOWN = {
    "rel_actions": Feature(shape=(7,), names=(*_POSE, "gripper"), unit="m, rad"),
    "actions": Feature(shape=(7,), names=(*_POSE, "gripper"), unit="m, rad"),
    "robot_obs": Feature(
        shape=(15,),
        names=(*_POSE, "gripper_width", *(f"joint_{i}" for i in range(1, 8)), "gripper_action"),
        unit="m, rad",
        angles=(3, 4, 5),
    ),
    "scene_obs": Feature(
        shape=(24,),
        names=("door", "drawer", "button", "switch", "lightbulb", "green_light", *_BLOCKS),
        unit="m, rad",
        angles=tuple(6 + 6 * block + axis for block in range(3) for axis in (3, 4, 5)),
    ),
}

RELATIVE = Convention(
    action_kind="delta",
    action_frame="world",
    action_scale=(1 / 50,) * 3 + (1 / 20,) * 3 + (1.0,),
    gripper="plus_opens",
    fps=30.0,
)
ABSOLUTE = Convention(action_kind="absolute", action_frame="world", gripper="plus_opens", fps=30.0)

_KEYS = {
    STATE: ("robot_obs",),
    ENVIRONMENT_STATE: ("scene_obs",),
    f"{IMAGE_PREFIX}static": ("rgb_static",),
    f"{IMAGE_PREFIX}gripper": ("rgb_gripper",),
}


def folder_of(path: Path, split: str | None = None) -> Path:
    """Return the folder that holds the steps: ``path`` itself, or its split.

    Raises:
        DataError: if there is no such split.
    """
    if split is None and (path / "ep_start_end_ids.npy").is_file():
        return path
    folder = path / (split or "training")
    if not (folder / "ep_start_end_ids.npy").is_file():
        known = [p.parent.name for p in path.glob("*/ep_start_end_ids.npy")]
        raise DataError(f"{path} has no split {folder.name!r}.{did_you_mean(folder.name, known)}")
    return folder


def recognise(path: Path) -> str | None:
    """Return why this is CALVIN's format, or None."""
    for folder in (path, path / "training", path / "validation"):
        if (folder / "ep_start_end_ids.npy").is_file():
            return f"{folder.name}/ep_start_end_ids.npy"
    return None


@dataclass(frozen=True)
class Span:
    """Steps ``first`` … ``last``, both included, and what is done in them."""

    first: int
    last: int
    task: Task


@dataclass(frozen=True, kw_only=True)
class CalvinSource(Source):
    """Spans of CALVIN's recordings.

    Attributes:
        spans: In the order of the annotations.
        slots: The arrays of a step, from the first one.
        prefix: Path of a step's file before its number; ``digits`` is the number's width.
    """

    parallel = True

    spans: tuple[Span, ...]
    keys: KeyMap
    slots: dict[str, Slot]
    prefix: str
    digits: int
    orientation: Orientation
    episode_bytes: int

    @property
    def num_episodes(self) -> int:
        """Number of spans."""
        return len(self.spans)

    def name(self, index: int) -> str:
        """Return the span's steps."""
        span = self.spans[index]
        return f"steps {span.first} … {span.last}"

    def episode(self, index: int) -> Episode:
        """Read one span."""
        span = self.spans[index]
        steps = span.last - span.first + 1
        names = arrays_of(self.keys)
        check_declared(self.name(index), steps * sum(self.slots[n].bytes for n in names), self.episode_bytes)
        arrays = {n: np.empty((steps, *self.slots[n].shape), self.slots[n].dtype) for n in names}
        for i in range(steps):
            read_step(
                Path(f"{self.prefix}{span.first + i:0{self.digits}d}.npz"),
                {n: x[i] for n, x in arrays.items()},
            )
        return assemble(self.keys, arrays, span.task, self.orientation)


def read_step(path: Path, into: dict[str, np.ndarray]) -> None:
    """Read arrays of a step's file into arrays of the expected type and shape; nothing else is read.

    Raises:
        DataError: if one is missing, damaged, of another type or shape, or an object.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            for name, target in into.items():
                with archive.open(f"{name}.npy") as file:
                    shape, fortran, dtype = _header(file)
                    if dtype.hasobject:
                        raise DataError(
                            f"{name!r} of {path.name} holds objects; objects and pickles can run code"
                        )
                    if shape != target.shape or fortran or dtype.itemsize > 8:
                        raise DataError(
                            f"{name!r} of {path.name} is {dtype} {shape}; others are {target.shape}"
                        )
                    data = file.read(target.size * dtype.itemsize)
                    target[...] = np.frombuffer(data, dtype).reshape(shape)
    except FileNotFoundError:
        raise DataError(f"{path.name} is missing; copy or download it again") from None
    except KeyError as error:
        raise DataError(f"{path.name} lacks an array ({error.args[0]})") from None
    except DataError:
        raise
    except Exception as error:  # unpacking raises whatever it likes
        raise DataError(
            f"{path.name} is damaged or cut short ({error}); copy or download it again"
        ) from error


def _header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Read an array's header: shape, whether it is in Fortran's order, and type."""
    version = np.lib.format.read_magic(file)
    readers = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}
    if version[0] not in readers:
        raise ValueError(f"npy version {version}")
    shape, fortran, dtype = readers[version[0]](file)
    return shape, bool(fortran and len(shape) > 1), dtype


def step_slots(path: Path) -> dict[str, Slot]:
    """Describe the arrays of a step's file without reading them.

    Raises:
        DataError: if the file is missing or damaged.
    """
    found = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.namelist():
                with archive.open(member) as file:
                    shape, _, dtype = _header(file)
                found[member.removesuffix(".npy")] = Slot(shape, dtype.name)
    except FileNotFoundError:
        raise DataError(f"{path} is missing; copy or download it again") from None
    except Exception as error:  # unpacking raises whatever it likes
        raise DataError(f"{path} is damaged or cut short ({error}); copy or download it again") from error
    return found


def open_calvin(path: Path, options: SourceOptions) -> CalvinSource:
    """Open a split.

    Raises:
        DataError: if files are missing or damaged, or annotations do not fit.
    """
    folder = folder_of(path, options.split)
    notes: list[str] = []
    spans = _spans(folder, options.instruction, notes)
    first = sorted(p for p in folder.glob("episode_*.npz") if re.fullmatch(r"episode_\d+", p.stem))
    if not first:
        raise DataError(f"{folder} has no episode_<number>.npz; copy or download it again")
    available = step_slots(first[0])
    action = "actions" if options.absolute else "rel_actions"
    keys = options.keys or {key: names for key, names in _KEYS.items() if names[0] in available} | {
        ACTION: (action,)
    }
    return CalvinSource(
        path=path,
        features=features_of(keys, available, KNOWN, str(folder)),
        convention=options.convention(_convention(keys.get(ACTION, ()))),
        provenance=provenance_of(path, "CALVIN", options.licence),
        tasks=tuple(dict.fromkeys(span.task for span in spans)),
        notes=tuple(notes),
        spans=tuple(spans),
        keys=keys,
        slots=available,
        prefix=str(folder / "episode_"),
        digits=len(first[0].stem) - len("episode_"),
        orientation=options.orientation or "upright",
        episode_bytes=options.episode_bytes,
    )


def _convention(names: tuple[str, ...]) -> Convention:
    known = {"rel_actions": RELATIVE, "actions": ABSOLUTE}
    return known[names[0]] if len(names) == 1 and names[0] in known else Convention(fps=30.0)


def _spans(folder: Path, instruction: str | None, notes: list[str]) -> list[Span]:
    places = (folder / "lang_annotations" / "auto_lang_ann.npy", folder / "auto_lang_ann.npy")
    annotations = next((place for place in places if place.is_file()), None)
    if annotations is None:
        return _play(folder, instruction, notes)
    data = load_object(annotations)
    try:
        texts = data["language"]["ann"]
        spans = [(int(first), int(last)) for first, last in data["info"]["indx"]]
        if len(texts) != len(spans) or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"{len(texts)} texts for {len(spans)} spans")
        if bad := [span for span in spans if not 0 <= span[0] <= span[1]]:
            raise ValueError(f"span {bad[0]}")
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{annotations} is not CALVIN's ({type(error).__name__}: {error}); download it again"
        ) from error
    return [Span(first, last, task_of(text)) for (first, last), text in zip(spans, texts, strict=True)]


def _play(folder: Path, instruction: str | None, notes: list[str]) -> list[Span]:
    path = folder / "ep_start_end_ids.npy"
    try:
        ids = np.array(
            np.load(path, mmap_mode="r", allow_pickle=False)
        )  # mapped: the declared size is checked
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path} is damaged ({error}); download it again") from error
    if ids.dtype.kind not in "iu" or ids.ndim != 2 or ids.shape[1] != 2 or (ids[:, 0] > ids[:, 1]).any():
        raise DataError(
            f"{path} holds {ids.dtype} {ids.shape}; it must be int (recordings, 2), first and last step"
        )
    notes.append("there are no language annotations, so each recording of play is an episode")
    task = Task(name="play", instruction=instruction or "play")
    return [Span(int(first), int(last), task) for first, last in ids]
