"""Several stores as one: each part in the target's layout and on the target's scale."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mode_datasets import DemonstrationStore, StoreWriter, Windows, WindowSpec, open_store
from mode_datasets.mixture import Mixture, MixturePart, merge_instructions
from mode_datasets.sampler import WeightedSampler
from mode_policy.convention import Convention
from mode_policy.errors import ConventionError, DataError
from mode_policy.normalization import Normalizer
from mode_policy.types import ACTION, STATE, Episode, Feature, Features, InstructionTable

from .conftest import CAMERA, PROVENANCE, TASKS, make_episodes

TOP = "observation.images.top"
SPEC = WindowSpec(history=2, chunk=3)


def store_at(path: Path, features: Features, scale: float, **convention: Any) -> DemonstrationStore:
    meaning = Convention(**({"fps": 20.0} | convention))
    with StoreWriter(path, features, meaning, PROVENANCE) as writer:
        for episode in make_episodes([6, 8], features):
            arrays = {
                k: x if x.dtype == np.uint8 else x * np.float32(scale) + 3 for k, x in episode.arrays.items()
            }
            writer.append(Episode(arrays=arrays, task=episode.task, seed=episode.seed))
    return open_store(path)


def robot(*cameras: tuple[str, int]) -> Features:
    images = {key: Feature(shape=(size, size, 3), dtype="uint8") for key, size in cameras}
    return {STATE: Feature(shape=(3,), angles=(2,)), ACTION: Feature(shape=(2,)), **images}


@pytest.fixture
def mixture(tmp_path: Path) -> Mixture:
    first = store_at(tmp_path / "a.zarr", robot((CAMERA, 8), (TOP, 4)), 1.0)
    second = store_at(tmp_path / "b.zarr", robot((CAMERA, 4)), 50.0)
    return Mixture(
        [
            MixturePart(Windows(first, SPEC, image_keys=[CAMERA, TOP]), 1.0),
            MixturePart(Windows(second, SPEC, image_keys=[CAMERA]), 3.0),
        ]
    )


def groups(mixture: Mixture) -> list[np.ndarray]:
    """Windows of each part."""
    return [np.arange(a, b) for a, b in itertools.pairwise(mixture.offsets)]


def test_the_target_is_delivered_as_it_is(mixture: Mixture) -> None:
    indices = np.array([3, 0, 13])
    ours, alone = mixture.batch(indices), mixture.target.batch(indices)
    assert torch.equal(ours.actions, alone.actions)
    assert torch.equal(ours.observation.states[STATE], alone.observation.states[STATE])
    for key in (CAMERA, TOP):
        assert torch.equal(ours.observation.images[key], alone.observation.images[key])


def test_parts_are_on_the_targets_scale(mixture: Mixture) -> None:
    """Normalised by the target's statistics, a part has the values that its own would give it."""
    indices = groups(mixture)[1]
    part = mixture.parts[1].windows
    for key, mode in ((STATE, "mean_std"), (ACTION, "min_max")):
        feature = part.store.features[key]
        here, there = (
            Normalizer(feature, mode).fit(w.store.statistics[key], key)  # type: ignore[arg-type]
            for w in (mixture.target, part)
        )
        batch, alone = mixture.batch(indices), part.batch(indices - len(mixture.target))
        ours, theirs = ((b.actions if key == ACTION else b.observation.states[STATE]) for b in (batch, alone))
        torch.testing.assert_close(here(ours), there(theirs), rtol=1e-4, atol=1e-4)


def test_cameras_are_brought_to_the_targets(mixture: Mixture) -> None:
    batch = mixture.batch(np.array([2, 20]))
    assert batch.observation.images[CAMERA].shape == (2, 2, 8, 8, 3)
    assert batch.observation.images[TOP].shape == (2, 2, 4, 4, 3)
    assert batch.observation.images[TOP][0].any()
    assert not batch.observation.images[TOP][1].any()
    part = mixture.parts[1].windows.batch(np.array([20 - len(mixture.target)]))
    resized, small = (
        x.float().mean() for x in (batch.observation.images[CAMERA][1], part.observation.images[CAMERA])
    )
    assert abs(resized - small) < 12


def test_order_is_kept(mixture: Mixture) -> None:
    indices = np.array([20, 1, 25, 0, 14])
    together = mixture.batch(indices)
    for i, index in enumerate(indices):
        assert torch.equal(together.actions[i], mixture.batch(np.array([index])).actions[0])


