"""ROS 2 messages in MCAP files: which topics there are, when their messages were made, and what they hold.

Messages are decoded by the definitions that the file carries; no ROS installation is needed.
"""

from __future__ import annotations

import functools
import io
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mode_policy.errors import ConfigError, DataError

#: Bytes that one chunk may declare to take uncompressed.
MAX_CHUNK_BYTES = 2**30

IMAGE_TYPES = ("sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage")

#: Encodings of raw images → channels, and the order that makes them RGB.
_ENCODINGS = {
    "rgb8": (3, [0, 1, 2]),
    "bgr8": (3, [2, 1, 0]),
    "rgba8": (4, [0, 1, 2]),
    "bgra8": (4, [2, 1, 0]),
    "mono8": (1, [0, 0, 0]),
    "8UC1": (1, [0, 0, 0]),
    "8UC3": (3, [2, 1, 0]),
}


@dataclass(frozen=True)
class Topic:
    """A topic of a recording: its type, and its number of messages."""

    name: str
    type: str
    count: int


class Recording:
    """An open MCAP file; make it with `open_recording`."""

    def __init__(self, path: Path, reader: Any) -> None:
        from mcap_ros2.decoder import DecoderFactory

        self.path = path
        self._reader = reader
        self._factory = DecoderFactory()
        summary = reader.get_summary()
        if summary is None:
            raise DataError(f"{path} has no index: its writer did not finish. Repair it with: mcap recover")
        for chunk in summary.chunk_indexes:
            if chunk.uncompressed_size > MAX_CHUNK_BYTES:
                raise DataError(
                    f"{path} declares a chunk of {chunk.uncompressed_size / 2**30:.3g} GiB, more than "
                    f"{MAX_CHUNK_BYTES / 2**30:.3g}; it is not read"
                )
        counts = summary.statistics.channel_message_counts if summary.statistics else {}
        self.topics = {
            channel.topic: Topic(
                channel.topic,
                summary.schemas[channel.schema_id].name
                if channel.schema_id in summary.schemas
                else "unknown",
                int(counts.get(channel.id, 0)),
            )
            for channel in summary.channels.values()
        }

    def instruction(self) -> str:
        """Return what a metadata record with the key ``instruction`` says, or an empty text."""
        return next(
            (
                str(r.metadata["instruction"])
                for r in self._reader.iter_metadata()
                if "instruction" in r.metadata
            ),
            "",
        )

    def messages(self, topic: str) -> Iterator[tuple[int, Callable[[], Any]]]:
        """Yield the time of each message in nanoseconds, and a function that decodes it.

        The time is that of the message's header, where it has one that is set, else that of its recording.

        Raises:
            DataError: if the file is damaged, or its messages are not ROS 2's.
        """
        try:
            for schema, channel, message in self._reader.iter_messages(topics=[topic], log_time_order=True):
                decode = self._factory.decoder_for(channel.message_encoding, schema)
                if decode is None:
                    raise DataError(
                        f"topic {topic!r} of {self.path.name} is encoded as {channel.message_encoding} by a "
                        f"schema of {schema.encoding if schema else 'none'}; only ROS 2 messages (cdr, "
                        "ros2msg) are read"
                    )
                stamp = header_stamp(schema.data, message.data) or message.log_time
                if stamp >= 2**63:
                    raise ValueError(f"a message of the time {stamp} ns")
                yield stamp, functools.partial(self._decode, decode, message.data, topic)
        except DataError:
            raise
        except Exception as error:  # decompressors raise whatever they like
            raise self._damaged(topic, error) from error

    def _decode(self, decode: Callable[[bytes], Any], data: bytes, topic: str) -> Any:
        try:
            return decode(data)
        except Exception as error:  # a damaged message fails in any way
            raise self._damaged(topic, error) from error

    def _damaged(self, topic: str, error: Exception) -> DataError:
        return DataError(f"{self.path.name} is damaged in topic {topic!r} ({error}); copy it again")


