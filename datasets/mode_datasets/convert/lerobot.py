"""LeRobotDataset v3, with images in Parquet or as videos, through LeRobot's own metadata and video decoder.

Features keep their names. LeRobot says nothing about what actions mean, so the convention has the frame rate
only, unless the data set was written by this package. Nothing is ever downloaded here: an incomplete data set
is refused.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mode_datasets.convert.assemble import assemble, check_declared, join_features, part_of, task_of
from mode_datasets.convert.description import Description, described_task, refine
from mode_datasets.convert.lerobot_files import (
    check_files,
    description,
    inside,
    load_metadata,
    provenance,
)
from mode_datasets.convert.source import KeyMap, Source, SourceOptions, arrays_of, split_part
from mode_datasets.schema import check_features
from mode_policy.convention import Convention, Orientation
from mode_policy.errors import DataError, did_you_mean
from mode_policy.types import ACTION, IMAGE_PREFIX, Episode, Feature, Features, Task, feature_kind

LOOKS_FOR = "LeRobotDataset v3: a folder with meta/info.json whose codebase_version is v3.*"

#: Number types that become vectors.
_NUMBERS = {"bool", *(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64))}
_NUMBERS |= {"float16", "float32", "float64"}


def recognise(path: Path) -> str | None:
    """Return why this is a LeRobotDataset, or None.

    Raises:
        DataError: if it is an older version, which LeRobot itself brings up to date.
    """
    try:
        version = str(json.loads((path / "meta" / "info.json").read_text())["codebase_version"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if not version.startswith("v3."):
        raise DataError(
            f"{path} is a LeRobotDataset {version}; bring it to v3 first with: python -m "
            "lerobot.scripts.convert_dataset_v21_to_v30 --repo-id …"
        )
    return f"meta/info.json says codebase version {version}"


@dataclass(frozen=True, kw_only=True)
class LeRobotSource(Source):
    """Episodes of a LeRobotDataset.

    Attributes:
        keys: Which of its features becomes which of ours.
        texts: Its tasks, by LeRobot's task index, as rows of ``tasks``.
        orientation: How images are stored.
    """

    parallel = True

    keys: KeyMap
    texts: dict[int, int]
    orientation: Orientation
    episode_bytes: int

    @cached_property
    def _meta(self) -> Any:
        return load_metadata(self.path)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the metadata behind; each process reads them anew."""
        return {name: value for name, value in self.__dict__.items() if name != "_meta"}

    @property
    def num_episodes(self) -> int:
        """Number of episodes."""
        return int(self._meta.total_episodes)

    def episode(self, index: int) -> Episode:
        """Read one episode."""
        import pyarrow
        import pyarrow.parquet

        row = self._meta.episodes[index]
        names = arrays_of(self.keys)
        steps = int(row["length"])
        known = [self._meta.features[name] for name in names]
        step_bytes = sum(int(np.prod(x["shape"])) * (4 if x["dtype"] in _NUMBERS else 1) for x in known)
        check_declared(self.name(index), step_bytes * steps, self.episode_bytes)
        videos = [name for name in names if self._meta.features[name]["dtype"] == "video"]
        columns = [name for name in names if name not in videos]
        path = inside(self.path, self._meta.get_data_file_path(index))
        try:
            table = pyarrow.parquet.read_table(
                path, columns=[*columns, "timestamp", "task_index"], filters=[("episode_index", "=", index)]
            )
        except (OSError, pyarrow.ArrowException) as error:
            raise DataError(
                f"{path} is missing, damaged or cut short ({error}); download it again"
            ) from error
        if table.num_rows != steps:
            raise DataError(
                f"it has {table.num_rows} rows in {path.name}, but says that its length is {steps}"
            )
        task_rows = set(table["task_index"].to_pylist())
        if len(task_rows) != 1 or not task_rows <= set(self.texts):
            raise DataError(f"its steps have the tasks {sorted(task_rows)}; an episode here has exactly one")
        arrays = {name: self._column(table, name) for name in columns}
        times = np.asarray(table["timestamp"].to_numpy(zero_copy_only=False), np.float64).reshape(-1)
        arrays |= {name: self._video(row, index, name, times) for name in videos}
        return assemble(self.keys, arrays, self.tasks[self.texts[task_rows.pop()]], self.orientation)

    def _column(self, table: Any, name: str) -> np.ndarray:
        shape = tuple(self._meta.features[name]["shape"])
        column = table[name].combine_chunks()
        if self._meta.features[name]["dtype"] == "image":
            return np.stack([_decoded(cell["bytes"], shape, name) for cell in column.to_pylist()])
        while hasattr(column, "flatten") and "list" in str(column.type):
            column = column.flatten()
        values = np.asarray(column.to_numpy(zero_copy_only=False))
        if values.dtype.kind not in "fiub" or values.size != table.num_rows * int(np.prod(shape)):
            raise DataError(f"{name!r} does not hold numbers of shape {shape} in each row")
        return values.reshape(table.num_rows, -1)

    def _video(self, row: Any, index: int, name: str, times: np.ndarray) -> np.ndarray:
        from lerobot.datasets.video_utils import decode_video_frames

        path = inside(self.path, self._meta.get_video_file_path(index, name))
        start = float(row[f"videos/{name}/from_timestamp"])
        # Half a frame: the times of long videos are rounded.
        tolerance = 0.5 / self._meta.fps
        try:
            frames = decode_video_frames(
                path, (start + times).tolist(), tolerance, _backend(), return_uint8=True
            )
        except Exception as error:  # decoders raise whatever they like
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise DataError(
                f"the video {path.name} of {name!r} cannot be read ({reason}); download it again"
            ) from error
        shape = tuple(self._meta.features[name]["shape"])
        images = frames.permute(0, 2, 3, 1).numpy()
        if images.shape[1:] not in (shape, (*shape[1:], shape[0])):
            raise DataError(f"the video of {name!r} shows {images.shape[1:]}, but info.json says {shape}")
        return images