def test_weights_are_shares_of_the_batches(mixture: Mixture) -> None:
    sampler = WeightedSampler(groups(mixture), [1, 3], 1000, seed=3)
    indices = sampler.indices(5)
    assert np.mean(indices >= len(mixture.target)) == pytest.approx(0.75, abs=0.05)
    np.testing.assert_array_equal(indices, WeightedSampler(groups(mixture), [2, 6], 1000, seed=3).indices(5))
    assert (indices != sampler.indices(6)).any()
    ranks = [WeightedSampler(groups(mixture), [1, 3], 250, 3, rank, 4).indices(5) for rank in range(4)]
    np.testing.assert_array_equal(np.concatenate(ranks), indices)


@pytest.mark.parametrize(
    ("groups", "weights", "message"),
    [
        ([np.arange(3)], [1.0, 2.0], "weights .* for 1 groups"),
        ([np.arange(3), np.arange(2)], [1.0, -2.0], "none negative"),
        ([np.arange(3)], [0.0], "one positive"),
        ([np.arange(3), np.arange(0)], [1.0, 1.0], "group 1 has weight 1.0 but no windows"),
    ],
)
def test_bad_weights_are_refused(groups: list[np.ndarray], weights: list[float], message: str) -> None:
    with pytest.raises(DataError, match=message):
        WeightedSampler(groups, weights, 8, 0)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (
            {ACTION: Feature(shape=(2,)), CAMERA: Feature(shape=(4, 4, 3), dtype="uint8")},
            "lacks 'observation.state'",
        ),
        ({STATE: Feature(shape=(3,)), ACTION: Feature(shape=(7,))}, "'action' has 7 dimensions, not 2"),
    ],
)
def test_parts_that_do_not_fit_are_refused(tmp_path: Path, features: Features, message: str) -> None:
    target = store_at(tmp_path / "a.zarr", robot(), 1.0)
    other = store_at(tmp_path / "b.zarr", features, 1.0)
    windows = [Windows(s, SPEC, image_keys=[k for k in s.features if "images" in k]) for s in (target, other)]
    with pytest.raises(DataError, match=rf"b.zarr does not mix with .*a.zarr: .*{message}"):
        Mixture([MixturePart(w, 1.0) for w in windows])


@pytest.mark.parametrize(
    ("meaning", "fix"),
    [
        ({"gripper": "plus_opens"}, "gripper: plus_opens, not plus_closes\n.*adapt.gripper=plus_closes"),
        ({"fps": 40.0}, "control rate: 40 Hz, not 20 Hz\n.*adapt.stride=2, or any_rate=true"),
        ({"fps": 10.0}, "control rate: 10 Hz, not 20 Hz\n.*bring the other side to 10 Hz"),
        ({"action_kind": "absolute"}, "action kind: absolute, not delta"),
    ],
)
def test_parts_that_mean_something_else_are_refused(tmp_path: Path, meaning: dict, fix: str) -> None:
    known = {"gripper": "plus_closes", "action_kind": "delta", "action_scale": (0.1, 1.0)}
    stores = [
        store_at(tmp_path / "a.zarr", robot(), 1.0, **known),
        store_at(tmp_path / "b.zarr", robot(), 1.0, **(known | {"action_scale": (0.5, 1.0)} | meaning)),
    ]
    parts = [MixturePart(Windows(store, SPEC), 1.0) for store in stores]
    with pytest.raises(ConventionError, match=rf"(?s)b.zarr does not mix with .*a.zarr.*{fix}"):
        Mixture(parts)


def test_rates_may_differ_on_purpose(tmp_path: Path) -> None:
    stores = [store_at(tmp_path / f"{fps}.zarr", robot(), 1.0, fps=fps) for fps in (20.0, 3.75)]
    parts = [MixturePart(Windows(store, SPEC), 1.0, any_rate=True) for store in stores]
    assert Mixture(parts).batch(np.array([0, 20])).actions.shape == (2, 3, 2)


def test_instructions_are_merged() -> None:
    tables = [
        InstructionTable(encoder=e, instructions=texts, embeddings=torch.eye(3)[: len(texts)])
        for e, texts in (("x", ("push", "reach")), ("x", ("reach", "open")), ("y", ("open",)))
    ]
    merged = merge_instructions(tables[:2])
    assert merged.instructions == ("push", "reach", "open")
    with pytest.raises(DataError, match="embed all alike"):
        merge_instructions(tables)
    assert TASKS[0].name  # the toy tasks of the other tests carry no embeddings
