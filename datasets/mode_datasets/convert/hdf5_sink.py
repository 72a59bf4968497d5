"""Writing HDF5 in robomimic's arrangement, and in LIBERO's, which puts one file per task into a folder.

An HDF5 file that was being written when its writer was killed cannot be trusted, so these conversions start
anew. ``next_obs`` and simulator states are not written: the first doubles the size, the second is not known.
"""

from __future__ import annotations

import io
import json
import re
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mode_datasets.convert.description import NAME
from mode_datasets.convert.sink import PartialSink, SinkOptions
from mode_datasets.convert.source import KeyMap
from mode_datasets.schema import upright
from mode_policy.convention import Convention, Orientation
from mode_policy.errors import ConfigError, DataError
from mode_policy.types import (
    ACTION,
    ENVIRONMENT_STATE,
    IMAGE_PREFIX,
    STATE,
    Episode,
    Features,
    Task,
    feature_kind,
)

if TYPE_CHECKING:
    import h5py

#: LIBERO's parts of the state, where a store's state has their dimensions.
_LIBERO_STATE = (("ee_states", 0, 6), ("gripper_states", 6, 8), ("ee_pos", 0, 3), ("ee_ori", 3, 6))
_LIBERO_STATE_NAMES = ("x", "y", "z", "rx", "ry", "rz", "left_finger", "right_finger")


class RobomimicSink(PartialSink):
    """Write one HDF5 file with all demonstrations; images upright, instructions in ``ep_meta``.

    Raises:
        ConfigError: if h5py is not installed.
    """

    orientation: Orientation = "upright"

    def __init__(self, path: Path, options: SinkOptions, format: str = "robomimic") -> None:
        super().__init__(path, options, format)
        try:
            import h5py  # noqa: F401
        except ImportError as error:
            raise ConfigError("HDF5 files need: pip install 'mode-policy[hdf5]'") from error
        self.keys = self._names(options.features)
        self._files: dict[Path, h5py.File] = {}
        self._raw: list[_SteadyFile] = []
        self._open = ExitStack()

    def _names(self, features: Features) -> KeyMap:
        """Return the array of each feature."""
        return {key: (_robomimic_name(key),) for key in features}

    def _begin(self) -> None:
        pass

    def _file(self, task: Task) -> h5py.File:
        return self._opened(self.partial)

    def _opened(self, path: Path) -> h5py.File:
        import h5py

        if path not in self._files:
            self._raw.append(self._open.enter_context(_SteadyFile(path, "w+")))
            self._files[path] = self._open.enter_context(h5py.File(self._raw[-1], "w"))
            self._files[path].create_group("data")
        return self._files[path]

    def _write(self, episode: Episode) -> None:
        data = self._file(episode.task)["data"]
        demo = data.create_group(f"demo_{len(data)}")
        steps = len(episode)
        for key in self.options.features:
            for name, x in self._arrays(key, episode.arrays[key]):
                demo.create_dataset(name if key == ACTION else f"obs/{name}", data=x)
        last = np.zeros(steps, np.uint8)
        last[-1] = 1
        demo.create_dataset("dones", data=last)
        demo.create_dataset("rewards", data=last)
        demo.attrs["num_samples"] = steps
        demo.attrs["seed"] = episode.seed
        demo.attrs["ep_meta"] = json.dumps({"lang": episode.task.instruction, "task": episode.task.name})
        data.attrs["total"] = int(data.attrs.get("total", 0)) + steps
        self._check_written()

    def _arrays(self, key: str, x: np.ndarray) -> list[tuple[str, np.ndarray]]:
        x = upright(x, self.orientation) if feature_kind(key) == "image" else x
        return [(self.keys[key][0], x)]

    def _complete(self) -> None:
        for path, file in self._files.items():
            data = file["data"]
            for name, value in self._about(path).items():
                data.attrs[name] = value
            data.attrs["num_demos"] = len(data)
            data.attrs[NAME] = self.describe(self.keys)
        for file in self._files.values():
            file.flush()
        self._check_written()
        self._close()
        self._check_written()

    def _check_written(self) -> None:
        for file in self._raw:
            if file.failure is not None:
                raise file.failure

    def _about(self, path: Path) -> dict[str, Any]:
        """Return attributes of ``data``."""
        return {"env_args": json.dumps(_settings("unknown", self.options.convention))}

    def _close(self) -> None:
        self._files.clear()
        self._open.close()


