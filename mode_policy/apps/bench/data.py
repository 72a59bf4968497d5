"""``mode-bench data``: windows per second from our stores, beside HDF5 and LeRobotDataset, on the same data.

A window is one observation (all cameras and states) and a chunk of actions. Every reader delivers random
windows of the same demonstrations, in batches, to one process; ours also through loader processes. The files
were just written, so what is measured is reading and decoding, not the disk.
"""

from __future__ import annotations

import resource
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from mode_datasets import (
    BatchSampler,
    DemonstrationStore,
    StoreWriter,
    Windows,
    WindowSpec,
    open_store,
    schema,
)
from mode_datasets.loader import BatchLoader
from mode_datasets.profiles import ProfileName
from mode_policy.apps.bench.data_others import BATCH, Fetch, Say, megabytes, others, plain_zarr
from mode_policy.apps.bench.data_waiting import share_waiting
from mode_policy.apps.bench.record import Row
from mode_policy.convention import Convention
from mode_policy.errors import ConfigError, DataError
from mode_policy.types import ACTION, IMAGE_PREFIX, STATE, Episode, Feature, Features, Task

#: The demonstrations that are made if none are given: two cameras of 128 × 128, as in LIBERO.
FEATURES: Features = {
    STATE: Feature(shape=(9,)),
    ACTION: Feature(shape=(7,)),
    **{IMAGE_PREFIX + name: Feature(shape=(128, 128, 3), dtype="uint8") for name in ("static", "gripper")},
}


#: Actions of a window.
CHUNK = 10


@dataclass(frozen=True, kw_only=True)
class DataBench:
    """What is measured.

    Attributes:
        store: Path or address of demonstrations with cameras, which are also measured as they are; made up by
            default.
        episodes: How many are made up, of 200 steps each; or how many of the store are brought to other
            formats.
        seconds: For each reader, in `rounds` parts.
        rounds: Parts, of whose rates the median and the range are reported.
        others: Measure HDF5 and LeRobotDataset, too.
        training: Measure for how much of its time training waits for data, for so many seconds a model; 0
            does not.
    """

    store: str | None = None
    episodes: int = 50
    seconds: float = 10.0
    rounds: int = 5
    others: bool = True
    training: float = 60.0


def run(config: DataBench, say: Say) -> tuple[list[Row], Row]:
    """Measure all readers; ``say`` is told what is going on.

    Returns:
        A row for each reader, then one for each training; and what the data are.

    Raises:
        DataError: if the store is none, or has no camera.
    """
    given = None if config.store is None else _with_cameras(config.store)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="mode-bench-") as scratch:
        folder = Path(scratch)
        path = folder / "train.zarr"
        if given is None:
            say(f"making up {config.episodes} episodes")
            train = _made_up(path, config.episodes)
        else:
            rows += _ours("ours, as it is", given, config, say, cached=(False,))
            say("writing the profile train")
            train = _copy(path, given, "train", config.episodes)
        own = _ours("ours, train", train, config, say)
        best = own[0]["windows_per_s"]
        rows += own
        for profile in ("jpeg", "archive"):
            try:
                store = _copy(folder / f"{profile}.zarr", train, profile, train.num_episodes)
            except ConfigError as error:
                say(f"left out   {error}")
            else:
                rows += _ours(f"ours, {profile}", store, config, say, cached=(False,), workers=(0,))
        for other in others(folder, train, CHUNK, say) if config.others else [plain_zarr(train, CHUNK)]:
            say(other.name)
            row = {"reader": other.name, "workers": 0} | _measured(other.reader, other.batch, config)
            rows.append(row | {"megabytes": other.megabytes})
        rows = [row | {"ours_over_it": round(best / row["windows_per_s"], 2)} for row in rows]
        if config.training:
            rows += share_waiting(train, folder, config.training, say)
    return rows, {"data": _described(given or train), "batch": BATCH, "chunk": CHUNK}


