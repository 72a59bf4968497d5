"""What goes into a store comes out of it, also for readers that know nothing of this package."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from rich.console import Console

import mode_datasets.columns
import mode_datasets.profiles
from mode_datasets import describe, find_stores, open_store
from mode_policy.errors import DataError
from mode_policy.normalization import compute_statistics
from mode_policy.types import ACTION, STATE, Feature, InstructionTable, UnknownInstructionError

from .conftest import CAMERA, PROVENANCE, TASKS, VECTORS, WITH_IMAGES, make_episodes, write


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    # 7 does not divide the episodes below: shards hold parts of several episodes, the last is not full.
    monkeypatch.setattr(mode_datasets.profiles, "SHARD_FRAMES", 7)
    monkeypatch.setattr(mode_datasets.columns, "VECTOR_BYTES", 64)


def embed(*instructions: str) -> InstructionTable:
    embeddings = torch.arange(4.0 * len(instructions)).reshape(-1, 4)
    return InstructionTable(encoder="toy", instructions=instructions, embeddings=embeddings)


@pytest.mark.usefixtures("small_shards")
def test_episodes_survive_bit_for_bit(tmp_path: Path) -> None:
    episodes = make_episodes([5, 1, 16, 3], WITH_IMAGES)
    write(tmp_path / "demo.zarr", episodes, WITH_IMAGES, fps=12.5)
    store = open_store(tmp_path / "demo.zarr")

    assert store.fps == 12.5
    assert store.features == WITH_IMAGES
    assert store.tasks == TASKS
    assert store.provenance == PROVENANCE
    assert store.instruction_table is None
    assert (store.num_episodes, store.num_steps) == (4, 25)
    assert store.episode_ends.tolist() == [5, 6, 22, 25]
    assert store.episode_starts.tolist() == [0, 5, 6, 22]
    assert store.episode_lengths.tolist() == [5, 1, 16, 3]
    assert store.episode_tasks.tolist() == [0, 1, 0, 1]
    assert store.episode_seeds.tolist() == [100, 101, 102, 103]
    for i, expected in enumerate(episodes):
        episode = store.episode(i)
        assert (episode.task, episode.seed) == (expected.task, expected.seed)
        for key, values in expected.arrays.items():
            assert episode.arrays[key].dtype == values.dtype
            np.testing.assert_array_equal(episode.arrays[key], values)
    whole = np.concatenate([e.arrays[CAMERA] for e in episodes])
    np.testing.assert_array_equal(store.all_frames(CAMERA), whole)
    np.testing.assert_array_equal(store.frames(CAMERA, np.array([24, 0, 7, 7])), whole[[24, 0, 7, 7]])


@pytest.mark.usefixtures("small_shards")
def test_any_zarr_reader_opens_it(tmp_path: Path) -> None:
    episodes = make_episodes([5, 9], WITH_IMAGES)
    write(tmp_path / "demo.zarr", episodes, WITH_IMAGES)
    group = zarr.open_group(str(tmp_path / "demo.zarr"), mode="r")

    assert group.metadata.zarr_format == 3
    for key in WITH_IMAGES:
        expected = np.concatenate([e.arrays[key] for e in episodes])
        np.testing.assert_array_equal(group[f"data/{key}"][...], expected)  # type: ignore[index]
    np.testing.assert_array_equal(group["meta/episode_ends"][...], [5, 14])  # type: ignore[index]
    camera = group[f"data/{CAMERA}"]
    assert isinstance(camera, zarr.Array)
    assert (camera.chunks[0], (camera.shards or (0,))[0]) == (1, 7)


def test_zeros_are_data(tmp_path: Path) -> None:
    """Zarr leaves out chunks of zeros unless told otherwise; a reader could not tell them from lost files."""
    episodes = make_episodes([6], WITH_IMAGES)
    for values in episodes[0].arrays.values():
        values[:] = 0
    write(tmp_path / "demo.zarr", episodes, WITH_IMAGES)
    assert not open_store(tmp_path / "demo.zarr").episode(0).arrays[CAMERA].any()


def test_statistics_are_those_of_the_data(tmp_path: Path) -> None:
    episodes = make_episodes([30, 20], VECTORS)
    write(tmp_path / "demo.zarr", episodes, VECTORS)
    expected = compute_statistics({k: np.concatenate([e.arrays[k] for e in episodes]) for k in VECTORS})
    statistics = open_store(tmp_path / "demo.zarr").statistics
    for key in VECTORS:
        for name, values in expected[key].items():
            np.testing.assert_array_equal(statistics[key][name], values)


def test_instruction_table_survives(tmp_path: Path) -> None:
    table = embed("reach the goal", "an unused one", "push the puck")
    write(tmp_path / "demo.zarr", make_episodes([4, 4], VECTORS), VECTORS, instructions=table)
    stored = open_store(tmp_path / "demo.zarr").instruction_table
    assert stored is not None
    assert (stored.encoder, stored.instructions) == (table.encoder, table.instructions)
    assert torch.equal(stored.embeddings, table.embeddings)


def test_instructions_must_cover_the_tasks(tmp_path: Path) -> None:
    write(tmp_path / "demo.zarr", make_episodes([4, 4], VECTORS), VECTORS)
    store = open_store(tmp_path / "demo.zarr")
    with pytest.raises(UnknownInstructionError, match="reach the goal"):
        store.with_instructions(embed("push the puck"))
    carrying = store.with_instructions(embed("push the puck", "reach the goal"))
    assert carrying.instruction_table is not None
    assert store.instruction_table is None

    incomplete = embed("reach the goal")
    with pytest.raises(UnknownInstructionError, match="push the puck"):
        write(tmp_path / "other.zarr", make_episodes([4], VECTORS), VECTORS, instructions=incomplete)
    assert not (tmp_path / "other.zarr").exists()


def test_inspection_names_what_matters(tmp_path: Path) -> None:
    write(tmp_path / "demo.zarr", make_episodes([4, 6, 8], WITH_IMAGES), WITH_IMAGES)
    store = open_store(tmp_path / "demo.zarr")
    console = Console(width=160, record=True, file=(tmp_path / "out.txt").open("w"))
    console.print(describe(store))
    text = console.export_text()
    for expected in (STATE, CAMERA, "push the puck", "4 / 6 / 8", "MiB", "licence", "20 Hz", "profile train"):
        assert expected in text
    summary = json.loads(json.dumps(store.summary()))
    assert summary["tasks"] == {"push": 2, "reach": 1}
    assert summary["lengths"] == [4, 6, 8]


def test_long_names_can_be_told_apart(tmp_path: Path) -> None:
    names = tuple(f"previous_object1_q{i}" for i in range(4))
    features = {STATE: Feature(shape=(4,), names=names), ACTION: VECTORS[ACTION]}
    write(tmp_path / "demo.zarr", make_episodes([4], features), features)
    console = Console(width=80, record=True, file=(tmp_path / "out.txt").open("w"))
    console.print(describe(open_store(tmp_path / "demo.zarr")))
    text = console.export_text()
    assert all(name in text for name in names)


def test_linked_stores_are_found(tmp_path: Path) -> None:
    write(tmp_path / "disk" / "a.zarr", make_episodes([3], VECTORS), VECTORS)
    (tmp_path / "stores" / "below").mkdir(parents=True)
    (tmp_path / "stores" / "b.zarr").symlink_to(tmp_path / "disk" / "a.zarr")
    (tmp_path / "stores" / "disk").symlink_to(tmp_path / "disk")
    (tmp_path / "stores" / "below" / "circle").symlink_to(tmp_path / "stores")
    found = [path.relative_to(tmp_path / "stores").as_posix() for path in find_stores(tmp_path / "stores")]
    assert {"b.zarr", "disk/a.zarr"} <= set(found)
    assert len(found) < 10


def test_stores_are_found_by_their_metadata(tmp_path: Path) -> None:
    for name in ("b.zarr", "below/a.zarr", ".b.zarr.partial-1"):
        write(tmp_path / name, make_episodes([3], VECTORS), VECTORS)
    (tmp_path / "not_a_store").mkdir()
    assert find_stores(tmp_path) == [tmp_path / "b.zarr", tmp_path / "below" / "a.zarr"]
    assert find_stores(tmp_path / "b.zarr") == [tmp_path / "b.zarr"]
    with pytest.raises(DataError, match="not a folder"):
        find_stores(tmp_path / "nowhere")


def test_features_and_episodes_beyond_the_end_are_named(tmp_path: Path) -> None:
    write(tmp_path / "demo.zarr", make_episodes([3], VECTORS), VECTORS)
    store = open_store(tmp_path / "demo.zarr")
    assert store.array(ACTION).shape == (3, 2)
    with pytest.raises(DataError, match=r"Did you mean 'action'"):
        store.array("actions")
    for index in (1, -1):
        with pytest.raises(DataError, match=f"episode {index} "):
            store.episode(index)
