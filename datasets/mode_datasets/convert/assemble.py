"""From the arrays of a format to our features: which becomes which, joined, cast, and images upright.

Legend: T steps of an episode, D dimensions of a vector, H, W height and width of an image.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mode_datasets import schema
from mode_datasets.convert.source import KeyMap, arrays_of, split_part
from mode_policy.convention import Orientation
from mode_policy.errors import DataError, did_you_mean
from mode_policy.types import Episode, Feature, Features, Task, feature_kind


@dataclass(frozen=True)
class Slot:
    """One array of a source: shape of a step, and NumPy name of its type."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def bytes(self) -> int:
        """Bytes of one step."""
        return int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize

    @property
    def is_image(self) -> bool:
        """Whether a step looks like an RGB image: ``(H, W, 3)`` of uint8, or of floats that hold 0…255."""
        return len(self.shape) == 3 and self.shape[-1] == 3 and np.dtype(self.dtype).kind in "uf"


def features_of(
    keys: KeyMap, slots: Mapping[str, Slot], known: Mapping[str, Feature], where: str
) -> Features:
    """Describe the features that arrays become.

    Args:
        keys: Which arrays become which feature.
        slots: The arrays that there are.
        known: What is known of an array's dimensions: names, unit, angles.
        where: What messages call the source.

    Raises:
        DataError: if an array is missing or does not hold numbers, or the features are malformed.
    """
    features: Features = {}
    for key, names in keys.items():
        arrays = [split_part(name) for name in names]
        for name, _ in arrays:
            if name not in slots:
                raise DataError(f"{where} has no {name!r}, which {key!r} needs.{did_you_mean(name, slots)}")
            if np.dtype(slots[name].dtype).kind not in "fiub":
                raise DataError(
                    f"{name!r} of {where} holds {slots[name].dtype}; only plain numbers are read, because "
                    "objects and pickles can run code. Choose other arrays with --key"
                )
        if feature_kind(key) == "image":
            features[key] = _image_feature(key, names, slots, where)
        else:
            features[key] = join_features(
                [
                    part_of(replace(known.get(name, Feature(shape=())), shape=slots[name].shape), part)
                    for name, part in arrays
                ]
            )
    schema.check_features(features)
    return features


def _image_feature(key: str, names: tuple[str, ...], slots: Mapping[str, Slot], where: str) -> Feature:
    slot = slots[split_part(names[0])[0]]
    if len(names) > 1 or names[0] not in slots or not slot.is_image:
        raise DataError(
            f"{'+'.join(names)} of {where} is {slot.dtype} {slot.shape} and cannot become {key!r}; images "
            "are one array of uint8 (H, W, 3) a step"
        )
    return Feature(shape=slot.shape, dtype="uint8")


def part_of(feature: Feature, part: slice) -> Feature:
    """Describe some numbers of an array, whose description has its shape.

    Raises:
        DataError: if there are none.
    """
    size = int(np.prod(feature.shape))
    chosen = range(size)[part]
    if not chosen:
        raise DataError(f"a --key chooses [{part.start}:{part.stop}] of an array of {size} numbers: none")
    return replace(
        feature,
        shape=(len(chosen),),
        names=tuple(feature.names[i] for i in chosen if i < len(feature.names)),
        angles=tuple(at for at, i in enumerate(chosen) if i in feature.angles),
    )


def join_features(parts: Sequence[Feature]) -> Feature:
    """Describe arrays that are joined."""
    widths = [part.shape[0] for part in parts]
    starts = np.cumsum([0, *widths[:-1]])
    named = all(len(part.names) == width for part, width in zip(parts, widths, strict=True))
    units = [part.unit for part in parts]
    unit = units[0] if len(set(units)) == 1 else ", ".join(dict.fromkeys(filter(None, units)))
    return Feature(
        shape=(sum(widths),),
        names=tuple(name for part in parts for name in part.names) if named else (),
        unit=unit,
        angles=tuple(int(start) + i for start, part in zip(starts, parts, strict=True) for i in part.angles),
    )


def assemble(
    keys: KeyMap,
    arrays: Mapping[str, np.ndarray] | Callable[[str], np.ndarray],
    task: Task,
    orientation: Orientation,
    seed: int = -1,
) -> Episode:
    """Join, cast and turn the arrays of one episode.

    Args:
        keys: Which arrays become which feature.
        arrays: ``(T, ...)`` by name, or a function that reads one.
        task: Of the episode.
        orientation: How images are stored.
        seed: Of the environment's reset, or -1.

    Raises:
        DataError: if lengths differ, or a value is no number or no colour.
    """
    read = arrays if callable(arrays) else arrays.__getitem__
    found = {name: read(name) for name in arrays_of(keys)}
    lengths = {name: len(x) for name, x in found.items()}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{name}: {n}" for name, n in lengths.items())
        raise DataError(f"its arrays differ in length ({listed})")
    return Episode(
        arrays={
            key: np.ascontiguousarray(schema.upright(images(found[names[0]], names[0]), orientation))
            if feature_kind(key) == "image"
            else vectors([(found[name], part) for name, part in map(split_part, names)])
            for key, names in keys.items()
        },
        task=task,
        seed=seed,
    )


def vectors(parts: Iterable[tuple[np.ndarray, slice]]) -> np.ndarray:
    """Join parts of arrays ``(T, ...)`` of any number type to float32 ``(T, D)``; several axes are flattened
    in C order.

    Raises:
        DataError: if one does not hold numbers.
    """
    flat = []
    for x, part in parts:
        if x.dtype.kind not in "fiub":
            raise DataError(f"an array of {x.dtype} stands where numbers are expected")
        with np.errstate(over="ignore"):  # what becomes infinite is refused afterwards
            flat.append(x.reshape(len(x), -1)[:, part].astype(np.float32))
    return flat[0] if len(flat) == 1 else np.concatenate(flat, axis=1)


def images(x: np.ndarray, name: str) -> np.ndarray:
    """Return images as uint8 ``(T, H, W, 3)``; floats must hold 0…255.

    Raises:
        DataError: if values are outside 0…255, or are scaled to 0…1.
    """
    if x.dtype == np.uint8 or not x.size:
        return x.astype(np.uint8, copy=False)
    if x.dtype.kind != "f":
        raise DataError(f"images {name!r} are {x.dtype}; they must be uint8")
    low, high = x.min(), x.max()
    if not (low >= 0 and high <= 255) or 0 < high <= 1:
        raise DataError(f"images {name!r} have values {low:g} … {high:g}; they must be 0 … 255")
    return np.rint(x).astype(np.uint8)


def check_declared(what: str, size: int, limit: int) -> None:
    """Refuse what would take too much memory, before any of it is read.

    Raises:
        DataError: if ``size`` bytes are more than ``limit``.
    """
    if size > limit:
        raise DataError(
            f"{what} declares {size / 2**30:.3g} GiB, more than the {limit / 2**30:.3g} GiB allowed for one "
            "episode; if that is right, allow more with --episode-gib"
        )


def task_of(instruction: str, name: str = "") -> Task:
    """Return the task of an instruction, with a short name (unless given) that no other instruction gets."""
    short = re.sub(r"[^a-z0-9]+", "-", instruction.lower()).strip("-")[:60].strip("-")
    if short.replace("-", " ") != instruction:
        # What the short name lost, such as a full stop, may be all that tells two instructions apart.
        short = f"{short or 'task'}-{hashlib.sha256(instruction.encode()).hexdigest()[:6]}"
    return Task(name=name or short, instruction=instruction)
