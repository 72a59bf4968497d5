"""RLDS, the format of Open X-Embodiment: episodes of steps in TFRecord files, read by `tensorflow_datasets`.

Needs the extra ``oxe``, which brings TensorFlow. The format says neither the control rate nor what actions
mean; both are given on the command line. Episodes are read in order, one stream over the files.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mode_datasets.convert.assemble import Slot, assemble, check_declared, features_of, task_of
from mode_datasets.convert.description import provenance_of
from mode_datasets.convert.source import KeyMap, Source, SourceOptions, arrays_of
from mode_policy.convention import Convention, Orientation
from mode_policy.errors import ConfigError, DataError, did_you_mean
from mode_policy.types import ACTION, IMAGE_PREFIX, Episode

LOOKS_FOR = "RLDS: a folder with dataset_info.json and features.json (the version's folder, such as 1.0.0)"

#: Where Open X-Embodiment's data sets keep the instruction of a step.
_INSTRUCTIONS = (
    "language_instruction",
    "observation/natural_language_instruction",
    "natural_language_instruction",
)


def recognise(path: Path) -> str | None:
    """Return why this is RLDS, or None."""
    if not (path / "dataset_info.json").is_file() or not (path / "features.json").is_file():
        return None
    try:
        names = json.loads((path / "features.json").read_text())["featuresDict"]["features"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return "dataset_info.json, and features.json with 'steps'" if "steps" in names else None


@dataclass(kw_only=True)
class _Stream:
    """An open iterator over episodes, and the number of the next one."""

    episodes: Iterator[Any] | None = None
    next: int = -1


@dataclass(frozen=True, kw_only=True)
class RldsSource(Source):
    """Episodes of one split.

    Attributes:
        split: Its name.
        count: Episodes in it.
        keys: Which arrays of a step become which feature; below ``observation`` the names have no prefix.
        text: Path of the instruction in a step, or empty.
        instruction: For all episodes, if it is given.
    """

    split: str
    count: int
    keys: KeyMap
    slots: dict[str, Slot]
    text: str
    instruction: str | None
    orientation: Orientation
    episode_bytes: int
    stream: _Stream = field(default_factory=_Stream, compare=False)

    @property
    def num_episodes(self) -> int:
        """Number of episodes."""
        return self.count

    def __getstate__(self) -> dict[str, Any]:
        """Leave the open stream behind."""
        return self.__dict__ | {"stream": _Stream()}

    def episode(self, index: int) -> Episode:
        """Read one episode; in order is fast."""
        if self.stream.next != index or self.stream.episodes is None:
            dataset = builder_of(self.path).as_dataset(split=f"{self.split}[{index}:]", shuffle_files=False)
            self.stream.episodes = iter(dataset)
        self.stream.next = index + 1
        names = arrays_of(self.keys)
        step_bytes = sum(self.slots[name].bytes for name in names)
        found: dict[str, list[np.ndarray]] = {name: [] for name in names}
        text = self.instruction or ""
        try:
            for step in next(self.stream.episodes)["steps"]:
                check_declared(self.name(index), step_bytes * (len(found[names[0]]) + 1), self.episode_bytes)
                for name in names:
                    found[name].append(_leaf(step, name).numpy())
                if not text and self.text:
                    text = _leaf(step, self.text).numpy().decode(errors="replace").strip()
            arrays = {name: np.stack(x) for name, x in found.items()}
        except DataError:
            raise
        except Exception as error:  # TensorFlow's errors share no base class with Python's
            self.stream.episodes = None
            raise DataError(f"it cannot be read ({error}); download the data set again") from error
        if not text:
            raise DataError("it does not say what it does; give it with --instruction")
        return assemble(self.keys, arrays, task_of(text), self.orientation)


def builder_of(path: Path) -> Any:
    """Return the `tensorflow_datasets` builder of a folder.

    Raises:
        ConfigError: if it is not installed.
        DataError: if the folder's metadata are damaged.
    """
    try:
        import tensorflow_datasets
    except ImportError as error:
        raise ConfigError(
            "RLDS needs tensorflow-datasets and TensorFlow: pip install 'mode-policy[oxe]'"
        ) from error
    try:
        return tensorflow_datasets.builder_from_directory(str(path))
    except Exception as error:  # it raises whatever its parsers do
        raise DataError(
            f"the metadata of {path} are damaged ({error}); download the data set again"
        ) from error


def open_rlds(path: Path, options: SourceOptions) -> RldsSource:
    """Open a split, ``train`` by default.

    Raises:
        ConfigError: if `tensorflow_datasets` is not installed.
        DataError: if there is no such split, or an array is missing.
    """
    builder = builder_of(path)
    split = options.split or "train"
    if split not in builder.info.splits:
        raise DataError(f"{path} has no split {split!r}.{did_you_mean(split, builder.info.splits)}")
    slots, texts = _slots(builder.info.features["steps"].feature)
    keys = options.keys or default_keys(slots)
    text = next((name for name in _INSTRUCTIONS if name in texts), "")
    if not text and options.instruction is None:
        raise DataError(f"{path} does not say what its demonstrations do; give it with --instruction")
    return RldsSource(
        path=path,
        features=features_of(keys, slots, {}, str(path)),
        convention=options.convention(Convention()),
        provenance=provenance_of(path, f"RLDS {builder.info.name}", options.licence),
        split=split,
        count=builder.info.splits[split].num_examples,
        keys=keys,
        slots=slots,
        text=text,
        instruction=options.instruction,
        orientation=options.orientation or "upright",
        episode_bytes=options.episode_bytes,
    )


def default_keys(slots: dict[str, Slot]) -> KeyMap:
    """Return each array of the observation under its own name, and the action.

    Raises:
        DataError: if the action has parts, whose order only the user knows.
    """
    if "action" not in slots:
        parts = [name for name in slots if name.startswith("action/")]
        raise DataError(
            f"the action consists of {', '.join(parts) or 'nothing'}; say in which order they are joined, "
            f"such as --key action={'+'.join(parts) or '…'}, and which observations are taken"
        )
    keys: dict[str, tuple[str, ...]] = {}
    for name, slot in slots.items():
        if name.startswith("action"):
            continue
        if slot.is_image and slot.dtype == "uint8":
            keys[IMAGE_PREFIX + name] = (name,)
        elif len(slot.shape) == 1 and np.dtype(slot.dtype).kind == "f":
            keys[f"observation.{name}"] = (name,)
    return keys | {ACTION: ("action",)}


def _slots(step: Any) -> tuple[dict[str, Slot], set[str]]:
    """Describe the numbers of a step (those of the observation without their prefix), and list its texts."""
    slots: dict[str, Slot] = {}
    texts: set[str] = set()

    def walk(feature: Any, path: str) -> None:
        if hasattr(feature, "items"):
            for name, part in sorted(feature.items()):  # files list them in any order
                walk(part, f"{path}/{name}" if path else name)
            return
        dtype, shape = np.dtype(feature.np_dtype), feature.shape
        if dtype.kind in "OSU":
            texts.add(path)
        elif None not in shape and not path.startswith("is_"):
            slots[path.removeprefix("observation/")] = Slot(tuple(shape), dtype.name)

    walk(step, "")
    return slots, texts


def _leaf(step: Any, name: str) -> Any:
    """Return what a path names in a step, or in its observation; names of features may hold slashes."""
    for start in (step, step["observation"]):
        if (value := _below(start, name)) is not None:
            return value
    raise DataError(f"a step lacks {name!r}")


def _below(value: Any, path: str) -> Any:
    if not hasattr(value, "keys"):
        return None
    if path in value:
        return value[path]
    parts = ((value[key], path.removeprefix(f"{key}/")) for key in value if path.startswith(f"{key}/"))
    return next((found for part in parts if (found := _below(*part)) is not None), None)
