"""The paper's pretraining mix, on small stores such as its documented conversions leave behind.

Six robots: other cameras, image sizes, control rates, gripper conventions, and states or none.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mode_datasets import Provenance, StoreWriter
from mode_policy.apps.cli import compose, to_plain
from mode_policy.apps.config import TrainConfig
from mode_policy.apps.data import main
from mode_policy.apps.dataset import get_mixture, get_store
from mode_policy.apps.train import run
from mode_policy.apps.training_data import training_data
from mode_policy.checkpoint import load_policy
from mode_policy.config import build
from mode_policy.convention import Convention, Gripper
from mode_policy.errors import ConventionError, DataError
from mode_policy.training.processes import Processes
from mode_policy.types import ACTION, IMAGE_PREFIX, STATE, Episode, Feature, Features, Task

from .convert.conftest import LIBERO_TASKS, libero_attributes, libero_demo, write_hdf5

#: Name of the store → control rate, convention of the gripper, camera, its size, dimensions of a state.
PARTS: dict[str, tuple[float, Gripper, str, tuple[int, int], int]] = {
    "bc_z": (10.0, "one_closes", "static", (17, 21), 0),
    "dobbe": (3.75, "one_opens", "gripper", (16, 16), 7),
    "bridge": (5.0, "one_opens", "static", (24, 32), 7),
    "fractal": (3.0, "plus_closes", "static", (16, 20), 0),
    "play_fusion": (5.0, "one_opens", "static", (12, 16), 8),
}
SHARES = {"libero_10": 0.043649, "bc_z": 0.258768, "dobbe": 0.245176, "bridge": 0.188043} | {
    "fractal": 0.162878,
    "play_fusion": 0.101486,
}
SMALL = (
    *("model=debug", "vision=tiny", "policy.language=null", "dataset.folder=.", "dataset.workers=0"),
    *("trainer.batch_size=8", "trainer.steps=1", "trainer.device=cpu", "trainer.precision=float32"),
    *("trainer.tensorboard=false", "trainer.validation_batches=1", "dataset.validation_fraction=0.25"),
)


def write_part(folder: Path, name: str) -> None:
    """Three episodes of a robot, each of a task of its own."""
    rng = np.random.default_rng(len(name))
    rate, gripper, camera, size, state = PARTS[name]
    image = IMAGE_PREFIX + camera
    features: Features = {ACTION: Feature(shape=(7,)), image: Feature(shape=(*size, 3), dtype="uint8")}
    if state:
        features[STATE] = Feature(shape=(state,))
    meaning = Convention(fps=rate, action_kind="delta", gripper=gripper)
    closed, opened = {"one_closes": (1, 0), "one_opens": (0, 1), "plus_closes": (1, -1)}[gripper]
    with StoreWriter(
        folder / f"{name}.zarr", features, meaning, Provenance(source=name, licence="MIT")
    ) as writer:
        for seed, steps in enumerate((12, 15, 9)):
            arrays = {
                key: rng.integers(0, 256, (steps, *f.shape), dtype=np.uint8)
                if key == image
                else rng.normal(size=(steps, *f.shape)).astype(np.float32)
                for key, f in features.items()
            }
            arrays[ACTION][:, 6] = np.where(np.arange(steps) < 5, opened, closed)
            task = Task(name=f"{name}_{seed}", instruction=f"do {seed} with {name}")
            writer.append(Episode(arrays=arrays, task=task, seed=seed))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All six; LIBERO's through its converter."""
    folder = tmp_path_factory.mktemp("mix")
    rng = np.random.default_rng(0)
    for name, text in LIBERO_TASKS.items():
        demos = [libero_demo(20, rng) for _ in range(4)]
        for demo in demos:
            demo["actions"][:, 6] = np.where(np.arange(20) < 5, -1, 1)
        write_hdf5(folder / "libero" / f"{name}_demo.hdf5", demos, libero_attributes(text))
    main(["convert", str(folder / "libero"), str(folder / "libero_10.zarr")])
    for name in PARTS:
        write_part(folder, name)
    return folder


@pytest.fixture
def stores(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the configuration looks for them."""
    monkeypatch.chdir(folder)


def composed(*changes: tuple[str, object]) -> tuple[TrainConfig, dict[str, Any]]:
    """Return the mixture's configuration; a change names a part's key, such as ``2.adapt.gripper``."""
    data = to_plain(compose("train", ["task=pretraining_mix", *SMALL]))
    for key, value in changes:
        number, *parents, last = key.split(".")
        place = data["dataset"]["mixture"][int(number)]
        for parent in parents:
            place = place[parent]
        place[last] = value
    return build(TrainConfig, data), data


@pytest.mark.usefixtures("stores")
def test_it_composes_in_the_papers_shares() -> None:
    settings, _ = composed()
    opened = [get_store(settings.dataset, settings.task, None), *get_mixture(settings.dataset, None)]
    assert [store.location.name.removesuffix(".zarr") for store in opened] == list(SHARES)
    assert {store.convention.gripper for store in opened} == {"plus_closes"}
    assert [store.fps for store in opened] == [20, *(rate for rate, *_ in PARTS.values())]
    data = training_data(opened, settings, Processes(settings.trainer))
    offsets = data.windows.offsets
    windows = np.concatenate([data.batch.sampler.indices(step) for step in range(600)])
    shares = np.histogram(windows, offsets)[0] / len(windows)
    np.testing.assert_allclose(shares, list(SHARES.values()), atol=0.02)
    for number, name in enumerate(PARTS, start=1):
        batch = data.windows.batch(np.arange(offsets[number], offsets[number + 1])[:4])
        images = batch.observation.images
        lacks = {"static", "gripper"} - {PARTS[name][2]}
        for camera in ("static", "gripper"):
            x = images[IMAGE_PREFIX + camera]
            assert x.shape == (4, 1, 224, 224, 3)
            assert bool(x.any()) == (camera not in lacks)
        assert not batch.observation.states
        assert batch.actions.shape == (4, 10, 7)
        # Each gripper opens first, and closes after five steps, whatever its own numbers say.
        assert (batch.actions[0, :5, 6] < batch.actions[0, 5:, 6].min()).all()


@pytest.mark.usefixtures("stores")
def test_it_trains(tmp_path: Path) -> None:
    settings, data = composed()
    run(settings, tmp_path / "run", data)
    policy = load_policy(tmp_path / "run" / "checkpoints" / "last")
    assert policy.config.cameras == ("static", "gripper")
    assert policy.config.normalize_action == "quantile"


@pytest.mark.usefixtures("stores")
@pytest.mark.parametrize(
    ("key", "value", "error", "message"),
    [
        ("0.any_rate", False, ConventionError, r"(?s)bc_z.zarr.*control rate"),
        ("2.adapt.gripper", None, ConventionError, r"(?s)bridge.zarr.*gripper: .*adapt.gripper=plus_closes"),
        ("1.path", "dobe.zarr", DataError, r"no demonstration store at dobe.zarr.*dobbe.zarr"),
    ],
)
def test_what_does_not_fit_is_refused(
    tmp_path: Path, key: str, value: object, error: type[Exception], message: str
) -> None:
    settings, data = composed((key, value))
    with pytest.raises(error, match=message):
        run(settings, tmp_path / "run", data)
