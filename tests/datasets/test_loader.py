"""Batches from worker processes are those that the process itself would make, from any step on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from mode_datasets import BatchSampler, DemonstrationStore, Windows, WindowSpec
from mode_datasets.loader import BatchLoader
from mode_policy.errors import ConfigError, DataError
from mode_policy.types import Batch

from .conftest import CAMERA, WITH_IMAGES


def same(a: Batch, b: Batch) -> bool:
    tensors: list[list[torch.Tensor]] = []
    for batch in (a, b):
        found: list[torch.Tensor] = []
        batch.map(lambda x, found=found: (found.append(x), x)[1])  # type: ignore[misc]
        tensors.append(found)
    return all(torch.equal(x, y) for x, y in zip(*tensors, strict=True))


@pytest.fixture
def windows(make_store: Callable[..., DemonstrationStore]) -> Windows:
    store = make_store([9, 30, 14], WITH_IMAGES)
    return Windows(store, WindowSpec(history=2, chunk=4), image_keys=[CAMERA])


@pytest.mark.parametrize(("start", "workers"), [("fork", 1), ("fork", 2), ("spawn", 2)])
def test_workers_change_nothing(windows: Windows, start: str, workers: int) -> None:
    sampler = BatchSampler(len(windows), 8, seed=1)
    loader = BatchLoader(windows, sampler, workers=workers, start=start)  # type: ignore[arg-type]
    try:
        for step in (0, 1, 2, 40, 41, 7):
            assert same(loader(step), windows.batch(sampler.indices(step)))
    finally:
        loader.close()


def test_images_arrive_in_shared_memory(windows: Windows) -> None:
    loader = BatchLoader(windows, BatchSampler(len(windows), 8, seed=1), workers=1)
    try:
        assert loader(0).observation.images[CAMERA].is_shared()
    finally:
        loader.close()


def test_damage_that_a_worker_finds_is_told(windows: Windows) -> None:
    location = windows.store.location
    file = next(Path(str(location)).glob(f"data/{CAMERA}/c/*/*/*/*"))
    content = bytearray(file.read_bytes())
    content[10:2000:50] = bytes(len(content[10:2000:50]))
    file.write_bytes(content)
    loader = BatchLoader(windows, BatchSampler(len(windows), 50, seed=1), workers=1)
    with pytest.raises(DataError, match="corrupt or cut short"):
        loader(0)
    loader.close()


def test_workers_are_counted(windows: Windows) -> None:
    with pytest.raises(ConfigError, match="workers=-1"):
        BatchLoader(windows, BatchSampler(len(windows), 8, seed=1), workers=-1)


def test_windows_may_be_sparse(make_store: Callable[..., DemonstrationStore]) -> None:
    store = make_store([7, 4])
    every = Windows(store, WindowSpec(chunk=3))
    third = Windows(store, WindowSpec(chunk=3, stride=3))
    assert len(third) == 3 + 2
    _, steps = third.locate(np.arange(5))
    assert steps.tolist() == [0, 3, 6, 0, 3]
    assert torch.equal(third.batch(np.arange(5)).actions, every.batch(np.array([0, 3, 6, 7, 10])).actions)
