"""``mode-bench data``: windows per second from our stores, beside HDF5 and LeRobotDataset, on the same data.

A window is one observation (all cameras and states) and a chunk of actions. Every reader delivers random
windows of the same demonstrations, in batches, to one process; ours also through loader processes. Files have
been read once before the clock starts, so what is measured is reading and decoding, not the disk.
"""

from __future__ import annotations

import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
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
from mode_datasets.convert.hdf5_sink import RobomimicSink
from mode_datasets.convert.lerobot_sink import LeRobotSink
from mode_datasets.convert.sink import Sink, SinkOptions
from mode_datasets.inspection import disk_usage
from mode_datasets.loader import BatchLoader
from mode_datasets.profiles import ProfileName
from mode_policy.apps.bench.record import Row
from mode_policy.convention import Convention
from mode_policy.types import ACTION, IMAGE_PREFIX, STATE, Episode, Feature, Features, Task

#: The demonstrations that are made if none are given: two cameras of 128 × 128, as in LIBERO.
FEATURES: Features = {
    STATE: Feature(shape=(9,)),
    ACTION: Feature(shape=(7,)),
    **{IMAGE_PREFIX + name: Feature(shape=(128, 128, 3), dtype="uint8") for name in ("static", "gripper")},
}


@dataclass(frozen=True, kw_only=True)
class DataBench:
    """What is measured.

    Attributes:
        store: Demonstrations with cameras; made up by default.
        episodes: How many are made up, of 200 steps each.
        batch: Windows at a time.
        chunk: Actions of a window.
        seconds: For each reader.
        others: Measure HDF5 and LeRobotDataset, too.
    """

    store: Path | None = None
    episodes: int = 50
    batch: int = 64
    chunk: int = 10
    seconds: float = 5.0
    others: bool = True


def run(config: DataBench, say: Callable[[str], None]) -> list[Row]:
    """Measure all readers; ``say`` is told what is going on."""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="mode-bench-") as scratch:
        folder = Path(scratch)
        source = (
            open_store(config.store) if config.store else _made_up(folder / "source.zarr", config.episodes)
        )
        spec = WindowSpec(chunk=config.chunk)
        for profile in ("train", "jpeg", "archive"):
            say(f"our store, profile {profile}")
            path = folder / f"{profile}.zarr"
            store = _ours(path, source, profile)
            for cached in (False, True) if profile == "train" else (False,):
                windows = _windows(store, spec, cached)
                for workers in (0, 2) if profile == "train" else (0,):
                    name = f"ours, {profile}" + (", in memory" if cached else "")
                    row = {"reader": name, "workers": workers, "megabytes": _megabytes(path)}
                    rows.append(row | _measured(_loading(windows, config.batch, workers), config))
        rows.append(_plain_zarr(folder / "train.zarr", source, config))
        if config.others:
            rows += _hdf5(folder, source, config, say)
            rows += _lerobot(folder, source, config, say)
    best = rows[0]["windows_per_s"]
    return [row | {"ours_over_it": round(best / row["windows_per_s"], 2)} for row in rows]


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


def _ours(path: Path, source: DemonstrationStore, profile: ProfileName) -> DemonstrationStore:
    with StoreWriter(path, source.features, source.convention, source.provenance, profile=profile) as writer:
        for i in range(source.num_episodes):
            writer.append(source.episode(i))
    return open_store(path)


def _windows(store: DemonstrationStore, spec: WindowSpec, cached: bool) -> Windows:
    return Windows(store, spec, image_keys=schema.image_keys(store.features), cache_images=cached)


@contextmanager
def _loading(windows: Windows, batch: int, workers: int) -> Iterator[Callable[[int], object]]:
    sampler = BatchSampler(len(windows), batch, seed=0)
    with closing(BatchLoader(windows, sampler, workers=workers)) as loader:
        yield loader


