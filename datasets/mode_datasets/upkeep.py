"""Keeping a store's description true: its statistics, its schema version, its conventions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_args

import numpy as np

from mode_datasets import reading, schema
from mode_datasets.location import LocalFolder, locate
from mode_datasets.store import DemonstrationStore, open_store
from mode_datasets.writer import update_attributes
from mode_policy.convention import Convention, Orientation
from mode_policy.errors import DataError, did_you_mean
from mode_policy.normalization import Statistics, compute_statistics, statistics_from_json, statistics_to_json

_CONVENTION = tuple(field.name for field in fields(Convention))

#: Statistics may differ by this share of a dimension's range: other programs compute them in another order.
_SLACK = 1e-4

#: What `migrate_store` can set.
SETTINGS = (*_CONVENTION, "image_orientation", "source", "licence")


@dataclass(frozen=True, kw_only=True)
class WrongStatistic:
    """A statistic that is not that of the data; ``stored`` is NaN where it is missing."""

    key: str
    name: str
    dimension: int
    stored: float
    true: float


def wrong_statistics(stored: Statistics, actual: Statistics) -> list[WrongStatistic]:
    """Compare statistics with those of the data, up to rounding."""
    wrong = []
    for key, values in actual.items():
        low, high = values["min"], values["max"]
        slack = _SLACK * (high - low) + 1e-6 * np.maximum(np.abs(low), np.abs(high))
        for name, true in values.items():
            kept = np.asarray(stored.get(key, {}).get(name, np.nan))
            kept = kept if kept.shape == true.shape else np.full_like(true, np.nan)
            wrong += [
                WrongStatistic(
                    key=key, name=name, dimension=int(dim), stored=float(kept[dim]), true=float(true[dim])
                )
                for dim in np.flatnonzero(~(np.abs(kept - true) <= slack))
            ]
    return wrong


def stored_statistics(path: Path | str) -> tuple[Statistics, str]:
    """Return the statistics that a store holds, true or not, and the fingerprint of their data.

    Both are empty if its last writer did not finish.
    """
    kept: Any = dict(reading.open_group(locate(path)).attrs).get("statistics")
    return ({}, "") if kept is None else (statistics_from_json(kept["values"]), str(kept["computed_from"]))


def renew_statistics(path: Path | str) -> Statistics:
    """Compute a store's statistics from its data, write them to it, and return them.

    Raises:
        DataError: if the store is damaged, is not ours, or is being written.
    """
    folder = _own_folder(path)
    store = open_store(folder, check_statistics=False)
    vectors = store.vectors()
    statistics = compute_statistics(vectors)
    new = {
        "values": statistics_to_json(statistics),
        "computed_from": schema.fingerprint(vectors),
        "episodes": store.num_episodes,
    }
    update_attributes(folder, {"statistics": new, "episodes": store.num_episodes})
    return statistics


def migrate_store(path: Path | str, settings: Mapping[str, str]) -> dict[str, tuple[Any, Any]]:
    """Bring a store's attributes to the current schema, and state what it did not say.

    Args:
        path: Of the store.
        settings: Of `SETTINGS`, as written on a command line, e.g. ``{"action_kind": "delta"}``.

    Returns:
        Each attribute that changed → its old value (None where there was none) and its new one.

    Raises:
        DataError: if a setting is unknown or not valid, or the store is damaged, not ours, or being written.
    """
    folder = _own_folder(path)
    store = open_store(folder)
    old = dict(reading.open_group(locate(folder)).attrs)
    new = schema.migrate(old)
    if new["statistics"] is None:
        raise DataError(f"the last writer of {folder} did not finish; run mode-data stats --write first")
    new["episodes"] = store.num_episodes
    new["statistics"] = dict(new["statistics"]) | {"episodes": store.num_episodes}
    new["convention"] = _convention(store, settings).to_json()
    if (orientation := settings.get("image_orientation")) is not None:
        known = get_args(Orientation)
        if orientation not in known:
            raise DataError(f"unknown image_orientation {orientation!r}.{did_you_mean(orientation, known)}")
        new["image_orientation"] = orientation
    told = {name: settings[name] for name in ("source", "licence") if name in settings}
    new["provenance"] = dict(new["provenance"]) | told
    changed = {key: (old.get(key), value) for key, value in new.items() if old.get(key) != value}
    if changed:
        update_attributes(folder, new)
    return changed


def _convention(store: DemonstrationStore, settings: Mapping[str, str]) -> Convention:
    for name in settings:
        if name not in SETTINGS:
            raise DataError(f"unknown setting {name!r}.{did_you_mean(name, SETTINGS)}")
    given: dict[str, Any] = {name: text for name, text in settings.items() if name in _CONVENTION}
    try:
        if "fps" in given:
            given["fps"] = float(given["fps"])
        if "action_scale" in given:
            given["action_scale"] = [float(x) for x in given["action_scale"].split(",")]
    except ValueError as error:
        raise DataError(
            f"{error}; a rate looks like fps=20, a scale like action_scale=0.05,0.05,0.5"
        ) from None
    return Convention(**(store.convention.to_json() | given))


def _own_folder(path: Path | str) -> Path:
    location = locate(path)
    if not isinstance(location, LocalFolder):
        raise DataError(f"{location} is not a local folder, and only those are written; change a copy")
    if "schema_version" not in reading.open_group(location).attrs:
        raise DataError(
            f"{location} has another layout, and is only read; make a copy with mode-data filter --task"
        )
    return location.path