@contextmanager
def open_recording(path: Path) -> Iterator[Recording]:
    """Open an MCAP file.

    Raises:
        ConfigError: if `mcap` is not installed.
        DataError: if it is no MCAP file, or was cut short.
    """
    try:
        from mcap.exceptions import McapError
        from mcap.reader import make_reader
    except ImportError as error:
        raise ConfigError("MCAP files need: pip install 'mode-policy[mcap]'") from error
    try:
        with path.open("rb") as file:
            yield Recording(path, make_reader(file))
    except (McapError, OSError, EOFError, struct.error) as error:
        raise DataError(
            f"{path} cannot be read ({error}): it is cut short or not MCAP. Try: mcap recover"
        ) from error


def header_stamp(definition: bytes, data: bytes) -> int | None:
    """Return the time in a message's header in nanoseconds, or None if it has no header or it is not set.

    The header is the first field, so its time stands right behind the four bytes that say the byte order.
    """
    first = next(
        (line for line in definition.decode(errors="replace").splitlines() if line.split("#")[0].strip()), ""
    )
    if first.split()[:1] not in (["std_msgs/Header"], ["std_msgs/msg/Header"], ["Header"]) or len(data) < 12:
        return None
    seconds, nanoseconds = struct.unpack_from("<iI" if data[1] & 1 else ">iI", data, 4)
    return (int(seconds) * 10**9 + int(nanoseconds)) or None


def numbers(message: Any, path: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return the numbers of a field, in the order of the message's definition, float64 ``(D,)``, and their
    names.

    Args:
        message: A decoded message.
        path: Of the field, such as ``position`` or ``pose.position``; empty for the whole message.

    Raises:
        DataError: if there is no such field, or it holds no numbers.
    """
    value = message
    for part in filter(None, path.split(".")):
        if not hasattr(value, part):
            known = ", ".join(fields(value)) or "none"
            raise DataError(f"the messages have no field {path!r}; at {part!r}, the fields are: {known}")
        value = getattr(value, part)
    labels = getattr(message, "name", None)
    found = list(_walk(value, ""))
    if not found:
        raise DataError(f"field {path!r} holds no numbers")
    names = tuple(name for name, _ in found)
    if isinstance(labels, list) and len(labels) == len(found):
        names = tuple(map(str, labels))  # sensor_msgs/JointState names its joints
    return np.array([number for _, number in found], dtype=np.float64), names


def fields(message: Any) -> tuple[str, ...]:
    """Return the names of a message's fields."""
    return tuple(getattr(type(message), "__slots__", ()))


def _walk(value: Any, name: str) -> Iterator[tuple[str, float]]:
    if isinstance(value, bool | int | float):
        yield name, float(value)
    elif isinstance(value, str | bytes | None):
        return
    elif fields(value):
        for field in fields(value):
            if field not in ("header", "layout"):
                yield from _walk(getattr(value, field), f"{name}.{field}" if name else field)
    else:
        for i, item in enumerate(value):
            yield from _walk(item, f"{name}[{i}]")


def image_of(message: Any) -> np.ndarray:
    """Return an image message as RGB, uint8 ``(H, W, 3)``.

    Raises:
        DataError: if its encoding is not known, or it is damaged.
    """
    if hasattr(message, "format"):
        return _compressed(bytes(message.data))
    if message.encoding not in _ENCODINGS:
        raise DataError(f"images are encoded as {message.encoding!r}; known are {', '.join(_ENCODINGS)}")
    channels, order = _ENCODINGS[message.encoding]
    data = np.frombuffer(message.data, np.uint8)
    if len(data) != message.height * message.step or message.step < message.width * channels:
        raise DataError(
            f"an image of {message.width}×{message.height} holds {len(data)} bytes; it is damaged"
        )
    rows = data.reshape(message.height, message.step)[:, : message.width * channels]
    return np.ascontiguousarray(rows.reshape(message.height, message.width, channels)[..., order])


def _compressed(data: bytes) -> np.ndarray:
    from PIL import Image

    try:
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    except Exception as error:  # decoders raise whatever they like
        raise DataError(f"a compressed image cannot be decoded ({error})") from error