def _measured(
    reader: AbstractContextManager[Callable[[int], object]],
    config: DataBench,
    batch: int | None = None,
    warm_up: int = 5,
) -> Row:
    """Fetch batch after batch: windows a second, and milliseconds of processor time for a thousand windows.

    The latter counts all processes; unlike the former, it hardly depends on what else the machine does.
    """
    batch = batch or config.batch
    before = _processor_seconds()
    with reader as fetch:
        for step in range(warm_up):
            fetch(step)
        start, step = time.perf_counter(), warm_up
        while (passed := time.perf_counter() - start) < config.seconds:
            fetch(step)
            step += 1
    return {
        "windows_per_s": round((step - warm_up) * batch / passed),
        "cpu_ms_per_1000": round(1e6 * (_processor_seconds() - before) / (step * batch), 1),
    }


def _processor_seconds() -> float:
    """Of this process, and of those that it started and that have ended."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + ended.ru_utime + ended.ru_stime


def _megabytes(path: Path) -> float:
    return round((disk_usage(path) if path.is_dir() else path.stat().st_size) / 1e6, 1)


def _random_steps(source: DemonstrationStore, batch: int) -> Callable[[int], np.ndarray]:
    sampler = BatchSampler(source.num_steps, batch, seed=0)
    return sampler.indices


def _plain_zarr(path: Path, source: DemonstrationStore, config: DataBench) -> Row:
    """The same store through zarr's own interface."""
    import zarr

    group = zarr.open_group(str(path), mode="r")
    arrays = {key: group[f"data/{key}"] for key in source.features}
    steps = _random_steps(source, config.batch)

    def fetch(number: int) -> None:
        for step in steps(number):
            for key, array in arrays.items():
                assert isinstance(array, zarr.Array)
                array[step : step + config.chunk] if key == ACTION else array[step]

    row = {"reader": "zarr, same store", "workers": 0, "megabytes": _megabytes(path)}
    return row | _measured(nullcontext(fetch), config, warm_up=1)


def _write(sink: Sink, source: DemonstrationStore) -> None:
    with sink:
        for i in range(source.num_episodes):
            sink.append(source.episode(i))


def _options(source: DemonstrationStore) -> SinkOptions:
    return SinkOptions(features=source.features, convention=source.convention, provenance=source.provenance)


def _hdf5(
    folder: Path, source: DemonstrationStore, config: DataBench, say: Callable[[str], None]
) -> list[Row]:
    """robomimic's HDF5 through h5py, handles kept open."""
    import h5py

    say("robomimic HDF5 through h5py")
    path = folder / "demo.hdf5"
    _write(RobomimicSink(path, _options(source)), source)
    with h5py.File(path) as file:
        demos = [file["data"][f"demo_{i}"] for i in range(source.num_episodes)]
        arrays = [list(demo["obs"].values()) for demo in demos]
        actions = [demo["actions"] for demo in demos]
        steps = _random_steps(source, config.batch)

        def fetch(number: int) -> None:
            chosen = steps(number)
            episodes = np.searchsorted(source.episode_ends, chosen, side="right")
            for episode, step in zip(episodes, chosen - source.episode_starts[episodes], strict=True):
                for array in arrays[episode]:
                    array[step]
                actions[episode][step : step + config.chunk]

        row = {"reader": "robomimic HDF5, h5py", "workers": 0, "megabytes": _megabytes(path)}
        return [row | _measured(nullcontext(fetch), config)]


def _lerobot(
    folder: Path, source: DemonstrationStore, config: DataBench, say: Callable[[str], None]
) -> list[Row]:
    """LeRobotDataset v3 through LeRobot's own class, with images and with video."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    rows = []
    for kind in ("video", "image"):
        say(f"LeRobotDataset, {kind}")
        path = folder / f"lerobot_{kind}"
        _write(LeRobotSink(path, _options(source), lossless=kind == "image"), source)
        times = {key: [0.0] for key in source.features} | {
            ACTION: [i / source.fps for i in range(config.chunk)]
        }
        dataset = LeRobotDataset(f"local/{path.name}", root=path, delta_timestamps=times)
        steps = _random_steps(source, config.batch)

        def fetch(
            number: int, dataset: LeRobotDataset = dataset, steps: Callable[[int], np.ndarray] = steps
        ) -> None:
            for step in steps(number)[:8]:
                dataset[int(step)]

        row = {"reader": f"LeRobotDataset, {kind}", "workers": 0, "megabytes": _megabytes(path)}
        rows.append(row | _measured(nullcontext(fetch), config, batch=8, warm_up=1))
    return rows