def _ours(
    name: str,
    store: DemonstrationStore,
    config: DataBench,
    say: Say,
    *,
    cached: Sequence[bool] = (False, True),
    workers: Sequence[int] = (0, 2),
) -> list[Row]:
    """Measure our reader, from files and from memory, alone and through processes."""
    rows = []
    keys = schema.image_keys(store.features)
    for in_memory in cached:
        windows = Windows(store, WindowSpec(chunk=CHUNK), image_keys=keys, cache_images=in_memory)
        batch = min(BATCH, len(windows))
        for count in workers:
            row: Row = {"reader": name + ", in memory" * in_memory, "workers": count}
            say(f"{row['reader']}, {count} workers")
            row |= _measured(_loading(windows, batch, count), batch, config)
            rows.append(row | {"megabytes": megabytes(store)})
    return rows


def _with_cameras(path: str) -> DemonstrationStore:
    """Open a store that has images."""
    store = open_store(path)
    if not schema.image_keys(store.features):
        raise DataError(
            f"{path} has no cameras, and without images reading takes no time; name one that has, or none"
        )
    return store


def _described(store: DemonstrationStore) -> Row:
    return {
        "episodes": store.num_episodes,
        "steps": store.num_steps,
        "features": {key: list(feature.shape) for key, feature in store.features.items()},
    }


def _made_up(path: Path, episodes: int) -> DemonstrationStore:
    """Smooth pictures with something moving in front: about as compressible as a simulator's."""
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.integers(0, 256, (1, 3, 16, 16)).astype(np.float32))
    wide = torch.nn.functional.interpolate(coarse, size=(256, 256), mode="bicubic").clamp(0, 255)
    background = wide[0].permute(1, 2, 0).byte().numpy()

    def film(shift: int) -> np.ndarray:
        frames = np.stack([background[t // 4 : t // 4 + 128, shift : shift + 128] for t in range(200)])
        for t, frame in enumerate(frames):
            y, x = (3 * t) % 112, (t + 5 * shift) % 112
            frame[y : y + 16, x : x + 16] = (250, 20, shift)
        return frames

    provenance = schema.Provenance(source="made up for a benchmark", licence="MIT")
    with StoreWriter(path, FEATURES, Convention(fps=20.0), provenance) as writer:
        for i in range(episodes):
            vectors = {
                key: rng.normal(size=(200, *FEATURES[key].shape)).astype(np.float32)
                for key in (STATE, ACTION)
            }
            images = {key: film((i + j) % 100) for j, key in enumerate(schema.image_keys(FEATURES))}
            writer.append(
                Episode(arrays=vectors | images, task=Task(name="bench", instruction="move"), seed=i)
            )
    return open_store(path)


def _copy(path: Path, source: DemonstrationStore, profile: ProfileName, episodes: int) -> DemonstrationStore:
    with StoreWriter(path, source.features, source.convention, source.provenance, profile=profile) as writer:
        for i in range(min(episodes, source.num_episodes)):
            writer.append(source.episode(i))
    return open_store(path)


@contextmanager
def _loading(windows: Windows, batch: int, workers: int) -> Iterator[Fetch]:
    sampler = BatchSampler(len(windows), batch, seed=0)
    with closing(BatchLoader(windows, sampler, workers=workers)) as loader:
        yield loader


def _measured(reader: AbstractContextManager[Fetch], batch: int, config: DataBench) -> Row:
    """Fetch batch after batch: windows a second, and milliseconds of processor time for a thousand windows.

    The latter counts all processes; unlike the former, it hardly depends on what else the machine does.
    """
    rates = []
    before = _processor_seconds()
    with reader as fetch:
        fetch(0)
        step = 1
        for _ in range(config.rounds):
            start, first, passed = time.perf_counter(), step, 0.0
            while step == first or passed < config.seconds / config.rounds:
                fetch(step)
                step += 1
                passed = time.perf_counter() - start
            rates.append((step - first) * batch / passed)
    return {
        "windows_per_s": round(statistics.median(rates)),
        "lowest": round(min(rates)),
        "highest": round(max(rates)),
        "cpu_ms_per_1000": round(1e6 * (_processor_seconds() - before) / (step * batch), 1),
    }


def _processor_seconds() -> float:
    """Of this process, and of those that it started and that have ended."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + ended.ru_utime + ended.ru_stime
