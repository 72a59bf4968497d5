"""Windows against a slow and obvious definition of them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mode_datasets import DemonstrationStore, Windows, WindowSpec, open_store
from mode_policy.errors import DataError
from mode_policy.types import ACTION, STATE, Feature, InstructionTable, UnknownInstructionError

from .conftest import CAMERA, VECTORS, WITH_IMAGES, make_episodes, write

MakeStore = Callable[..., DemonstrationStore]


def slow_window(
    store: DemonstrationStore, spec: WindowSpec, episode: int, step: int
) -> dict[str, np.ndarray]:
    """One window, step by step, from whole episodes."""
    arrays = store.episode(episode).arrays
    length = len(arrays[ACTION])
    past = [max(0, step - back) for back in reversed(range(spec.history))]
    return {
        **{key: np.stack([x[i] for i in past]) for key, x in arrays.items() if key != ACTION},
        ACTION: np.stack([arrays[ACTION][min(step + i, length - 1)] for i in range(spec.chunk)]),
        "is_pad": np.array([step + i >= length for i in range(spec.chunk)]),
    }


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    history=st.integers(1, 4),
    chunk=st.integers(1, 12),
    data=st.data(),
)
def test_batches_equal_the_definition(
    lengths: list[int], history: int, chunk: int, data: st.DataObject
) -> None:
    spec = WindowSpec(history=history, chunk=chunk)
    episodes = data.draw(st.lists(st.sampled_from(range(len(lengths))), min_size=1, unique=True))
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / "demo.zarr", make_episodes(lengths, WITH_IMAGES), WITH_IMAGES)
        store = open_store(Path(folder) / "demo.zarr")
        windows = Windows(store, spec, np.array(episodes), image_keys=[CAMERA])
        where = [(episode, step) for episode in episodes for step in range(lengths[episode])]
        assert len(windows) == len(where)
        indices = np.array(data.draw(st.lists(st.sampled_from(range(len(where))), min_size=1, max_size=20)))
        batch = windows.batch(indices)
        expected = [slow_window(store, spec, *where[i]) for i in indices]

    got = {
        **batch.observation.states,
        **batch.observation.images,
        ACTION: batch.actions,
        "is_pad": batch.action_is_pad,
    }
    for key, x in got.items():
        np.testing.assert_array_equal(x.numpy(), np.stack([window[key] for window in expected]))
    assert [tuple(pair) for pair in np.stack(windows.locate(indices), 1).tolist()] == [
        where[i] for i in indices
    ]


def test_a_window_drawn_by_hand(make_store: MakeStore) -> None:
    store = make_store([2, 3])
    actions, states = (store.vectors()[key] for key in (ACTION, STATE))
    batch = Windows(store, WindowSpec(history=2, chunk=3)).batch(np.array([0, 2, 4]))
    np.testing.assert_array_equal(batch.observation.states[STATE], states[[[0, 0], [2, 2], [3, 4]]])
    np.testing.assert_array_equal(batch.actions, actions[[[0, 1, 1], [2, 3, 4], [4, 4, 4]]])
    assert batch.action_is_pad.tolist() == [[False, False, True], [False] * 3, [False, True, True]]
    assert (batch.actions.dtype, batch.action_is_pad.dtype) == (torch.float32, torch.bool)
    assert batch.observation.instruction is None


def test_instructions_follow_the_task_of_the_episode(make_store: MakeStore) -> None:
    texts = ("an unused one", "reach the goal", "push the puck")
    table = InstructionTable(encoder="toy", instructions=texts, embeddings=torch.eye(3))
    windows = Windows(make_store([2, 3]).with_instructions(table), WindowSpec())
    embedded = windows.batch(np.array([4, 0, 1])).observation.instruction
    assert embedded is not None
    assert embedded.argmax(1).tolist() == [1, 2, 2]


def test_features_are_delivered_as_asked(make_store: MakeStore) -> None:
    features = {**WITH_IMAGES, "observation.gripper": Feature(shape=(1,))}
    store = make_store([4, 4], features)
    observation = Windows(store, WindowSpec()).batch(np.arange(3)).observation
    assert set(observation.states) == {STATE, "observation.gripper"}
    assert not observation.images
    windows = Windows(store, WindowSpec(history=2), state_keys=["observation.gripper"], image_keys=[CAMERA])
    observation = windows.batch(np.arange(3)).observation
    assert set(observation.states) == {"observation.gripper"}
    assert observation.images[CAMERA].shape == (3, 2, 4, 5, 3)
    assert observation.images[CAMERA].dtype == torch.uint8


def test_cached_images_are_the_same(make_store: MakeStore) -> None:
    store = make_store([7, 4], WITH_IMAGES)
    spec, indices = WindowSpec(history=3), np.array([10, 0, 6, 6])
    streamed, cached = (
        Windows(store, spec, image_keys=[CAMERA], cache_images=cache)
        .batch(indices)
        .observation.images[CAMERA]
        for cache in (False, True)
    )
    assert torch.equal(streamed, cached)


def test_batches_do_not_alias_the_store(make_store: MakeStore) -> None:
    windows = Windows(make_store([5]), WindowSpec(chunk=1))
    expected = windows.batch(np.arange(5)).actions.clone()
    windows.batch(np.arange(5)).actions.zero_()
    assert torch.equal(windows.batch(np.arange(5)).actions, expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"episodes": np.array([0, 2])}, "episode 2 .* does not exist; it has 2"),
        ({"episodes": np.array([-1])}, "episode -1"),
        ({"episodes": np.array([1, 1])}, "each only once"),
        ({"episodes": np.array([], dtype=int)}, "at least one"),
        ({"state_keys": ["observation.stat"]}, "Did you mean 'observation.state'"),
        ({"state_keys": [ACTION]}, "cannot deliver 'action'"),
        ({"image_keys": [CAMERA]}, f"cannot deliver '{CAMERA}'"),
        ({"state_keys": []}, "must observe something"),
    ],
)
def test_impossible_choices_are_refused(
    make_store: MakeStore, arguments: dict[str, object], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        Windows(make_store([3, 3], VECTORS), WindowSpec(), **arguments)  # type: ignore[arg-type]


def test_unknown_instructions_are_refused(make_store: MakeStore) -> None:
    table = InstructionTable(encoder="toy", instructions=("push the puck",), embeddings=torch.eye(1))
    with pytest.raises(UnknownInstructionError, match="reach the goal"):
        make_store([3, 3]).with_instructions(table)


@pytest.mark.parametrize("extent", [{"history": 0}, {"chunk": 0}])
def test_windows_have_an_extent(extent: dict[str, int]) -> None:
    with pytest.raises(DataError, match="at least 1"):
        WindowSpec(**extent)
