"""Small stores to test with."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest
import zarr

from mode_datasets import DemonstrationStore, Provenance, StoreWriter, open_store
from mode_policy.convention import Convention
from mode_policy.types import ACTION, STATE, Episode, Feature, Features, InstructionTable, Task

CAMERA = "observation.images.front"
VECTORS: Features = {STATE: Feature(shape=(3,), names=("x", "y", "z"), unit="m"), ACTION: Feature(shape=(2,))}
WITH_IMAGES: Features = {**VECTORS, CAMERA: Feature(shape=(4, 5, 3), dtype="uint8")}
TASKS = (Task(name="push", instruction="push the puck"), Task(name="reach", instruction="reach the goal"))
CONVENTION = Convention(fps=20.0)
PROVENANCE = Provenance(source="test", licence="MIT", command="pytest")


def make_episodes(lengths: Sequence[int], features: Features, seed: int = 0) -> list[Episode]:
    """Random episodes that alternate between two tasks."""
    rng = np.random.default_rng(seed)

    def values(feature: Feature, length: int) -> np.ndarray:
        if feature.dtype == "uint8":
            return rng.integers(0, 256, (length, *feature.shape), dtype=np.uint8)
        return rng.normal(size=(length, *feature.shape)).astype(np.float32)

    return [
        Episode(
            arrays={key: values(feature, n) for key, feature in features.items()},
            task=TASKS[i % len(TASKS)],
            seed=100 + i,
        )
        for i, n in enumerate(lengths)
    ]


def write(
    path: Path,
    episodes: Iterable[Episode],
    features: Features,
    *,
    fps: float = 20.0,
    overwrite: bool = False,
    instructions: InstructionTable | None = None,
) -> None:
    """Write a store the ordinary way."""
    with StoreWriter(path, features, Convention(fps=fps), PROVENANCE, overwrite=overwrite) as writer:
        for episode in episodes:
            writer.append(episode)
        if instructions is not None:
            writer.set_instructions(instructions)


def rewrite(path: Path, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Replace an array of a store, as a faulty program or a curious user would."""
    group = zarr.open_group(str(path), mode="r+")
    values = np.asarray(group[name][...])  # type: ignore[index]
    group.create_array(name, data=change(values), overwrite=True, config={"write_empty_chunks": True})


@pytest.fixture
def make_store(tmp_path: Path) -> Callable[..., DemonstrationStore]:
    """A function of episode lengths that returns a fresh store with random contents."""

    def make(
        lengths: Sequence[int], features: Features = VECTORS, name: str = "demo.zarr"
    ) -> DemonstrationStore:
        write(tmp_path / name, make_episodes(lengths, features), features)
        return open_store(tmp_path / name)

    return make


@pytest.fixture(scope="session")
def pusht_path() -> Path:
    """The real Push-T demonstrations, which are not part of the repository."""
    root = Path(os.environ.get("MODE_SHARED", Path(__file__).parents[2] / ".." / "shared"))
    path = root / "data" / "pusht_cchi_v7_replay.zarr"
    if not path.is_dir():
        pytest.skip(f"the Push-T demonstrations are not at {path}; set MODE_SHARED to the folder with data/")
    return path.resolve()
