"""ROS 2 recordings in MCAP files, aligned in time to a fixed control rate; each file is an episode.

A recording does not say which topic is the action, so the user does: ``--key action=/command:data``. Vectors
are taken from the nearest message, or interpolated; images always from the nearest. A step for which a topic
has no message within the tolerance makes its episode unusable, and the report says where and how long the gap
is.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mode_datasets.convert.align import check_gaps, grid, interpolate, nearest
from mode_datasets.convert.assemble import check_declared, task_of, vectors
from mode_datasets.convert.description import provenance_of
from mode_datasets.convert.ros import IMAGE_TYPES, Recording, Topic, image_of, numbers, open_recording
from mode_datasets.convert.source import KeyMap, Source, SourceOptions, arrays_of, split_part
from mode_datasets.schema import check_features, upright
from mode_policy.convention import Convention, Orientation
from mode_policy.errors import ConfigError, DataError, did_you_mean
from mode_policy.types import Episode, Feature, Features, feature_kind

LOOKS_FOR = (
    "MCAP: a .mcap file, or a folder with some (a rosbag2 folder in SQLite is converted to MCAP first)"
)


def files_of(path: Path) -> list[Path]:
    """Return the recordings of a folder and the folders in it, by name; or the one at ``path``."""
    return sorted(p for p in path.rglob("*.mcap") if not p.name.startswith(".")) if path.is_dir() else [path]


def recognise(path: Path) -> str | None:
    """Return why this is a recording, or None."""
    files = files_of(path) if path.is_dir() or path.suffix == ".mcap" else []
    return f"{len(files)} MCAP files" if files else None


@dataclass(frozen=True, kw_only=True)
class McapSource(Source):
    """Recordings, one an episode.

    Attributes:
        files: In order.
        keys: Which fields of topics (``/topic:field``) become which feature.
        rate: Steps per second.
        tolerance: The farthest, in seconds, that a message may be from its step.
        interpolate: Whether vectors are interpolated.
    """

    parallel = True

    files: tuple[Path, ...]
    keys: KeyMap
    instruction: str | None
    rate: float
    tolerance: float
    interpolate: bool
    orientation: Orientation
    episode_bytes: int

    @property
    def num_episodes(self) -> int:
        """Number of recordings."""
        return len(self.files)

    def name(self, index: int) -> str:
        """Return the file."""
        return str(self.files[index].relative_to(self.path)) if self.path.is_dir() else self.files[index].name

    def episode(self, index: int) -> Episode:
        """Read one recording."""
        fields = arrays_of(self.keys)
        with open_recording(self.files[index]) as recording:
            topics = dict.fromkeys(split_field(name)[0] for name in fields)
            for topic in topics:
                _check_topic(recording, topic)
            stamps = {topic: _times(recording, topic) for topic in topics}
            start = min(int(ns[0]) for ns in stamps.values() if len(ns))
            seconds = {topic: (ns - start) / 1e9 for topic, ns in stamps.items()}
            steps = grid(seconds, self.rate)
            pixels = sum(
                int(np.prod(f.shape)) * (1 if len(f.shape) == 3 else 8) for f in self.features.values()
            )
            check_declared(self.name(index), len(steps) * pixels, self.episode_bytes)
            arrays = {}
            for key, names in self.keys.items():
                if feature_kind(key) == "image":
                    arrays[key] = self._images(recording, names[0], seconds, steps, self.features[key].shape)
                else:
                    parts = [self._vectors(recording, name, seconds, steps) for name in names]
                    if (labels := tuple(x for _, part in parts for x in part)) != self.features[key].names:
                        raise DataError(
                            f"{key!r} has the dimensions {', '.join(labels)} here, and "
                            f"{', '.join(self.features[key].names)} in {self.name(0)}"
                        )
                    arrays[key] = vectors([(x, slice(None)) for x, _ in parts])
            text = self.instruction or recording.instruction()
        if not text:
            raise DataError("it does not say what it does; give it with --instruction")
        return Episode(arrays=arrays, task=task_of(text))

    def _images(
        self,
        recording: Recording,
        topic: str,
        seconds: dict[str, np.ndarray],
        steps: np.ndarray,
        shape: tuple[int, ...],
    ) -> np.ndarray:
        order, chosen = self._chosen(topic, seconds[topic], steps)
        wanted: dict[int, list[int]] = {}
        for step, message in enumerate(order[chosen].tolist()):
            wanted.setdefault(message, []).append(step)
        images = np.empty((len(steps), *shape), np.uint8)
        for number, (_, decode) in enumerate(recording.messages(topic)):
            if number in wanted:
                image = image_of(decode())
                if image.shape != shape:
                    raise DataError(f"topic {topic!r} changes from images of {shape} to {image.shape}")
                images[wanted[number]] = image
        return np.ascontiguousarray(upright(images, self.orientation))

    def _vectors(
        self, recording: Recording, name: str, seconds: dict[str, np.ndarray], steps: np.ndarray
    ) -> tuple[np.ndarray, tuple[str, ...]]:
        """Return the numbers of a field, or of a part of it, at the steps, and their names."""
        field, part = split_part(name)
        topic, path = split_field(field)
        read = [
            (values[part], labels[part])
            for values, labels in (numbers(decode(), path) for _, decode in recording.messages(topic))
        ]
        if len({names for _, names in read}) > 1:
            raise DataError(f"{name!r} changes its dimensions or their names within the recording")
        values = np.stack([x for x, _ in read])
        order, chosen = self._chosen(topic, seconds[topic], steps)
        if self.interpolate:
            return interpolate(seconds[topic][order], values[order], steps), read[0][1]
        return values[order[chosen]], read[0][1]

    def _chosen(self, topic: str, times: np.ndarray, steps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the order of the messages in time, and the place in it of the one nearest to each step."""
        order = np.argsort(times, kind="stable")
        chosen, distance = nearest(times[order], steps)
        check_gaps(topic, steps, distance, self.tolerance)
        return order, chosen


