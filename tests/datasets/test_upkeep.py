"""What a store says of itself is set right, and only that is changed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from mode_datasets import open_store
from mode_datasets.edit import Selection, append_episodes
from mode_datasets.upkeep import migrate_store, renew_statistics, stored_statistics, wrong_statistics
from mode_policy.convention import Convention
from mode_policy.errors import DataError
from mode_policy.normalization import compute_statistics
from mode_policy.types import STATE, Episode

from .conftest import VECTORS, WITH_IMAGES, make_episodes, rewrite, write


def test_statistics_are_renewed(tmp_path: Path) -> None:
    path = tmp_path / "demo.zarr"
    write(path, make_episodes([4, 6], VECTORS), VECTORS)
    rewrite(path, f"data/{STATE}", lambda x: 3 * x)
    with pytest.raises(DataError, match="other data"):
        open_store(path)
    actual = compute_statistics(open_store(path, check_statistics=False).vectors())
    wrong = wrong_statistics(stored_statistics(path)[0], actual)
    assert {w.key for w in wrong} == {STATE}
    assert wrong[0].true == pytest.approx(3 * wrong[0].stored)
    renew_statistics(path)
    assert wrong_statistics(open_store(path).statistics, actual) == []


def test_statistics_that_are_missing_are_wrong() -> None:
    actual = compute_statistics({STATE: np.arange(6.0).reshape(3, 2)})
    found = wrong_statistics({STATE: {**actual[STATE], "q01": np.zeros(3)}}, actual)
    assert [(w.name, w.dimension) for w in found] == [("q01", 0), ("q01", 1)]
    assert wrong_statistics(actual, actual) == []


@pytest.fixture
def old_store(tmp_path: Path) -> Path:
    """A store as version 1 wrote it."""
    path = tmp_path / "old.zarr"
    write(path, make_episodes([4, 6], WITH_IMAGES), WITH_IMAGES)
    group = zarr.open_group(str(path), mode="r+")
    attributes = dict(group.attrs)
    for name in ("convention", "image_orientation", "profile", "episodes"):
        del attributes[name]
    statistics = {k: v for k, v in attributes["statistics"].items() if k != "episodes"}  # type: ignore[union-attr]
    group.attrs.put(attributes | {"schema_version": 1, "fps": 20.0, "statistics": statistics})
    return path


def test_an_old_store_is_brought_up_to_date(old_store: Path) -> None:
    before = [open_store(old_store).episode(i) for i in range(2)]
    changed = migrate_store(
        old_store, {"action_kind": "delta", "action_scale": "0.05,0.5", "licence": "CC0-1.0"}
    )
    assert changed["schema_version"] == (1, 2)
    assert changed["episodes"] == (None, 2)
    store = open_store(old_store)
    assert store.convention == Convention(fps=20.0, action_kind="delta", action_scale=(0.05, 0.5))
    assert store.provenance.licence == "CC0-1.0"
    for i in range(2):
        episode: Episode = store.episode(i)
        assert all(np.array_equal(x, before[i].arrays[key]) for key, x in episode.arrays.items())
    assert "fps" not in zarr.open_group(str(old_store), mode="r").attrs
    assert migrate_store(old_store, {}) == {}
    assert append_episodes(old_store, [Selection.whole(store)]) == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"action_knd": "delta"}, "unknown setting 'action_knd'. Did you mean 'action_kind'"),
        ({"action_kind": "relative"}, "action_kind 'relative' is none of"),
        ({"image_orientation": "upsidedown"}, "Did you mean 'upside_down'"),
        ({"fps": "fast"}, "a rate looks like fps=20"),
        ({"action_scale": "1;2"}, "a scale like"),
    ],
)
def test_settings_that_make_no_sense(old_store: Path, settings: dict[str, str], message: str) -> None:
    before = (old_store / "zarr.json").read_bytes()
    with pytest.raises(DataError, match=message):
        migrate_store(old_store, settings)
    assert (old_store / "zarr.json").read_bytes() == before


@pytest.mark.parametrize("change", [renew_statistics, lambda path: migrate_store(path, {})])
def test_only_our_own_local_stores_are_written(tmp_path: Path, change: Callable[[Any], Any]) -> None:
    zarr.create_group(str(tmp_path / "foreign.zarr"), zarr_format=2)
    with pytest.raises(DataError, match="another layout, and is only read"):
        change(tmp_path / "foreign.zarr")
    with pytest.raises(DataError, match="not a local folder"):
        change("memory://demo.zarr")
