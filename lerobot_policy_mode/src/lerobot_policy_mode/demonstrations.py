"""What a policy has to know of its training data: read from LeRobot's metadata, kept in its configuration."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from lerobot.configs import FeatureType, PolicyFeature

from lerobot_policy_mode.configuration_mode import ModeConfig
from mode_datasets.convert.description import refine
from mode_datasets.convert.lerobot_files import description
from mode_policy.convention import UNKNOWN, Convention
from mode_policy.errors import DataError, did_you_mean
from mode_policy.normalization import (
    STATISTIC_NAMES,
    Statistics,
    statistics_from_json,
    statistics_to_json,
)
from mode_policy.types import ACTION, IMAGE_PREFIX, Feature, Features, feature_kind

#: What makes statistics anew.
RECOMPUTE = "lerobot-edit-dataset --operation.type=recompute_stats --repo_id=…"

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Demonstrations:
    """What the training data said.

    Attributes:
        features: by our keys, observations and action.
        statistics: of the vectors.
        convention: what the numbers mean; the frame rate at least.
        instructions: known ones, for a policy with language.
        width: of their embeddings; 0 where they are not embedded yet.
    """

    features: Features
    statistics: Statistics
    convention: Convention = UNKNOWN
    instructions: tuple[str, ...] = ()
    width: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready mapping; `from_json` inverts it."""
        return {
            "features": {key: feature.to_json() for key, feature in self.features.items()},
            "statistics": statistics_to_json(self.statistics),
            "convention": self.convention.to_json(),
            "instructions": list(self.instructions),
            "width": self.width,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Demonstrations:
        """Build from `to_json`'s mapping.

        Raises:
            DataError: if something is missing.
        """
        try:
            return cls(
                features={key: Feature.from_json(value) for key, value in data["features"].items()},
                statistics=statistics_from_json(data["statistics"]),
                convention=Convention(**data["convention"]),
                instructions=tuple(data["instructions"]),
                width=int(data["width"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(
                f"policy.demonstrations cannot be read ({type(error).__name__}: {error}); it is written by "
                "the policy itself: take config.json as the checkpoint had it"
            ) from error


def observed_keys(config: ModeConfig) -> dict[str, str]:
    """Return our key of each feature that the policy observes → LeRobot's, cameras in the order of their
    tokens.

    LeRobot calls an only camera ``observation.image``; here it is ``observation.images.image``.

    Raises:
        DataError: for names that are not there, two cameras of one name, or a vector that is none.
    """
    inputs: Mapping[str, PolicyFeature] = config.input_features or {}
    states: dict[str, str] = {}
    cameras: dict[str, str] = {}
    for key, feature in inputs.items():
        if feature.type is not FeatureType.VISUAL:
            states[key] = key
            continue
        name = key.removeprefix(IMAGE_PREFIX) if key.startswith(IMAGE_PREFIX) else key.split(".")[-1]
        if name in cameras:
            raise DataError(
                f"{key!r} and {cameras[name]!r} are both called {name!r} here; rename one of them"
            )
        cameras[name] = key
    states = _chosen("policy.state_keys", config.state_keys, states)
    for key in states:
        if len(inputs[key].shape) != 1:
            raise DataError(
                f"{key!r} has the shape {tuple(inputs[key].shape)}, and only vectors are read; name those "
                "that the policy shall see with --policy.state_keys"
            )
    chosen = _chosen("policy.cameras", config.cameras, cameras)
    return states | {IMAGE_PREFIX + name: key for name, key in chosen.items()}


def _chosen(setting: str, names: Sequence[str] | None, known: dict[str, str]) -> dict[str, str]:
    for name in names or ():
        if name not in known:
            raise DataError(f"{setting} has {name!r}, which is not observed.{did_you_mean(name, known)}")
    return known if names is None else {name: known[name] for name in names}


def read_demonstrations(
    config: ModeConfig, statistics: Mapping[str, Mapping[str, Any]] | None, meta: Any
) -> Demonstrations:
    """Collect what the policy needs: from the data set, and for a checkpoint also from its configuration.

    A data set's statistics go before those of the checkpoint: finetuning normalises by the new data, as
    LeRobot does it.

    Args:
        config: whose features LeRobot has filled in.
        statistics: of the data set, if there is one.
        meta: ``LeRobotDatasetMetadata``, if there is one.

    Raises:
        DataError: if features do not fit, or a feature that is normalised lacks its statistics.
    """
    recorded = None if config.demonstrations is None else Demonstrations.from_json(config.demonstrations)
    keys = observed_keys(config)
    features = _features(config, keys, meta, recorded)
    found = _statistics(config, features, keys, statistics, recorded)
    convention = UNKNOWN if recorded is None else recorded.convention
    texts: list[str] = [] if recorded is None else list(recorded.instructions)
    if meta is not None:
        described = description(meta.root)
        features = refine(features, described)
        convention = described.convention if described else Convention(fps=float(meta.fps))
        texts += [text for text in map(str, meta.tasks.index) if text not in texts]
    if config.language is not None and not texts:
        raise DataError(
            f"policy.language={config.language!r}, but there are no instructions; train with a data set that "
            "has tasks, or without language: --policy.language=null"
        )
    return Demonstrations(
        features=features,
        statistics=found,
        convention=convention,
        instructions=tuple(texts) if config.language is not None else (),
        width=0 if recorded is None else recorded.width,
    )


def _features(
    config: ModeConfig, keys: Mapping[str, str], meta: Any, recorded: Demonstrations | None
) -> Features:
    given = {ours: config.input_features[theirs] for ours, theirs in keys.items()}
    given[ACTION] = config.output_features[ACTION]
    features: Features = {}
    for key, feature in given.items():
        shape = tuple(feature.shape)
        if feature_kind(key) == "image":
            features[key] = Feature(shape=(*shape[1:], shape[0]), dtype="uint8")
        else:
            known = meta.features.get(keys.get(key, key), {}) if meta is not None else {}
            features[key] = Feature(shape=shape, names=_names(known.get("names"), shape))
    known_before = {} if recorded is None else recorded.features
    for key in features:
        ours = known_before.get(key)
        if ours is not None and ours.shape != features[key].shape:
            raise DataError(
                f"{key!r} has the shape {features[key].shape} now, but the checkpoint was trained with "
                f"{ours.shape}; choose other data or another environment, or train a new policy"
            )
    if meta is None and recorded is not None:
        return recorded.features
    return features


def _names(names: Any, shape: tuple[int, ...]) -> tuple[str, ...]:
    """Names of dimensions, which LeRobot keeps as a list, or as a mapping that holds one."""
    if isinstance(names, dict):
        names = next(iter(names.values()), None)
    fits = isinstance(names, list | tuple) and (len(names),) == shape
    return tuple(map(str, names)) if fits else ()


def _statistics(
    config: ModeConfig,
    features: Features,
    keys: Mapping[str, str],
    given: Mapping[str, Mapping[str, Any]] | None,
    recorded: Demonstrations | None,
) -> Statistics:
    found: Statistics = {}
    for key in features:
        if feature_kind(key) == "image":
            continue
        theirs = keys.get(key, key)
        own = recorded.statistics.get(key) if recorded is not None else None
        if given is not None and theirs in given:
            found[key] = _plain(theirs, given[theirs])
            if own is not None and any(
                not np.allclose(own[n], v, rtol=1e-4) for n, v in found[key].items() if n in own
            ):
                log.warning("%s is normalised by the statistics of this data set, not of the checkpoint", key)
        elif own is not None:
            found[key] = own
        else:
            mode = config.normalize_action if key == ACTION else config.normalize_state
            raise DataError(
                f"there are no statistics of {theirs!r}, which the policy normalises ({mode}); they belong "
                f"to meta/stats.json of the data set, and to every checkpoint. Compute them with: {RECOMPUTE}"
            )
    return found


def _plain(key: str, statistics: Mapping[str, Any]) -> dict[str, np.ndarray]:
    plain = {n: np.asarray(statistics[n], np.float32).reshape(-1) for n in STATISTIC_NAMES if n in statistics}
    for name, value in plain.items():
        if not np.isfinite(value).all():
            raise DataError(
                f"the statistics of {key!r} have {name}={value.tolist()}; repair the data, then compute them "
                f"anew with: {RECOMPUTE}"
            )
    return plain
