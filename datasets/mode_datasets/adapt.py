"""Reading demonstrations as if they followed another convention: the settings under ``dataset.adapt``.

Nothing on disk is changed. What `mode_policy.convention.differences` finds and can be set right without
knowing the robot's kinematics is set right here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from shlex import quote
from typing import Annotated

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from mode_datasets.store import DemonstrationStore
from mode_policy.config import FORBID_EXTRA
from mode_policy.convention import Convention, Gripper, Orientation, convert_gripper
from mode_policy.errors import DataError, did_you_mean
from mode_policy.normalization import compute_statistics
from mode_policy.types import ACTION, Feature, feature_kind


@dataclass(frozen=True, kw_only=True, config=FORBID_EXTRA)
class AdaptConfig:
    """How demonstrations are to be read. Each setting is off by default.

    Attributes:
        gripper: Convention that the last action dimension is converted to.
        action_scale: Physical size of 1.0 of each action dimension; actions are multiplied by the store's
            scale over this one.
        stride: Keep every n-th step, for a control rate of 1/n. Deltas of the steps between are summed; of
            absolute actions and of the gripper, the last one counts.
        rename: New name for a feature, such as ``{observation.images.image: observation.images.front}``.
        image_orientation: How the stored images really are, where their metadata are wrong or absent.
        image_size: Height and width that images are resized to when they are read.
        declare: Parts of the convention that the store does not know, such as ``{action_kind: delta}``.
    """

    gripper: Gripper | None = None
    action_scale: tuple[float, ...] | None = None
    stride: int = Field(default=1, ge=1)
    rename: Mapping[str, str] = Field(default_factory=dict)
    image_orientation: Orientation | None = None
    image_size: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] | None = None
    declare: Mapping[str, object] = Field(default_factory=dict)


def adapt(store: DemonstrationStore, config: AdaptConfig) -> DemonstrationStore:
    """Return the store as ``config`` says; the original is not changed.

    Raises:
        DataError: if a setting does not fit the store.
    """
    if config == AdaptConfig():
        return store
    if config.image_orientation is not None:
        store = dataclasses.replace(store, image_orientation=config.image_orientation)
    if config.image_size is not None:
        store = _resize(store, config.image_size)
    if config.declare:
        store = _declare(store, config.declare)
    if config.gripper is not None and config.gripper != store.convention.gripper:
        store = _gripper(store, config.gripper)
    if config.action_scale is not None:
        store = _scale(store, np.asarray(config.action_scale, dtype=np.float64))
    if config.stride > 1:
        store = _every(store, config.stride)
    if config.rename:
        store = _rename(store, config.rename)
    return dataclasses.replace(store, statistics=compute_statistics(store.vectors()))


def _resize(store: DemonstrationStore, size: tuple[int, int]) -> DemonstrationStore:
    features = {
        key: dataclasses.replace(feature, shape=(*size, 3)) if feature_kind(key) == "image" else feature
        for key, feature in store.features.items()
    }
    return dataclasses.replace(store, features=features)


def _declare(store: DemonstrationStore, parts: Mapping[str, object]) -> DemonstrationStore:
    known = store.convention.to_json()
    for name in parts:
        if name not in known:
            raise DataError(f"dataset.adapt.declare has no {name!r}.{did_you_mean(name, known)}")
        if known[name] not in ("unknown", [], None, parts[name]):
            raise DataError(
                f"{store.location} says that its {name} is {known[name]!r}, and dataset.adapt.declare says "
                f"{parts[name]!r}; where the store is wrong, correct it: "
                f"mode-data migrate {quote(str(store.location))} {name}=…"
            )
    return dataclasses.replace(store, convention=Convention(**(known | dict(parts))))


def _with_actions(store: DemonstrationStore, actions: np.ndarray, **convention: object) -> DemonstrationStore:
    vectors = store.vectors() | {ACTION: np.ascontiguousarray(actions, dtype=np.float32)}
    changed = dataclasses.replace(store.convention, **convention)  # type: ignore[arg-type]
    return dataclasses.replace(store, _vectors=vectors, convention=changed)


def _gripper(store: DemonstrationStore, to: Gripper) -> DemonstrationStore:
    now = store.convention.gripper
    if now == "unknown":
        raise DataError(
            f"{store.location} does not say what its gripper action means; add e.g. "
            "dataset.adapt.declare.gripper=plus_closes"
        )
    factor, offset = convert_gripper(now, to)
    actions = store.vectors()[ACTION].copy()
    actions[:, -1] = factor * actions[:, -1] + offset
    return _with_actions(store, actions, gripper=to)


def _scale(store: DemonstrationStore, to: np.ndarray) -> DemonstrationStore:
    now = np.asarray(store.convention.action_scale, dtype=np.float64)
    if now.size == 0:
        raise DataError(
            f"{store.location} does not say how large its actions are; add "
            "dataset.adapt.declare.action_scale=[…]"
        )
    if now.shape != to.shape or (to == 0).any():
        raise DataError(
            f"dataset.adapt.action_scale has {to.size} values {to.tolist()}; give {now.size}, none of them 0"
        )
    return _with_actions(store, store.vectors()[ACTION] * (now / to), action_scale=tuple(to.tolist()))


def _every(store: DemonstrationStore, stride: int) -> DemonstrationStore:
    """Keep steps 0, n, 2n, … of each episode."""
    kind = store.convention.action_kind
    if kind == "unknown":
        raise DataError(
            f"{store.location} does not say whether its actions are absolute or deltas, and the steps left "
            "out are treated differently; add e.g. dataset.adapt.declare.action_kind=absolute"
        )
    starts, ends = store.episode_starts, store.episode_ends
    kept = [np.arange(a, b, stride) for a, b in zip(starts, ends, strict=True)]
    rows = np.concatenate(kept)
    last = np.minimum(rows + stride, np.repeat(ends, [len(k) for k in kept])) - 1
    old = store.vectors()[ACTION]
    actions = old[last].copy()
    if kind == "delta":
        moving = slice(None) if store.convention.gripper in ("none", "unknown") else slice(None, -1)
        summed = np.add.reduceat(old[:, moving].astype(np.float64), rows, axis=0)
        actions[:, moving] = summed
    assert store.convention.fps is not None
    thinned = _with_actions(store, old, fps=store.convention.fps / stride)
    vectors = {key: x[rows] for key, x in store.vectors().items()} | {ACTION: actions}
    return dataclasses.replace(
        thinned,
        episode_ends=np.cumsum([len(k) for k in kept]),
        _vectors=vectors,
        _rows=rows if store._rows is None else store._rows[rows],
    )


def _rename(store: DemonstrationStore, names: Mapping[str, str]) -> DemonstrationStore:
    for old, new in names.items():
        if old not in store.features:
            raise DataError(f"dataset.adapt.rename: no feature {old!r}.{did_you_mean(old, store.features)}")
        if feature_kind(old) != feature_kind(new):
            raise DataError(f"dataset.adapt.rename: {old!r} cannot become {new!r}, which is of another kind")
    taken = [names.get(key, key) for key in store.features]
    if len(set(taken)) < len(taken):
        raise DataError(f"dataset.adapt.rename={dict(names)} gives two features the same name")

    def renamed[Value](mapping: Mapping[str, Value]) -> dict[str, Value]:
        return {names.get(key, key): value for key, value in mapping.items()}

    features: dict[str, Feature] = renamed(store.features)
    return dataclasses.replace(
        store,
        features=features,
        _arrays=renamed(store._arrays),
        _readers=renamed(store._readers),
        _vectors=renamed(store._vectors),
    )
