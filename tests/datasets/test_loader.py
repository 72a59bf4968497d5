"""Batches from worker processes are those that the process itself would make, from any step on."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

from mode_datasets import BatchSampler, DemonstrationStore, Windows, WindowSpec
from mode_datasets.loader import HELD, BatchLoader
from mode_datasets.windows import tensors_of
from mode_policy.errors import ConfigError, DataError
from mode_policy.types import Batch, InstructionTable

from .conftest import CAMERA, TASKS, WITH_IMAGES


def same(a: Batch, b: Batch) -> bool:
    return all(torch.equal(x, y) for x, y in zip(tensors_of(a), tensors_of(b), strict=True))


@pytest.fixture
def windows(make_store: Callable[..., DemonstrationStore]) -> Windows:
    store = make_store([9, 30, 14], WITH_IMAGES)
    return Windows(store, WindowSpec(history=2, chunk=4), image_keys=[CAMERA])


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(windows: Windows, workers: int) -> None:
    sampler = BatchSampler(len(windows), 8, seed=1)
    with closing(BatchLoader(windows, sampler, workers=workers, start="fork")) as loader:
        for step in (0, 1, 2, 40, 41, 7):
            assert same(loader(step), windows.batch(sampler.indices(step)))


@pytest.fixture(params=[2])
def loader(windows: Windows, request: pytest.FixtureRequest) -> Iterator[BatchLoader]:
    sampler = BatchSampler(len(windows), 8, seed=1)
    with closing(BatchLoader(windows, sampler, workers=request.param, prefetch=2)) as loader:
        yield loader


@pytest.mark.parametrize("loader", [0, 2], indirect=True)
def test_batches_that_are_kept_stay_as_they_are(loader: BatchLoader) -> None:
    kept = [loader(step) for step in range(25)]
    parts = [loader(step).actions[3, 1:] for step in range(25, 50)]  # a part keeps the whole batch's memory
    for _ in range(50, 70):
        loader(_)
    loader.close()
    for step, batch in enumerate(kept):
        assert same(batch, loader.windows.batch(loader.sampler.indices(step)))
    for step, part in enumerate(parts, start=25):
        assert torch.equal(part, loader.windows.batch(loader.sampler.indices(step)).actions[3, 1:])


@pytest.mark.parametrize("loader", [0, 2], indirect=True)
def test_memory_is_used_again(loader: BatchLoader) -> None:
    places = {loader(step).actions.data_ptr() for step in range(1, 60)}
    # Slots, and the first batch, which is in none.
    assert len(places) <= loader.workers * loader.prefetch + HELD + 1


@pytest.mark.parametrize("loader", [0, 2], indirect=True)
def test_steps_come_in_any_order(loader: BatchLoader) -> None:
    for step in (5, 6, 3, 4, 5, 6, 7, 9, 9, 10**6, 0):
        assert same(loader(step), loader.windows.batch(loader.sampler.indices(step)))


def test_a_worker_that_dies_is_told_and_replaced(loader: BatchLoader) -> None:
    loader(0)
    os.kill(loader._pool[1].process.pid, signal.SIGKILL)
    with pytest.raises(DataError, match=r"a process that loads data died \(exit code -9\).*dataset.workers"):
        all(loader(step) for step in range(1, 20))
    assert same(loader(7), loader.windows.batch(loader.sampler.indices(7)))


def test_workers_end_with_the_loader(windows: Windows) -> None:
    windows.batch(np.arange(len(windows)))  # opens the store's files
    before = len(os.listdir("/proc/self/fd"))
    for ends in ("closed", "dropped"):
        loader = BatchLoader(windows, BatchSampler(len(windows), 8, seed=1), workers=2)
        batch = loader(0), loader(1)
        workers = [worker.process.pid for worker in loader._pool]
        assert all(map(alive, workers))
        if ends == "closed":
            loader.close()
            loader.close()
        del loader, batch
        gc.collect()
        assert not any(map(alive, workers))
    assert len(os.listdir("/proc/self/fd")) == before


def alive(process: int) -> bool:
    return Path(f"/proc/{process}").exists()


def train_until_killed(windows: Windows, pipe: Connection) -> None:
    batches = BatchLoader(windows, BatchSampler(len(windows), 8, seed=1), workers=2)
    batches(0), batches(1)
    pipe.send([worker.process.pid for worker in batches._pool])
    time.sleep(600)


def test_workers_end_with_the_process_that_was_killed(
    windows: Windows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mode_datasets.loader.WATCH_SECONDS", 0.1)
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=train_until_killed, args=(windows, theirs))
    process.start()
    workers = ours.recv()
    assert len(workers) == 2
    process.kill()
    process.join()
    deadline = time.monotonic() + 60
    while any(map(alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(map(alive, workers))


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_images_in_memory_are_shared_with_workers(
    make_store: Callable[..., DemonstrationStore], start: Literal["fork", "spawn"]
) -> None:
    texts = tuple(task.instruction for task in TASKS)
    table = InstructionTable(encoder="toy", instructions=texts, embeddings=torch.eye(2))
    store = make_store([9, 30, 14], WITH_IMAGES).with_instructions(table)
    windows = Windows(store, WindowSpec(), image_keys=[CAMERA], cache_images=True)
    sampler = BatchSampler(len(windows), 8, seed=1)
    with closing(BatchLoader(windows, sampler, workers=1, start=start)) as loader:
        for step in range(6):
            batch = loader(step)
            assert same(batch, windows.batch(sampler.indices(step)))
            assert batch.observation.instruction is not None
        windows._images[CAMERA].array[:] = 77  # a worker that had a copy would not see it
        assert (loader(20).observation.images[CAMERA] == 77).all()


class Broken:
    """Fails in a way that cannot be sent to another process."""

    fork_safe = True

    def __init__(self, windows: Windows) -> None:
        self.windows = windows
        self.owner = os.getpid()

    def __len__(self) -> int:
        return len(self.windows)

    def batch(self, indices: np.ndarray, out: Batch | None = None) -> Batch:
        if os.getpid() != self.owner:

            class Odd(Exception):  # noqa: N818
                pass

            raise Odd("nobody knows me")
        return self.windows.batch(indices, out)


def test_any_failure_of_a_worker_is_told(windows: Windows) -> None:
    sampler = BatchSampler(len(windows), 8, seed=1)
    with (
        closing(BatchLoader(Broken(windows), sampler, workers=1)) as loader,
        pytest.raises(DataError, match=r"a process that loads data failed \(Odd: nobody knows me\)"),
    ):
        loader(0), loader(1)


def test_damage_that_a_worker_finds_is_told(windows: Windows) -> None:
    location = windows.store.location
    file = next(Path(str(location)).glob(f"data/{CAMERA}/c/*/*/*/*"))
    content = bytearray(file.read_bytes())
    content[10:2000:50] = bytes(len(content[10:2000:50]))
    file.write_bytes(content)
    sampler = BatchSampler(len(windows), 10, seed=1)
    with (
        closing(BatchLoader(windows, sampler, workers=1)) as loader,
        pytest.raises(DataError, match="corrupt or cut short"),
    ):
        all(loader(step) for step in range(10))


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
