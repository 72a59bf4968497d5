"""Push-T, a collection of Meta-World and LIBERO's files all reach training through the same path."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import zarr

from mode_datasets import DemonstrationStore, Windows, WindowSpec, open_store
from mode_policy.config import PolicyConfig, build
from mode_policy.policy import MoDEPolicy
from mode_policy.types import ACTION, STATE, Episode, Feature, InstructionTable, Task

from ..conftest import write
from .conftest import Arrays, to_store

POLICY = {
    "chunk": 8,
    "execute": 8,
    "history": 2,
    "vision": {"width": 8, "size": 32},
    "denoiser": {"dim": 16, "num_layers": 2, "num_heads": 2},
}


@pytest.fixture
def push_t(tmp_path: Path, pusht_path: Path) -> DemonstrationStore:
    """The first two real demonstrations, converted with their images."""
    published = zarr.open_group(str(pusht_path), mode="r")
    ends = np.asarray(published["meta/episode_ends"][:2])
    group = zarr.create_group(str(tmp_path / "pusht.zarr"), zarr_format=2)
    for name in ("img", "state", "action"):
        group.create_array(
            f"data/{name}",
            data=published[f"data/{name}"][: ends[-1]],
            chunks=(161, *published[f"data/{name}"].shape[1:]),
        )
    group.create_array("meta/episode_ends", data=ends)
    return to_store(
        tmp_path / "pusht.zarr", tmp_path / "push_t.zarr", fps=10.0, instruction="push the T onto its target"
    )


@pytest.fixture
def meta_world(tmp_path: Path) -> DemonstrationStore:
    """A collection with Meta-World's dimensions, converted to another profile's store."""
    rng = np.random.default_rng(0)
    features = {STATE: Feature(shape=(39,)), ACTION: Feature(shape=(4,))}
    task = Task(name="reach-v3", instruction="Reach the goal")
    episodes = [
        Episode(
            arrays={k: rng.normal(size=(20, *f.shape)).astype(np.float32) for k, f in features.items()},
            task=task,
            seed=i,
        )
        for i in range(3)
    ]
    write(tmp_path / "collected.zarr", episodes, features, fps=80.0)
    return to_store(tmp_path / "collected.zarr", tmp_path / "meta_world.zarr")


@pytest.fixture
def libero_store(tmp_path: Path, libero: tuple[Path, dict[str, list[Arrays]]]) -> DemonstrationStore:
    return to_store(libero[0], tmp_path / "libero.zarr")


@pytest.mark.parametrize(
    ("name", "cameras"),
    [("push_t", ["img"]), ("meta_world", []), ("libero_store", ["agentview", "eye_in_hand"])],
)
def test_converted_data_train(name: str, cameras: list[str], request: pytest.FixtureRequest) -> None:
    store: DemonstrationStore = request.getfixturevalue(name)
    store = open_store(store.location.path)
    texts = tuple(task.instruction for task in store.tasks)
    embeddings = torch.nn.functional.normalize(torch.randn(len(texts), 8), dim=1)
    store = store.with_instructions(
        InstructionTable(encoder="minilm-l6-v2", instructions=texts, embeddings=embeddings)
    )
    keys = [f"observation.images.{camera}" for camera in cameras]
    windows = Windows(store, WindowSpec(history=2, chunk=8), image_keys=keys)
    batch = windows.batch(np.arange(0, len(windows), 5))
    for key in keys:
        images = batch.observation.images[key]
        assert images.dtype == torch.uint8
        assert images.shape == (len(images), 2, *store.features[key].shape)
        assert images.float().std() > 1
    policy = MoDEPolicy(
        build(PolicyConfig, {**POLICY, "cameras": cameras}),
        {key: store.features[key] for key in (*windows.state_keys, *keys, ACTION)},
        store.statistics,
        store.instruction_table,
    )
    policy(batch).total.backward()
    assert all(torch.isfinite(p.grad).all() for p in policy.parameters() if p.grad is not None)
    assert policy.act(batch.observation).shape == (len(batch.actions), 8, store.features[ACTION].shape[0])