def split_field(name: str) -> tuple[str, str]:
    """Split ``/topic:field.path`` into topic and path."""
    topic, _, path = name.partition(":")
    return topic, path


def open_mcap(path: Path, options: SourceOptions) -> McapSource:
    """Open a recording, or a folder of recordings.

    Raises:
        ConfigError: if `mcap` is not installed, or the user does not say which topics are taken.
        DataError: if the first recording is damaged, or lacks a topic.
    """
    files = tuple(files_of(path))
    with open_recording(files[0]) as recording:
        if options.keys is None:
            raise ConfigError(_which_topics(path, recording))
        features = _features(options.keys, recording)
        if options.instruction is None and not recording.instruction():
            raise DataError(f"{files[0]} does not say what it shows; give it with --instruction")
    convention = options.convention(Convention())
    assert convention.fps is not None
    return McapSource(
        path=path,
        features=features,
        convention=convention,
        provenance=provenance_of(path, "MCAP recordings", options.licence),
        files=files,
        keys=options.keys,
        instruction=options.instruction,
        rate=convention.fps,
        tolerance=1 / convention.fps if options.tolerance is None else options.tolerance,
        interpolate=options.interpolate,
        orientation=options.orientation or "upright",
        episode_bytes=options.episode_bytes,
    )


def _times(recording: Recording, topic: str) -> np.ndarray:
    return np.array([stamp for stamp, _ in recording.messages(topic)], dtype=np.int64)


def _check_topic(recording: Recording, topic: str) -> Topic:
    if topic not in recording.topics:
        raise DataError(
            f"{recording.path.name} has no topic {topic!r}.{did_you_mean(topic, recording.topics)}"
        )
    return recording.topics[topic]


def _features(keys: KeyMap, recording: Recording) -> Features:
    features: Features = {}
    for key, names in keys.items():
        fields = [split_part(name) for name in names]
        topics = [_check_topic(recording, split_field(field)[0]) for field, _ in fields]
        if (feature_kind(key) == "image") != (topics[0].type in IMAGE_TYPES) or (
            feature_kind(key) == "image" and len(names) > 1
        ):
            kind = "one topic of images" if feature_kind(key) == "image" else "topics of numbers"
            raise DataError(f"{key!r} needs {kind}, and {names[0]!r} is {topics[0].type}")
        first = [_first(recording, topic.name) for topic in topics]
        if feature_kind(key) == "image":
            features[key] = Feature(shape=image_of(first[0]).shape, dtype="uint8")
        else:
            parts = [
                numbers(message, split_field(field)[1])[1][part]
                for message, (field, part) in zip(first, fields, strict=True)
            ]
            features[key] = Feature(
                shape=(sum(map(len, parts)),), names=tuple(x for part in parts for x in part)
            )
    check_features(features)
    return features


def _first(recording: Recording, topic: str) -> Any:
    for _, decode in recording.messages(topic):
        return decode()
    raise DataError(f"topic {topic!r} of {recording.path.name} has no messages")


def _which_topics(path: Path, recording: Recording) -> str:
    listed = "\n".join(f"  {t.name}  {t.type}  {t.count} messages" for t in recording.topics.values())
    return (
        f"{path} does not say which of its topics are observations and which is the action; name them, such "
        "as --key action=/command:data --key observation.state=/joint_states:position --key "
        f"observation.images.front=/camera/image_raw. Its topics:\n{listed}"
    )
