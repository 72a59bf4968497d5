"""What a demonstration store is made of, and how a foreign one is described.

::

    <name>.zarr/                       zarr format 3 group; attributes: everything that is not an array
      data/<feature key>               (T, *feature.shape), the episodes one after another
      meta/episode_ends                int64 (N,): one past the last step of each episode
      meta/episode_task                int64 (N,): row of the task table
      meta/episode_seed                int64 (N,): seed of the environment's reset, or -1
      meta/instruction_embeddings      float32 (K, E), if the store knows its instructions

The attribute ``episodes`` is what counts: an append first extends the arrays, and then replaces the file that
holds the attributes, in one step. Whatever the arrays hold beyond that number of episodes was never
acknowledged, and readers leave it out.

``data`` and ``meta/episode_ends`` carry the names of Diffusion Policy's ``ReplayBuffer``, so its readers find
their way here, and its stores are read in place with a `ReplayBufferLayout`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

import numpy as np

from mode_policy.convention import Convention, Orientation
from mode_policy.errors import DataError
from mode_policy.types import ACTION, Episode, Features, Task, feature_kind

#: Version of the layout above. Readers refuse newer ones, and `migrate` brings older ones up to it.
SCHEMA_VERSION = 2

EPISODE_ENDS = "meta/episode_ends"
EPISODE_TASK = "meta/episode_task"
EPISODE_SEED = "meta/episode_seed"
INSTRUCTION_EMBEDDINGS = "meta/instruction_embeddings"


def _package_version() -> str:
    return metadata.version("mode-policy")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where demonstrations come from.

    Attributes:
        source: Who or what made them: an expert, a paper, a download address.
        licence: Licence of the data, as an SPDX name where there is one.
        command: The command line that made the store, or empty.
        version: Version of this package that made the store.
        created: Time of creation, ISO 8601 with time zone.
    """

    source: str
    licence: str
    command: str = ""
    version: str = field(default_factory=_package_version)
    created: str = field(default_factory=_now)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready mapping; ``Provenance(**mapping)`` inverts it."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class ReplayBufferLayout:
    """How to read a store of the ``ReplayBuffer`` layout (``data/*``, ``meta/episode_ends``) in place.

    Attributes:
        keys: Feature key → name of the array below ``data/``, e.g. ``{"observation.state": "state"}``. A
            vector that is stored with several axes, such as keypoints ``(T, 9, 2)``, is flattened in C order;
            images stored as floats must hold 0…255.
        features: The features under the same keys: vectors are float32 ``(D,)``, images uint8 ``(H, W, 3)``.
        convention: What the numbers mean, the control rate included.
        task: The one task that the store demonstrates.
        provenance: Source and licence of the data.
        image_orientation: How images are stored; they are delivered upright.

    Raises:
        DataError: on construction, if keys and features differ or a feature is malformed.
    """

    keys: Mapping[str, str]
    features: Features
    convention: Convention
    task: Task
    provenance: Provenance
    image_orientation: Orientation = "upright"

    def __post_init__(self) -> None:
        check_features(self.features)
        if set(self.keys) != set(self.features):
            raise DataError(
                f"the layout maps {sorted(self.keys)} but describes {sorted(self.features)}; "
                "each feature needs exactly one array"
            )


def migrate(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Bring a store's attributes up to `SCHEMA_VERSION`; nothing is written.

    Raises:
        DataError: if the version is newer, or none.
    """
    version = attributes.get("schema_version")
    if not isinstance(version, int) or not 1 <= version <= SCHEMA_VERSION:
        raise DataError(
            f"schema version {version!r} is not known here, which reads up to {SCHEMA_VERSION}; upgrade "
            "mode-policy"
        )
    new = dict(attributes)
    if version == 1:
        # Version 2 added the convention, the orientation of images, the profile and the number of episodes.
        new |= {
            "schema_version": 2,
            "convention": Convention(fps=float(new.pop("fps"))).to_json(),
            "image_orientation": "upright",
            "profile": "train",
            "episodes": None,
        }
        new["statistics"] = dict(new["statistics"]) | {"episodes": None}
    return new


def check_features(features: Features) -> None:
    """Hold features to the legend of `mode_policy.types`.

    Raises:
        DataError: if there is no action, or a feature is neither uint8 ``(H, W, 3)`` nor float32 ``(D,)``.
    """
    if ACTION not in features:
        raise DataError(
            f"features {sorted(features)} lack {ACTION!r}; demonstrations without it teach nothing"
        )
    for key, feature in features.items():
        if feature_kind(key) == "image":
            if feature.dtype != "uint8" or len(feature.shape) != 3 or feature.shape[-1] != 3:
                raise DataError(
                    f"image {key!r} is {feature.dtype} {feature.shape}; it must be uint8 (H, W, 3)"
                )
        elif feature.dtype != "float32" or len(feature.shape) != 1 or feature.shape[0] < 1:
            raise DataError(f"vector {key!r} is {feature.dtype} {feature.shape}; it must be float32 (D,)")


def check_episode(episode: Episode, features: Features, name: str) -> None:
    """Hold an episode to the features of its store; ``name`` is what messages call it.

    Raises:
        DataError: if keys, lengths, shapes, types or values do not fit.
    """
    given = set(episode.arrays)
    if given != set(features):
        missing, extra = sorted(set(features) - given), sorted(given - set(features))
        raise DataError(
            f"{name} lacks {missing} and has unexpected {extra}; bring exactly {sorted(features)}"
        )
    steps = len(episode)
    if steps == 0:
        raise DataError(f"{name} has no steps; leave it out")
    for key, feature in features.items():
        x, shape = episode.arrays[key], (steps, *feature.shape)
        if x.dtype != feature.dtype or x.shape != shape:
            raise DataError(f"{name}: {key!r} is {x.dtype} {x.shape}; it must be {feature.dtype} {shape}")
        if x.dtype.kind == "f" and not np.isfinite(x).all():
            step, dim = np.argwhere(~np.isfinite(x))[0]
            raise DataError(
                f"{name}: {key!r} is {x[step, dim]} at step {step}, dimension {dim}; leave the episode out"
            )


def vector_keys(features: Features) -> tuple[str, ...]:
    """Return the keys of the low-dimensional features, in the order of ``features``."""
    return tuple(key for key in features if feature_kind(key) != "image")


def image_keys(features: Features) -> tuple[str, ...]:
    """Return the keys of the image features, in the order of ``features``."""
    return tuple(key for key in features if feature_kind(key) == "image")


def upright(images: np.ndarray, orientation: Orientation) -> np.ndarray:
    """Turn images ``(T, H, W, 3)`` upright that are stored as told; applied once more, it turns them back."""
    if orientation == "upside_down":
        return images[:, ::-1]
    if orientation == "rotated_180":
        return images[:, ::-1, ::-1]
    return images


def fingerprint(vectors: Mapping[str, np.ndarray]) -> str:
    """Return a SHA-256 of the arrays that statistics are computed from (names, shapes and float32 values)."""
    digest = hashlib.sha256()
    for key in sorted(vectors):
        x = np.ascontiguousarray(vectors[key], dtype="<f4")
        digest.update(f"{key}{x.shape}".encode())
        digest.update(x.data)
    return f"sha256:{digest.hexdigest()}"
