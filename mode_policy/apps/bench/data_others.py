"""Other readers of the same demonstrations: zarr's own interface, h5py and LeRobotDataset.

Each fetches what a window of ours holds: all states and images of a step, and a chunk of actions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mode_datasets import BatchSampler, DemonstrationStore
from mode_datasets.convert.hdf5_sink import RobomimicSink
from mode_datasets.convert.lerobot_sink import LeRobotSink
from mode_datasets.convert.sink import Sink, SinkOptions
from mode_datasets.inspection import disk_usage
from mode_policy.errors import ConfigError
from mode_policy.types import ACTION

#: Windows at a time of a fast reader, and of one that delivers a few dozens a second.
BATCH, SLOW_BATCH = 64, 8

#: Makes the windows of a step's batch.
Fetch = Callable[[int], object]

Say = Callable[[str], None]


class Other(NamedTuple):
    """A reader, ready to be measured.

    Attributes:
        name: For people.
        reader: Opens the files.
        batch: Windows that a call fetches.
        megabytes: Of its files.
    """

    name: str
    reader: AbstractContextManager[Fetch]
    batch: int
    megabytes: float | None


def others(folder: Path, source: DemonstrationStore, chunk: int, say: Say) -> Iterator[Other]:
    """Write demonstrations in other formats, one after another, and give a reader of each.

    What is not installed is left out, which ``say`` is told.
    """
    yield plain_zarr(source, chunk)
    for make in (_hdf5, _video, _image):
        try:
            yield make(folder, source, chunk)
        except ConfigError as error:
            say(f"left out   {error}")


def plain_zarr(source: DemonstrationStore, chunk: int) -> Other:
    """Read one of our stores through zarr's own interface."""
    import zarr

    @contextmanager
    def reader() -> Iterator[Fetch]:
        group = zarr.open_group(source.location.zarr_store(), mode="r")
        arrays = {key: group[f"data/{key}"] for key in source.features}
        sampler = _sampler(source, SLOW_BATCH)

        def fetch(number: int) -> None:
            for step in sampler.indices(number):
                for key, array in arrays.items():
                    assert isinstance(array, zarr.Array)
                    array[step : step + chunk] if key == ACTION else array[step]

        yield fetch

    return Other(
        "zarr-python, profile train", reader(), _sampler(source, SLOW_BATCH).batch_size, megabytes(source)
    )


def _sampler(source: DemonstrationStore, batch: int) -> BatchSampler:
    return BatchSampler(source.num_steps, min(batch, source.num_steps), seed=0)


def _hdf5(folder: Path, source: DemonstrationStore, chunk: int) -> Other:
    """Read robomimic's HDF5 (not compressed, contiguous) through h5py; all datasets stay open."""
    path = folder / "demo.hdf5"
    _write(RobomimicSink(path, _options(source)), source)
    import h5py

    sampler = _sampler(source, BATCH)

    @contextmanager
    def reader() -> Iterator[Fetch]:
        with h5py.File(path) as file:
            demos = [file["data"][f"demo_{i}"] for i in range(source.num_episodes)]
            arrays = [list(demo["obs"].values()) for demo in demos]
            actions = [demo["actions"] for demo in demos]

            def fetch(number: int) -> None:
                chosen = sampler.indices(number)
                episodes = np.searchsorted(source.episode_ends, chosen, side="right")
                for episode, step in zip(episodes, chosen - source.episode_starts[episodes], strict=True):
                    for array in arrays[episode]:
                        array[step]
                    actions[episode][step : step + chunk]

            yield fetch

    return Other("h5py, robomimic HDF5", reader(), sampler.batch_size, megabytes(path))


def _video(folder: Path, source: DemonstrationStore, chunk: int) -> Other:
    """Read LeRobotDataset v3 through LeRobot's own class, with video."""
    return _lerobot(folder, source, chunk, "video")


def _image(folder: Path, source: DemonstrationStore, chunk: int) -> Other:
    """The same with images."""
    return _lerobot(folder, source, chunk, "image")


def _lerobot(folder: Path, source: DemonstrationStore, chunk: int, kind: str) -> Other:
    path = folder / f"lerobot_{kind}"
    _write(LeRobotSink(path, _options(source), lossless=kind == "image"), source)
    batch = _sampler(source, SLOW_BATCH).batch_size
    return Other(f"LeRobotDataset, {kind}", _lerobot_reader(path, source, chunk), batch, megabytes(path))


@contextmanager
def _lerobot_reader(path: Path, source: DemonstrationStore, chunk: int) -> Iterator[Fetch]:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    times = {key: [0.0] for key in source.features} | {ACTION: [i / source.fps for i in range(chunk)]}
    dataset = LeRobotDataset(f"local/{path.name}", root=path, delta_timestamps=times)
    sampler = _sampler(source, SLOW_BATCH)

    def fetch(number: int) -> None:
        for step in sampler.indices(number):
            dataset[int(step)]

    yield fetch


def megabytes(files: Path | DemonstrationStore) -> float | None:
    """Return the size of a file, of all files in a folder, or of a store; None where nobody tells."""
    path = files if isinstance(files, Path) else Path(str(files.location))
    if not path.exists():
        return None
    return round((disk_usage(path) if path.is_dir() else path.stat().st_size) / 1e6, 1)


def _write(sink: Sink, source: DemonstrationStore) -> None:
    with sink:
        for i in range(source.num_episodes):
            sink.append(source.episode(i))


def _options(source: DemonstrationStore) -> SinkOptions:
    return SinkOptions(features=source.features, convention=source.convention, provenance=source.provenance)
