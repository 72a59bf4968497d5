"""Everything that can be wrong with a store is found when it is opened, and said in words."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

import mode_datasets.columns
import mode_datasets.profiles
from mode_datasets import DemonstrationStore, open_store
from mode_policy.errors import DataError
from mode_policy.types import ACTION, STATE

from .conftest import CAMERA, WITH_IMAGES, rewrite

MakeStore = Callable[..., DemonstrationStore]


@pytest.fixture(autouse=True)
def _several_files_per_array(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mode_datasets.profiles, "SHARD_FRAMES", 4)
    monkeypatch.setattr(mode_datasets.columns, "VECTOR_BYTES", 48)


@pytest.fixture
def path(make_store: MakeStore) -> Path:
    """A store of 10 steps in 3 episodes."""
    return make_store([3, 5, 2], WITH_IMAGES).location.path


def set_attributes(path: Path, **attributes: Any) -> None:
    zarr.open_group(str(path), mode="r+").update_attributes(attributes)


def test_a_missing_store_suggests_its_neighbours(path: Path) -> None:
    with pytest.raises(DataError, match=r"no demonstration store at .*Did you mean 'demo.zarr'"):
        open_store(path.with_name("dmeo.zarr"))
    with pytest.raises(DataError, match="no demonstration store"):
        open_store(path / "nowhere" / "at_all.zarr")


@pytest.mark.parametrize("content", [None, "{", '{"zarr_format": 3, "node_type": "array"}'])
def test_other_folders_are_not_stores(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "zarr.json").write_text(content)
    with pytest.raises(DataError, match="is not a zarr group"):
        open_store(tmp_path)


def test_newer_schemas_are_refused(path: Path) -> None:
    set_attributes(path, schema_version=3)
    with pytest.raises(DataError, match=r"schema version 3.*up to 2.*upgrade"):
        open_store(path)


@pytest.mark.parametrize(
    "damage",
    [
        {"features": None},
        {"tasks": [{"nom": "x"}]},
        {"statistics": {}},
        {"convention": {"fps": None}},
        {"convention": {"speed": 3}},
        {"image_orientation": "sideways"},
    ],
)
def test_damaged_attributes_are_refused(path: Path, damage: dict[str, Any]) -> None:
    set_attributes(path, **damage)
    with pytest.raises(DataError, match=r"attributes of .* are damaged"):
        open_store(path)


def test_missing_arrays_are_named(path: Path) -> None:
    del zarr.open_group(str(path), mode="r+")["meta/episode_ends"]
    with pytest.raises(DataError, match=r"no array 'meta/episode_ends'.*Known: .*meta/episode_seed"):
        open_store(path)


@pytest.mark.parametrize(
    ("ends", "message"),
    [
        ([3, 3, 10], "not strictly increasing: episode 1 would have 0 steps"),
        ([8, 3, 10], "episode 1 would have -5 steps"),
        ([0, 8, 10], "episode 0 would have 0 steps"),
        ([3, 8, 12], "end beyond the data: the last is 12, the arrays have 10"),
        ([3, 8, 9], "computed from other data than it holds"),
        ([], "it must be int64"),
        ([3, 10], "has 3 episodes, but ends for 2"),
        ([3.0, 8.0, 10.0], "float64"),
    ],
)
def test_episode_ends_are_checked(path: Path, ends: list[float], message: str) -> None:
    rewrite(path, "meta/episode_ends", lambda _: np.array(ends))
    with pytest.raises(DataError, match=message):
        open_store(path)


def test_arrays_are_of_one_length(path: Path) -> None:
    rewrite(path, f"data/{ACTION}", lambda x: x[:-2])
    with pytest.raises(DataError, match=r"differ in length .*data/action: 8.*incomplete"):
        open_store(path)


@pytest.mark.parametrize("key", [STATE, CAMERA])
def test_shapes_follow_the_features(path: Path, key: str) -> None:
    rewrite(path, f"data/{key}", lambda x: x[:, :2])
    with pytest.raises(DataError, match=rf"'data/{key}' has \(2,.* but feature .* says"):
        open_store(path)


@pytest.mark.parametrize("name", ["meta/episode_task", "meta/episode_seed"])
def test_every_episode_has_task_and_seed(path: Path, name: str) -> None:
    rewrite(path, name, lambda x: x[:-1])
    with pytest.raises(DataError, match=r"3 episodes, but tasks for . and seeds for ."):
        open_store(path)


def test_tasks_are_in_the_table(path: Path) -> None:
    rewrite(path, "meta/episode_task", lambda x: x + 1)
    with pytest.raises(DataError, match=r"episode 1 .* has task 2, the table has 2"):
        open_store(path)


@pytest.mark.parametrize("key", [STATE, ACTION, CAMERA])
def test_lost_files_are_not_zeros(path: Path, key: str) -> None:
    """Zarr would fill the gap with zeros and say nothing."""
    lost = sorted(p for p in (path / "data" / key / "c").rglob("*") if p.is_file())[1]
    lost.unlink()
    assert np.isfinite(zarr.open_array(str(path / "data" / key), mode="r")[...]).all()
    with pytest.raises(DataError, match=rf"'data/{key}' lacks its chunk file {lost}"):
        open_store(path)


@pytest.mark.parametrize("key", [STATE, ACTION, CAMERA])
@pytest.mark.parametrize("keep", [0.0, 0.5, 0.95])
def test_files_that_were_cut_short_are_named(path: Path, key: str, keep: float) -> None:
    cut = sorted(p for p in (path / "data" / key / "c").rglob("*") if p.is_file())[1]
    content = cut.read_bytes()
    cut.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(DataError, match=rf"'data/{key}': {cut} is corrupt or cut short"):
        open_store(path)


@pytest.mark.parametrize("name", ["meta/episode_ends", f"data/{STATE}"])
@pytest.mark.parametrize("part", ["shape", "chunks"])
def test_arrays_that_declare_too_much_are_not_read(path: Path, name: str, part: str) -> None:
    file = path / name / "zarr.json"
    metadata = json.loads(file.read_text())
    size = metadata["shape"] if part == "shape" else metadata["chunk_grid"]["configuration"]["chunk_shape"]
    size[0] = 10**13
    file.write_text(json.dumps(metadata))
    with pytest.raises(DataError, match=rf"'{name}' .* declares .* GiB|differ in length"):
        open_store(path)


def test_a_flipped_bit_is_found(path: Path) -> None:
    file = sorted(p for p in (path / "data" / STATE / "c").rglob("*") if p.is_file())[0]
    content = bytearray(file.read_bytes())
    content[-6] ^= 1
    file.write_bytes(content)
    with pytest.raises(DataError, match=f"{file} is corrupt"):
        open_store(path)


def test_a_flipped_bit_in_an_image_is_found_when_it_is_read(path: Path) -> None:
    file = path / "data" / CAMERA / "c" / "1" / "0" / "0" / "0"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    store = open_store(path)
    with pytest.raises(DataError, match=f"{file} is corrupt"):
        store.frames(CAMERA, np.arange(10))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_located(path: Path, value: float) -> None:
    def poison(x: np.ndarray) -> np.ndarray:
        x[5, 1] = value
        return x

    rewrite(path, f"data/{ACTION}", poison)
    with pytest.raises(DataError, match=f"'action' is {value} in episode 1, step 2, dimension 1"):
        open_store(path)


def test_statistics_belong_to_the_data(path: Path) -> None:
    rewrite(path, f"data/{STATE}", lambda x: x * 2)
    with pytest.raises(DataError, match=r"statistics of .* computed from other data"):
        open_store(path)


def test_broken_metadata_is_named(path: Path) -> None:
    file = path / "data" / ACTION / "zarr.json"
    file.write_text(file.read_text()[:40])
    with pytest.raises(DataError, match=r"'data/action' of .* cannot be opened .*metadata is damaged"):
        open_store(path)