class _SteadyFile(io.FileIO):
    """A file that notes a failing write instead of raising: HDF5 crashes if it cannot close a file."""

    failure: OSError | None = None

    def write(self, data: Any) -> int:
        rest = memoryview(data).cast("B")
        size = len(rest)
        try:
            while len(rest):
                rest = rest[super().write(rest) :]
        except OSError as error:
            self.failure = self.failure or error
        return size

    def truncate(self, size: int | None = None) -> int:
        try:
            return super().truncate(size)
        except OSError as error:
            self.failure = self.failure or error
            return size or 0


class LiberoSink(RobomimicSink):
    """Write a folder with one HDF5 file per task, as LIBERO does; images upside down.

    Raises:
        DataError: if what the numbers mean is known, and is not what LIBERO's readers take them for.
    """

    orientation: Orientation = "upside_down"

    def __init__(self, path: Path, options: SinkOptions) -> None:
        _check_libero(options.convention)
        self._splits = options.features.get(STATE) and options.features[STATE].names == _LIBERO_STATE_NAMES
        super().__init__(path, options, "libero")
        self._task_of: dict[Path, Task] = {}

    def _names(self, features: Features) -> KeyMap:
        names = {key: (_libero_name(key),) for key in features}
        return names | {STATE: ("ee_states", "gripper_states")} if self._splits else names

    def _begin(self) -> None:
        self.partial.mkdir()

    def _file(self, task: Task) -> h5py.File:
        path = self.partial / f"{re.sub(r'[^A-Za-z0-9._-]+', '_', task.name)}_demo.hdf5"
        other = self._task_of.setdefault(path, task)
        if other != task:
            raise DataError(
                f"tasks {other.name!r} and {task.name!r} would go to one file {path.name}; rename one"
            )
        return self._opened(path)

    def _arrays(self, key: str, x: np.ndarray) -> list[tuple[str, np.ndarray]]:
        if key == STATE and self._splits:
            return [(name, x[:, start:end]) for name, start, end in _LIBERO_STATE]
        return super()._arrays(key, x)

    def _about(self, path: Path) -> dict[str, Any]:
        task = self._task_of[path]
        return {
            "env_args": json.dumps(_settings(task.name, self.options.convention)),
            "env_name": task.name,
            "problem_info": json.dumps({"problem_name": task.name, "language_instruction": task.instruction}),
            "bddl_file_name": f"{task.name}.bddl",
            "macros_image_convention": "opengl",
        }


def _check_libero(convention: Convention) -> None:
    if convention.gripper not in ("unknown", "none", "plus_closes"):
        raise DataError(
            f"the gripper of these demonstrations is {convention.gripper!r}, and LIBERO's readers take +1 "
            "for closed; write them with --to robomimic, which takes any"
        )
    if convention.action_kind not in ("unknown", "delta"):
        raise DataError(
            f"the actions of these demonstrations are {convention.action_kind}, and LIBERO's readers take "
            "them for deltas; write them with --to robomimic, which takes any"
        )


def _settings(environment: str, convention: Convention) -> dict[str, Any]:
    """Return ``env_args``, which robomimic's readers demand; ``type`` 1 is robosuite's."""
    return {"env_name": environment, "type": 1, "env_kwargs": {"control_freq": convention.fps}}


def _robomimic_name(key: str) -> str:
    if key == ACTION:
        return "actions"
    if feature_kind(key) == "image":
        return key.removeprefix(IMAGE_PREFIX) + "_image"
    return "object" if key == ENVIRONMENT_STATE else key.removeprefix("observation.")


def _libero_name(key: str) -> str:
    if feature_kind(key) == "image":
        return key.removeprefix(IMAGE_PREFIX) + "_rgb"
    return _robomimic_name(key)
