"""How a new store's images are written: fast to read, small, or smallest.

========  ==============  ===================================  ========================================
profile   frames a chunk  codec                                 for
========  ==============  ===================================  ========================================
train     1               lz4                                   training: a frame costs one small read
archive   16              zstd                                  keeping and sharing; lossless, ½ to ⅓ the size
jpeg      1               JPEG, quality 95, no subsampling       large real-world sets; not lossless
========  ==============  ===================================  ========================================

Every chunk carries a CRC-32C. Several chunks form a shard, which is one file. Lossy frames that are followed
by others in the same file are encoded again when a later writer appends to that file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec

from mode_policy.errors import ConfigError, did_you_mean

ProfileName = Literal["train", "archive", "jpeg"]

#: Frames in a shard, and their bytes before compression, at most: few files, and a bounded buffer while
#: writing.
SHARD_FRAMES = 1008
SHARD_BYTES = 64 * 2**20

#: Quality of the profile ``jpeg``.
JPEG_QUALITY = 95


@dataclass(frozen=True)
class Profile:
    """Frames that are compressed together, and the codecs as `zarr.Group.create_array` takes them."""

    name: str
    chunk_frames: int
    codecs: dict[str, Any]

    def shard_frames(self, shape: tuple[int, int, int]) -> int:
        """Return how many frames of ``(H, W, 3)`` one file holds: whole chunks, at least one."""
        frame_bytes = shape[0] * shape[1] * shape[2]
        frames = min(SHARD_FRAMES, SHARD_BYTES // frame_bytes)
        return max(1, frames // self.chunk_frames) * self.chunk_frames


def profile(name: str) -> Profile:
    """Return a profile.

    Raises:
        ConfigError: if it is unknown, or needs a package that is not installed.
    """
    if name == "train":
        # Shuffling bytes does nothing for single bytes.
        lz4 = BloscCodec(cname="lz4", clevel=5, shuffle="noshuffle")
        return Profile(name, 1, {"compressors": [lz4, Crc32cCodec()]})
    if name == "archive":
        return Profile(name, 16, {"compressors": [ZstdCodec(level=3), Crc32cCodec()]})
    if name == "jpeg":
        try:
            # Its codec is registered with zarr by an entry point of this package, see pyproject.toml.
            from imagecodecs.zarr import Jpeg
        except ImportError as error:
            raise ConfigError("JPEG images need: pip install 'mode-policy[jpeg]'") from error
        codec = Jpeg(level=JPEG_QUALITY, subsampling="444")
        return Profile(name, 1, {"serializer": codec, "compressors": [Crc32cCodec()]})
    raise ConfigError(f"unknown profile {name!r}.{did_you_mean(name, ('train', 'archive', 'jpeg'))}")
