"""HDF5 files in robomimic's arrangement, which LIBERO shares: ``data/demo_<i>/{actions, obs/<name>, …}``.

Files are read with suspicion: only hard links to plain arrays inside the file are followed, so a file cannot
make its reader open others, and declared sizes are checked before anything is read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mode_datasets.convert.assemble import Slot, assemble, check_declared
from mode_datasets.convert.source import KeyMap, Source, arrays_of
from mode_policy.convention import Orientation
from mode_policy.errors import ConfigError, DataError, did_you_mean
from mode_policy.types import Episode, Task

if TYPE_CHECKING:
    import h5py


#: What h5py raises at damaged structures.
_DAMAGE = (OSError, RuntimeError, KeyError, ValueError)


@contextmanager
def open_hdf5(path: Path) -> Iterator[h5py.File]:
    """Open a file for reading; whatever h5py raises while it is open is damage.

    Raises:
        ConfigError: if h5py is not installed.
        DataError: if it is no HDF5 file, was cut short, or is damaged.
    """
    try:
        import h5py
    except ImportError as error:
        raise ConfigError("HDF5 files need: pip install 'mode-policy[hdf5]'") from error
    again = "copy or download it again"
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise DataError(
            f"{path} cannot be opened ({error}): it is cut short, still being written, or not HDF5; {again}"
        ) from error
    with file:
        try:
            yield file
        except _DAMAGE as error:
            raise DataError(f"{path.name} is damaged ({error}); {again}") from error


def member(group: h5py.Group, name: str, where: str) -> h5py.Group | h5py.Dataset:
    """Return what a path below a group names.

    Raises:
        DataError: if it is absent, or a link that leaves the file.
    """
    import h5py

    for part in name.split("/"):
        link = group.get(part, getlink=True)
        if link is None:
            raise DataError(f"{where} has no {name!r}.{did_you_mean(part, group)}")
        if not isinstance(link, h5py.HardLink):
            raise DataError(
                f"{name!r} of {where} is a link to elsewhere, which is not followed; copy the data in"
            )
        group = group[part]
    return group


def slot(dataset: Any, name: str, where: str) -> Slot:
    """Describe an array without reading it.

    Raises:
        DataError: if it is not an array of plain numbers with a leading axis, or its values lie in other
            files.
    """
    import h5py

    if not isinstance(dataset, h5py.Dataset) or dataset.ndim < 1:
        raise DataError(f"{name!r} of {where} is no array over time")
    if dataset.dtype.kind not in "fiub":
        raise DataError(
            f"{name!r} of {where} holds {dataset.dtype}; only plain numbers are read, because objects and "
            "pickles can run code"
        )
    if dataset.external or dataset.is_virtual:
        raise DataError(f"{name!r} of {where} keeps its values in other files; write it as one file")
    return Slot(dataset.shape[1:], dataset.dtype.name)


def slots(demo: h5py.Group, where: str) -> dict[str, Slot]:
    """Describe the arrays of a demonstration.

    Returns:
        By name: ``actions``; those below ``obs``; and those beside it with a leading slash, as ``/rewards``.

    Raises:
        DataError: if there is no ``actions`` or no ``obs``.
    """
    import h5py

    found = {"actions": slot(member(demo, "actions", where), "actions", where)}
    observations = member(demo, "obs", where)
    if not isinstance(observations, h5py.Group):
        raise DataError(f"'obs' of {where} is no group of arrays")
    for name in [*observations, *(f"/{name}" for name in demo if name not in ("actions", "obs"))]:
        array = member(demo, place(name), where)
        if isinstance(array, h5py.Dataset) and array.ndim:
            # Whatever is no number is refused when a feature needs it.
            found[name] = Slot(array.shape[1:], array.dtype.name)
    return found


def place(name: str) -> str:
    """Return where in a demonstration the array is that `slots` lists under a name."""
    if name.startswith("/"):
        return name[1:]
    return name if name == "actions" else f"obs/{name}"


def demonstrations(file: h5py.File, path: Path) -> list[str]:
    """Return the names of a file's demonstrations, ``demo_2`` before ``demo_10``.

    Raises:
        DataError: if there are none.
    """
    names = [name for name in member(file, "data", str(path)) if re.fullmatch(r"demo_\d+", str(name))]
    if not names:
        raise DataError(f"'data' of {path} holds no demonstrations demo_0, demo_1, …; convert another file")
    return sorted(names, key=lambda name: int(name[5:]))


def seed_of(data: h5py.Group, name: str, path: Path) -> int:
    """Return the seed that one of our own files notes at a demonstration, or -1."""
    seed = member(data, name, str(path)).attrs.get("seed", -1)
    return int(seed) if isinstance(seed, int | np.integer) else -1


def json_attribute(group: h5py.Group, name: str) -> dict[str, Any]:
    """Return a JSON attribute, or an empty mapping if it is absent or damaged."""
    try:
        value = json.loads(group.attrs[name])
    except (KeyError, TypeError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def text_attribute(group: h5py.Group, name: str) -> str:
    """Return a text attribute, or an empty text."""
    value = group.attrs.get(name, "")
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


@dataclass(frozen=True, kw_only=True)
class Demo:
    """One demonstration: its file, its name in it, its task and seed."""

    file: Path
    name: str
    task: Task
    seed: int = -1


@dataclass(frozen=True, kw_only=True)
class Hdf5Source(Source):
    """Demonstrations of one file or several.

    Attributes:
        demos: In order.
        keys: Which arrays become which feature, by the names of `slots`.
        orientation: How images are stored.
        episode_bytes: The most that an episode may declare.
    """

    demos: tuple[Demo, ...]
    keys: KeyMap
    orientation: Orientation
    episode_bytes: int

    @property
    def num_episodes(self) -> int:
        """Number of demonstrations."""
        return len(self.demos)

    def name(self, index: int) -> str:
        """Return file and demonstration."""
        return f"{self.demos[index].file.name}/{self.demos[index].name}"

    def episode(self, index: int) -> Episode:
        """Read one demonstration."""
        demo = self.demos[index]
        where = self.name(index)
        with open_hdf5(demo.file) as file:
            group = member(file, f"data/{demo.name}", str(demo.file))
            arrays = {}
            for name in arrays_of(self.keys):
                arrays[name] = member(group, place(name), where)
            declared = sum(slot(x, name, where).bytes * len(x) for name, x in arrays.items())
            declared = max(
                [declared, *(int(np.prod(x.chunks)) * x.dtype.itemsize for x in arrays.values() if x.chunks)]
            )
            check_declared(where, declared, self.episode_bytes)
            episode = assemble(
                self.keys, lambda name: np.asarray(arrays[name][()]), demo.task, self.orientation, demo.seed
            )
            samples = group.attrs.get("num_samples", len(episode))
            if int(samples) != len(episode):
                raise DataError(f"it has {len(episode)} steps, but says num_samples {samples}")
            return episode
