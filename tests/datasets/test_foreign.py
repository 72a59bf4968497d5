"""Stores of other programs are read in place, described by a layout, and never run as code."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from mode_datasets import Provenance, ReplayBufferLayout, open_store
from mode_policy.convention import Convention
from mode_policy.errors import DataError
from mode_policy.types import ACTION, STATE, Feature, Task

from .conftest import CAMERA, PROVENANCE, VECTORS, WITH_IMAGES, make_episodes, rewrite, write

LAYOUT = ReplayBufferLayout(
    keys={STATE: "state", ACTION: "action", CAMERA: "img"},
    features=WITH_IMAGES,
    convention=Convention(fps=10.0),
    task=Task(name="push", instruction="push the puck"),
    provenance=Provenance(source="elsewhere", licence="MIT"),
)


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """A ``ReplayBuffer`` in zarr format 2: 10 steps in 2 episodes, float images, keypoints."""
    rng = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {
        "data/state": rng.normal(size=(10, 3)),
        "data/action": rng.normal(size=(10, 2)).astype(np.float32),
        "data/keypoint": rng.normal(size=(10, 2, 2)).astype(np.float32),
        "data/img": rng.integers(0, 256, (10, 4, 5, 3)).astype(np.float32),
        "meta/episode_ends": np.array([6, 10]),
    }
    group = zarr.create_group(str(tmp_path / "foreign.zarr"), zarr_format=2)
    for name, x in arrays.items():
        group.create_array(name, data=x, chunks=(4, *x.shape[1:]), config={"write_empty_chunks": True})
    return tmp_path / "foreign.zarr"


def test_a_store_that_describes_itself_needs_no_layout(tmp_path: Path) -> None:
    write(tmp_path / "demo.zarr", make_episodes([3], WITH_IMAGES), WITH_IMAGES)
    with pytest.raises(DataError, match="describes itself"):
        open_store(tmp_path / "demo.zarr", LAYOUT)


def test_foreign_stores_are_read_in_place(foreign: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in foreign.rglob("*")}
    store = open_store(foreign, LAYOUT)
    raw = zarr.open_group(str(foreign), mode="r")
    assert store.episode_lengths.tolist() == [6, 4]
    assert store.tasks == (LAYOUT.task,)
    assert store.episode_seeds.tolist() == [-1, -1]
    assert store.vectors()[STATE].dtype == np.float32
    second = store.episode(1)
    np.testing.assert_array_equal(second.arrays[ACTION], raw["data/action"][6:])  # type: ignore[index]
    np.testing.assert_array_equal(second.arrays[CAMERA], raw["data/img"][6:])  # type: ignore[index]
    assert second.arrays[CAMERA].dtype == np.uint8
    np.testing.assert_allclose(store.statistics[STATE]["max"], store.vectors()[STATE].max(0))
    assert {p: p.stat().st_mtime_ns for p in foreign.rglob("*")} == before


def layout(keys: dict[str, str], **features: Feature) -> ReplayBufferLayout:
    described = {STATE: VECTORS[STATE], ACTION: VECTORS[ACTION], **features}
    return ReplayBufferLayout(
        keys=keys,
        features=described,
        convention=Convention(fps=10.0),
        task=LAYOUT.task,
        provenance=PROVENANCE,
    )


def test_vectors_of_several_axes_are_flattened(foreign: Path) -> None:
    keys = {STATE: "state", ACTION: "action", "observation.keypoints": "keypoint"}
    described = layout(keys, **{"observation.keypoints": Feature(shape=(4,))})
    x = open_store(foreign, described).vectors()["observation.keypoints"]
    raw = zarr.open_array(str(foreign / "data" / "keypoint"), mode="r")
    np.testing.assert_array_equal(x.reshape(10, 2, 2), raw[...])


def test_foreign_stores_need_a_layout(foreign: Path) -> None:
    with pytest.raises(DataError, match=r"data/action, data/img, .*meta/episode_ends.*dataset\.keys"):
        open_store(foreign)


def test_layouts_name_existing_arrays(foreign: Path) -> None:
    with pytest.raises(DataError, match=r"no array 'data/actoin'.*Did you mean 'data/action'"):
        open_store(foreign, layout({STATE: "state", ACTION: "actoin"}))
    with pytest.raises(DataError, match="each feature needs exactly one array"):
        layout({ACTION: "action"})


def test_foreign_damage_is_found_too(foreign: Path) -> None:
    (foreign / "data" / "action" / "1.0").unlink()
    with pytest.raises(DataError, match=r"lacks its chunk file .*action/1\.0"):
        open_store(foreign, LAYOUT)


@pytest.mark.parametrize("scale", [1 / 255, 2.0])
def test_images_are_0_to_255(foreign: Path, scale: float) -> None:
    rewrite(foreign, "data/img", lambda x: x * np.float32(scale))
    with pytest.raises(DataError, match="convert them to 0…255"):
        open_store(foreign, LAYOUT).all_frames(CAMERA)


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("a pickle was executed",))


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": "|O", "filters": [{"id": "pickle", "protocol": 5}], "compressor": None},
        {"dtype": "<f4", "filters": [{"id": "pickle", "protocol": 5}], "compressor": None},
        {"dtype": "<f4", "filters": None, "compressor": {"id": "pickle", "protocol": 5}},
        {"dtype": "<U4", "filters": None, "compressor": None},
    ],
)
def test_objects_are_refused_and_never_unpickled(foreign: Path, change: dict[str, Any]) -> None:
    folder = foreign / "data" / "state"
    metadata = json.loads((folder / ".zarray").read_text()) | change | {"fill_value": None}
    (folder / ".zarray").write_text(json.dumps(metadata))
    for chunk in folder.glob("*.0"):
        chunk.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(DataError, match="only plain numbers are read"):
        open_store(foreign, LAYOUT)


def test_push_t_is_read_in_place(pusht_path: Path) -> None:
    described = ReplayBufferLayout(
        keys={STATE: "state", ACTION: "action", CAMERA: "img"},
        features={
            STATE: Feature(shape=(5,), unit="px", angles=(4,)),
            ACTION: Feature(shape=(2,), unit="px"),
            CAMERA: Feature(shape=(96, 96, 3), dtype="uint8"),
        },
        convention=Convention(fps=10.0),
        task=Task(name="pusht", instruction="push the T onto its outline"),
        provenance=Provenance(source="Diffusion Policy, arXiv 2303.04137", licence="MIT"),
    )
    store = open_store(pusht_path, described)
    raw = zarr.open_group(str(pusht_path), mode="r")
    assert (store.num_episodes, store.num_steps) == (206, 25_650)
    np.testing.assert_array_equal(store.vectors()[STATE], raw["data/state"][...])  # type: ignore[index]
    assert store.statistics[ACTION]["min"].min() >= 0
    assert store.statistics[ACTION]["max"].max() <= 512
    images = store.frames(CAMERA, np.array([200, 3]))
    np.testing.assert_array_equal(images[1], raw["data/img"][3])  # type: ignore[index]
