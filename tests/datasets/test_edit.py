"""Stores made from stores hold exactly what was asked for, or are not made."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mode_datasets import DemonstrationStore, StoreWriter, open_store
from mode_datasets.edit import Selection, append_episodes, copy_episodes
from mode_policy.convention import Convention
from mode_policy.errors import ConventionError, DataError
from mode_policy.types import ACTION, STATE, Episode, Feature, Features, InstructionTable, Task

from .conftest import CAMERA, CONVENTION, PROVENANCE, TASKS, VECTORS, WITH_IMAGES, make_episodes


def store_of(
    path: Path,
    episodes: list[Episode],
    features: Features = VECTORS,
    convention: Convention = CONVENTION,
    instructions: InstructionTable | None = None,
    licence: str = "MIT",
) -> DemonstrationStore:
    provenance = replace(PROVENANCE, licence=licence, source=f"source of {path.stem}")
    with StoreWriter(path, features, convention, provenance) as writer:
        for episode in episodes:
            writer.append(episode)
        if instructions is not None:
            writer.set_instructions(instructions)
    return open_store(path)


def assert_same(a: Episode, b: Episode) -> None:
    assert (a.task, a.seed, set(a.arrays)) == (b.task, b.seed, set(b.arrays))
    for key, x in a.arrays.items():
        np.testing.assert_array_equal(x, b.arrays[key])


def table(*texts: str, encoder: str = "minilm-l6-v2") -> InstructionTable:
    embeddings = torch.tensor([[float(len(text)), 1.0] for text in texts])
    return InstructionTable(encoder=encoder, instructions=texts, embeddings=embeddings)


def test_a_merged_store_holds_all_episodes_in_order(tmp_path: Path) -> None:
    first, second = make_episodes([4, 6], WITH_IMAGES, seed=1), make_episodes([5, 3, 2], WITH_IMAGES, seed=2)
    a = store_of(tmp_path / "a.zarr", first, WITH_IMAGES)
    b = store_of(tmp_path / "b.zarr", second, WITH_IMAGES, licence="CC-BY-4.0")
    progress: list[tuple[int, int]] = []
    copy_episodes(
        [Selection.whole(a), Selection.whole(b)],
        tmp_path / "both.zarr",
        command="mode-data merge",
        progress=lambda done, total: progress.append((done, total)),
    )
    both = open_store(tmp_path / "both.zarr")
    assert both.num_episodes == 5
    for i, episode in enumerate([*first, *second]):
        assert_same(both.episode(i), episode)
    assert progress == [(i + 1, 5) for i in range(5)]
    provenance = both.provenance
    assert (provenance.licence, provenance.command) == ("MIT AND CC-BY-4.0", "mode-data merge")
    assert "a.zarr (2 of 2 episodes" in provenance.source
    assert "source of b" in provenance.source


def test_copies_keep_chosen_episodes_and_features(tmp_path: Path) -> None:
    episodes = make_episodes([4, 6, 5], WITH_IMAGES)
    store = store_of(tmp_path / "a.zarr", episodes, WITH_IMAGES)
    copy_episodes(
        [Selection(store=store, episodes=np.array([2, 0]))],
        tmp_path / "b.zarr",
        keys=[STATE],
        profile="archive",
    )
    copy = open_store(tmp_path / "b.zarr")
    assert set(copy.features) == {STATE, ACTION}
    assert copy.profile == "archive"
    assert copy.episode_lengths.tolist() == [5, 4]
    np.testing.assert_array_equal(copy.episode(0).arrays[STATE], episodes[2].arrays[STATE])


def test_an_interrupted_copy_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    episodes = make_episodes([4] * 9, WITH_IMAGES)
    store = store_of(tmp_path / "a.zarr", episodes, WITH_IMAGES)

    def interrupt(done: int, total: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        copy_episodes([Selection.whole(store)], tmp_path / "b.zarr", progress=interrupt)
    assert not (tmp_path / "b.zarr").exists()
    read: list[int] = []
    original = DemonstrationStore.episode
    monkeypatch.setattr(DemonstrationStore, "episode", lambda self, i: read.append(i) or original(self, i))
    copy_episodes([Selection.whole(store)], tmp_path / "b.zarr")
    assert read == [5, 6, 7, 8], "the first five were kept"
    copy = open_store(tmp_path / "b.zarr")
    for i, episode in enumerate(episodes):
        assert_same(original(copy, i), episode)


def test_an_interrupted_copy_of_something_else_is_not_mixed_in(tmp_path: Path) -> None:
    store = store_of(tmp_path / "a.zarr", make_episodes([4] * 6, VECTORS))

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        copy_episodes([Selection.whole(store)], tmp_path / "b.zarr", progress=interrupt)
    chosen = Selection(store=store, episodes=np.array([1, 2]))
    with pytest.raises(DataError, match=r"interrupted writer of other provenance; delete it"):
        copy_episodes([chosen], tmp_path / "b.zarr")


def test_nothing_left_is_no_store(tmp_path: Path) -> None:
    store = store_of(tmp_path / "a.zarr", make_episodes([4], VECTORS))
    with pytest.raises(DataError, match="no episode is left"):
        copy_episodes([Selection(store=store, episodes=np.array([], int))], tmp_path / "b.zarr")
    assert not (tmp_path / "b.zarr").exists()


def test_stores_are_replaced_only_on_request(tmp_path: Path) -> None:
    store = store_of(tmp_path / "a.zarr", make_episodes([4, 5], VECTORS))
    one = Selection(store=store, episodes=np.array([1]))
    with pytest.raises(DataError, match="exists"):
        copy_episodes([one], tmp_path / "a.zarr")
    copy_episodes([one], tmp_path / "a.zarr", overwrite=True)
    assert open_store(tmp_path / "a.zarr").episode_lengths.tolist() == [5]


def test_a_damaged_source_leaves_no_copy(tmp_path: Path) -> None:
    store = store_of(tmp_path / "a.zarr", make_episodes([4, 5], WITH_IMAGES), WITH_IMAGES)
    file = tmp_path / "a.zarr" / "data" / CAMERA / "c" / "0" / "0" / "0" / "0"
    content = bytearray(file.read_bytes())
    content[100] ^= 1
    file.write_bytes(content)
    with pytest.raises(DataError, match="corrupt"):
        copy_episodes([Selection.whole(store)], tmp_path / "b.zarr")
    assert not (tmp_path / "b.zarr").exists()


def test_what_one_store_knows_counts_for_both(tmp_path: Path) -> None:
    unnamed = {STATE: Feature(shape=(3,)), ACTION: Feature(shape=(2,))}
    a = store_of(tmp_path / "a.zarr", make_episodes([4], unnamed), unnamed)
    known = Convention(fps=20.0, action_kind="delta", action_scale=(0.1, 0.1))
    b = store_of(tmp_path / "b.zarr", make_episodes([5], VECTORS), VECTORS, known)
    copy_episodes([Selection.whole(a), Selection.whole(b)], tmp_path / "both.zarr")
    both = open_store(tmp_path / "both.zarr")
    assert both.convention == known
    assert both.features == VECTORS


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (
            {"gripper": "plus_closes"},
            {"gripper": "plus_opens"},
            r"gripper: plus_closes and plus_opens\n.*adapt",
        ),
        ({"fps": 20.0}, {"fps": 10.0}, r"20 Hz and 10 Hz\n.*dataset.adapt.stride=2"),
        ({"action_kind": "delta"}, {"action_kind": "absolute"}, "action kind: delta and absolute"),
    ],
)
def test_stores_of_other_conventions_are_not_merged(
    tmp_path: Path, first: dict[str, Any], second: dict[str, Any], message: str
) -> None:
    a, b = (
        store_of(tmp_path / name, make_episodes([4], VECTORS), VECTORS, Convention(**{"fps": 20.0, **c}))
        for name, c in (("a.zarr", first), ("b.zarr", second))
    )
    for merge in (
        lambda: copy_episodes([Selection.whole(a), Selection.whole(b)], tmp_path / "both.zarr"),
        lambda: append_episodes(tmp_path / "a.zarr", [Selection.whole(b)]),
    ):
        with pytest.raises(ConventionError, match=message):
            merge()
    assert not (tmp_path / "both.zarr").exists()
    assert open_store(tmp_path / "a.zarr").num_episodes == 1


def test_features_that_one_store_lacks_can_be_left_out(tmp_path: Path) -> None:
    a = store_of(tmp_path / "a.zarr", make_episodes([4], WITH_IMAGES), WITH_IMAGES)
    b = store_of(tmp_path / "b.zarr", make_episodes([5], VECTORS))
    both = [Selection.whole(a), Selection.whole(b)]
    with pytest.raises(DataError, match=rf"no feature '{CAMERA}'.*--features action observation.state"):
        copy_episodes(both, tmp_path / "both.zarr")
    copy_episodes(both, tmp_path / "both.zarr", keys=[STATE, ACTION])
    assert open_store(tmp_path / "both.zarr").num_episodes == 2
    with pytest.raises(DataError, match=r"Did you mean 'observation.state'"):
        copy_episodes(both, tmp_path / "other.zarr", keys=["observation.stat"])


def test_features_of_other_sizes_can_be_left_out(tmp_path: Path) -> None:
    wider = VECTORS | {"observation.scene": Feature(shape=(3,))}
    narrower = VECTORS | {"observation.scene": Feature(shape=(2,))}
    a = store_of(tmp_path / "a.zarr", make_episodes([3], wider), wider)
    b = store_of(tmp_path / "b.zarr", make_episodes([4], narrower), narrower)
    wholes = [Selection.whole(a), Selection.whole(b)]
    with pytest.raises(DataError, match=r"'observation.scene' is not the same in all stores .*--features"):
        copy_episodes(wholes, tmp_path / "both.zarr")
    copy_episodes(wholes, tmp_path / "both.zarr", keys=list(VECTORS))
    assert open_store(tmp_path / "both.zarr").num_steps == 7


def test_images_of_other_sizes_are_not_merged(tmp_path: Path) -> None:
    larger = {**VECTORS, CAMERA: Feature(shape=(8, 8, 3), dtype="uint8")}
    a = store_of(tmp_path / "a.zarr", make_episodes([4], WITH_IMAGES), WITH_IMAGES)
    b = store_of(tmp_path / "b.zarr", make_episodes([5], larger), larger)
    with pytest.raises(DataError, match=r"not the same in all stores .*\(4, 5, 3\).*\(8, 8, 3\)"):
        copy_episodes([Selection.whole(a), Selection.whole(b)], tmp_path / "both.zarr")


def test_tasks_of_one_name_and_two_meanings(tmp_path: Path) -> None:
    first = make_episodes([4, 5], VECTORS)
    second = [replace(e, task=Task(name="push", instruction="push the cube")) for e in first]
    a, b = store_of(tmp_path / "a.zarr", first), store_of(tmp_path / "b.zarr", second)
    both = [Selection.whole(a), Selection.whole(b)]
    with pytest.raises(DataError, match=r"'push' has different instructions.*--rename-tasks"):
        copy_episodes(both, tmp_path / "both.zarr")
    copy_episodes(both, tmp_path / "both.zarr", rename_tasks=True)
    assert {t.name: t.instruction for t in open_store(tmp_path / "both.zarr").tasks} == {
        "push (a)": "push the puck",
        "reach": "reach the goal",
        "push (b)": "push the cube",
    }


def test_instruction_tables_are_joined_or_left_out(tmp_path: Path) -> None:
    first, second = make_episodes([4], VECTORS), make_episodes([5], VECTORS)
    second = [replace(second[0], task=TASKS[1])]
    texts = [task.instruction for task in TASKS]
    a = store_of(tmp_path / "a.zarr", first, instructions=table(texts[0]))
    b = store_of(tmp_path / "b.zarr", second, instructions=table(texts[1]))
    c = store_of(tmp_path / "c.zarr", second, instructions=table(texts[1], encoder="clip-vit-b32"))
    for other, expected in ((b, table(*texts)), (c, None)):
        path = tmp_path / f"with {other.location.name}"
        copy_episodes([Selection.whole(a), Selection.whole(other)], path)
        joined = open_store(path).instruction_table
        assert (joined is None) == (expected is None)
        if joined is not None and expected is not None:
            assert torch.equal(joined.embed(texts), expected.embed(texts))


def test_appending_twice_is_appending_once(tmp_path: Path) -> None:
    first, second = make_episodes([4, 6], WITH_IMAGES, seed=1), make_episodes([5, 3], WITH_IMAGES, seed=2)
    path = tmp_path / "a.zarr"
    store_of(path, first, WITH_IMAGES, instructions=table(*(task.instruction for task in TASKS)))
    b = store_of(
        tmp_path / "b.zarr", second, WITH_IMAGES, instructions=table(*(t.instruction for t in TASKS))
    )
    assert append_episodes(path, [Selection.whole(b)]) == 2
    assert append_episodes(path, [Selection.whole(b)]) == 0
    both = open_store(path)
    assert both.num_episodes == 4
    for i, episode in enumerate([*first, *second]):
        assert_same(both.episode(i), episode)
    assert "source of a; appended: b.zarr (2 of 2" in both.provenance.source
    assert both.instruction_table is not None


def test_an_interrupted_append_is_safe_to_repeat(tmp_path: Path) -> None:
    first, second = make_episodes([4, 6], VECTORS, seed=1), make_episodes([5, 3, 7, 2], VECTORS, seed=2)
    path = tmp_path / "a.zarr"
    store_of(path, first)
    b = store_of(tmp_path / "b.zarr", second)

    def interrupt(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        append_episodes(path, [Selection.whole(b)], progress=interrupt)
    assert append_episodes(path, [Selection.whole(b)]) == 2
    lengths = [len(episode) for episode in [*first, *second]]
    assert open_store(path).episode_lengths.tolist() == lengths