def open_lerobot(path: Path, options: SourceOptions) -> LeRobotSource:
    """Open a data set.

    Raises:
        DataError: if it is incomplete or damaged, or lacks a feature.
    """
    meta = load_metadata(path)
    described = description(path)
    notes: list[str] = []
    keys = options.keys or default_keys(meta.features, notes)
    features = refine(_features(keys, meta.features, path), described)
    if options.orientation is None and any(feature_kind(key) == "image" for key in features):
        notes.append(
            "LeRobot does not say how images are turned; they were taken as upright (else --orientation)"
        )
    tasks, texts = _tasks(meta.tasks, options.instruction, described)
    check_files(path, meta, set(arrays_of(keys)))
    return LeRobotSource(
        path=path,
        features=features,
        convention=options.convention(described.convention if described else Convention(fps=float(meta.fps))),
        provenance=provenance(path, options.licence, described),
        tasks=tasks,
        notes=tuple(notes),
        keys=keys,
        texts=texts,
        orientation=options.orientation or "upright",
        episode_bytes=options.episode_bytes,
    )


def default_keys(features: dict[str, Any], notes: list[str]) -> KeyMap:
    """Return each feature under its own name; cameras outside ``observation.images.`` move there."""
    keys: dict[str, tuple[str, ...]] = {}
    left_out = []
    for name, feature in features.items():
        if feature["dtype"] in ("image", "video"):
            if (feature.get("info") or {}).get("is_depth_map"):
                left_out.append(name)
                continue
            keys[name if name.startswith(IMAGE_PREFIX) else IMAGE_PREFIX + name.split(".")[-1]] = (name,)
        elif (name == ACTION or name.startswith("observation.")) and feature["dtype"] in _NUMBERS:
            keys[name] = (name,)
        elif name.startswith("observation."):
            left_out.append(name)
    if left_out:
        notes.append(f"left out, as they are neither numbers nor colour images: {', '.join(left_out)}")
    return keys


def _features(keys: KeyMap, known: dict[str, Any], path: Path) -> Features:
    features: Features = {}
    for key, names in keys.items():
        arrays = [split_part(name) for name in names]
        for name, _ in arrays:
            if name not in known:
                raise DataError(f"{path} has no feature {name!r}.{did_you_mean(name, known)}")
        parts = [known[name] for name, _ in arrays]
        if feature_kind(key) == "image":
            if len(parts) > 1 or parts[0]["dtype"] not in ("image", "video"):
                raise DataError(f"{key!r} needs one camera of {path}, and {'+'.join(names)} is none")
            features[key] = Feature(shape=_image_shape(parts[0]), dtype="uint8")
            continue
        if bad := [part for part in parts if part["dtype"] not in _NUMBERS]:
            raise DataError(f"{key!r} of {path} would hold {bad[0]['dtype']}; only numbers are read")
        described = [Feature(shape=tuple(x["shape"]), names=_labels(x.get("names"))) for x in parts]
        features[key] = join_features(
            [part_of(feature, part) for feature, (_, part) in zip(described, arrays, strict=True)]
        )
    check_features(features)
    return features


def _image_shape(feature: dict[str, Any]) -> tuple[int, ...]:
    """Return ``(H, W, C)``; older data sets say channels first."""
    shape = tuple(feature["shape"])
    return (*shape[1:], shape[0]) if len(shape) == 3 and shape[0] == 3 and shape[-1] != 3 else shape


def _labels(names: Any) -> tuple[str, ...]:
    """Return the names of dimensions, which LeRobot keeps as a list, or as a mapping that holds one."""
    if isinstance(names, dict):
        names = next(iter(names.values()), None)
    return tuple(map(str, names)) if isinstance(names, list | tuple) else ()


def _decoded(data: bytes | None, shape: tuple[int, ...], name: str) -> np.ndarray:
    from PIL import Image

    try:
        image = Image.open(io.BytesIO(data or b""))
        # The size is known before anything is decoded.
        if image.size != (shape[1], shape[0]):
            raise ValueError(f"its size is {image.size}")
        return np.asarray(image.convert("RGB"))
    except Exception as error:  # decoders raise whatever they like
        raise DataError(
            f"an image of {name!r} cannot be read ({error}); download the data set again"
        ) from error


def _tasks(
    table: Any, instruction: str | None, described: Description | None
) -> tuple[tuple[Task, ...], dict[int, int]]:
    """Return the tasks, and for each of LeRobot's task indices the row of its task."""
    rows: dict[int, int] = {}
    tasks: list[Task] = []
    for text, index in zip(table.index, table["task_index"], strict=True):
        text = instruction or str(text)
        known = next((i for i, task in enumerate(tasks) if task.instruction == text), None)
        if known is None:
            tasks.append(described_task(text, described) or task_of(text))
            known = len(tasks) - 1
        rows[int(index)] = known
    return tuple(tasks), rows


def _backend() -> str:
    """Return LeRobot's default decoder, or PyAV where that cannot be loaded."""
    try:
        import torchcodec.decoders  # noqa: F401
    except (ImportError, OSError, RuntimeError):
        return "pyav"
    return "torchcodec"
