"""Laws of the order of training and of the split."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mode_datasets import BatchSampler, DemonstrationStore, split_episodes
from mode_policy.errors import DataError

MakeStore = Callable[..., DemonstrationStore]

sizes = st.integers(1, 40)
seeds = st.integers(0, 2**32)


@settings(max_examples=60, deadline=None)
@given(num_windows=sizes, batch_size=sizes, seed=seeds)
def test_each_epoch_visits_each_window_once(num_windows: int, batch_size: int, seed: int) -> None:
    sampler = BatchSampler(num_windows, batch_size, seed)
    steps = -(-3 * num_windows // batch_size)
    order = np.concatenate([sampler.indices(step) for step in range(steps)])
    for epoch in range(3):
        visited = order[epoch * num_windows : (epoch + 1) * num_windows]
        assert sorted(visited) == list(range(num_windows))


@settings(max_examples=60, deadline=None)
@given(num_windows=sizes, batch_size=st.integers(1, 10), world_size=st.integers(1, 5), seed=seeds)
def test_ranks_share_the_batch_of_a_single_process(
    num_windows: int, batch_size: int, world_size: int, seed: int
) -> None:
    single = BatchSampler(num_windows, batch_size * world_size, seed)
    ranks = [BatchSampler(num_windows, batch_size, seed, rank, world_size) for rank in range(world_size)]
    for step in range(4):
        parts = np.concatenate([rank.indices(step) for rank in ranks])
        np.testing.assert_array_equal(parts, single.indices(step))


def test_ranks_are_disjoint_within_an_epoch() -> None:
    ranks = [BatchSampler(40, 5, 0, rank, 4) for rank in range(4)]
    for step in range(10):
        parts = np.concatenate([rank.indices(step) for rank in ranks])
        assert len(np.unique(parts)) == 20


@settings(max_examples=40, deadline=None)
@given(
    num_windows=sizes,
    batch_size=sizes,
    seed=seeds,
    steps=st.lists(st.integers(0, 500), min_size=1, max_size=8),
)
def test_a_batch_depends_on_its_step_alone(
    num_windows: int, batch_size: int, seed: int, steps: list[int]
) -> None:
    """Whatever was drawn before: this is what makes resuming exact."""
    used = BatchSampler(num_windows, batch_size, seed)
    for step in steps:
        fresh = BatchSampler(num_windows, batch_size, seed)
        np.testing.assert_array_equal(used.indices(step), fresh.indices(step))


def test_epochs_and_seeds_differ() -> None:
    first, other = BatchSampler(100, 100, 0), BatchSampler(100, 100, 1)
    assert not np.array_equal(first.indices(0), first.indices(1))
    assert not np.array_equal(first.indices(0), other.indices(0))
    assert not np.array_equal(first.indices(1), other.indices(0))


@pytest.mark.parametrize(
    "arguments", [(0, 4, 0), (4, 0, 0), (4, 4, -1), (4, 4, 0, 2, 2), (4, 4, 0, -1, 2), (4, 4, 0, 0, 0)]
)
def test_impossible_sampling_is_refused(arguments: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match="cannot sample"):
        BatchSampler(*arguments)


@pytest.mark.parametrize("fraction", [0.0, 0.01, 0.2, 0.5, 0.99])
@pytest.mark.parametrize("count", [2, 3, 9, 24])
def test_a_split_is_a_partition_of_each_task(make_store: MakeStore, fraction: float, count: int) -> None:
    store = make_store([2] * count)
    train, validation = split_episodes(store, fraction, seed=0)
    assert sorted([*train, *validation]) == list(range(count))
    assert (np.diff(train) > 0).all()
    assert (np.diff(validation) > 0).all()
    for task in range(len(store.tasks)):
        of_task = (store.episode_tasks == task).sum()
        held_out = (store.episode_tasks[validation] == task).sum()
        if fraction == 0 or of_task < 2:
            assert held_out == 0
        else:
            assert held_out == np.clip(round(fraction * of_task), 1, of_task - 1)


def test_splits_repeat_and_depend_on_the_seed(make_store: MakeStore) -> None:
    store = make_store([2] * 40)
    first, again, other = (split_episodes(store, 0.25, seed)[1] for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize(("fraction", "seed"), [(1.0, 0), (-0.1, 0), (float("nan"), 0), (0.1, -1)])
def test_impossible_splits_are_refused(make_store: MakeStore, fraction: float, seed: int) -> None:
    with pytest.raises(DataError, match="validation_fraction"):
        split_episodes(make_store([2, 2]), fraction, seed)
