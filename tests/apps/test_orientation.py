"""Demonstrations whose images are turned are found before training, whatever their metadata say."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from mode_datasets import DemonstrationStore, Provenance, StoreWriter, open_store
from mode_datasets.adapt import AdaptConfig, adapt
from mode_envs import convention, env_task, features, make, rendering_available
from mode_policy.apps.orientation import check_orientation, reversals
from mode_policy.convention import Orientation
from mode_policy.errors import DataError
from mode_policy.types import ACTION, IMAGE_PREFIX, Episode

pytest.importorskip("metaworld")
needs_opengl = pytest.mark.skipif(not rendering_available()[0], reason=rendering_available()[1])

DRAWER = env_task("drawer-open-v3")
CORNER = IMAGE_PREFIX + "corner2"
TURNS = [(1, 1), (-1, 1), (1, -1), (-1, -1)]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> DemonstrationStore:
    """First pictures of three episodes, whose drawers stand in different places, of another size."""
    path = tmp_path_factory.mktemp("stores") / "drawer.zarr"
    described = features(DRAWER.env_id, "pixels", image_size=(48, 48))
    env = make(DRAWER.env_id, obs_mode="pixels", image_size=(48, 48))
    meaning, source = convention(DRAWER.env_id), Provenance(source="test", licence="MIT")
    with StoreWriter(path, described, meaning, source) as writer:
        for seed in range(3):
            image = env.reset(seed=seed)[0][CORNER]
            arrays = {CORNER: image[None], ACTION: np.zeros((1, 4), np.float32)}
            writer.append(Episode(arrays=arrays, task=DRAWER.task, seed=seed))
    env.close()
    return open_store(path)


def claiming(store: DemonstrationStore, orientation: Orientation) -> DemonstrationStore:
    return dataclasses.replace(store, image_orientation=orientation)


@needs_opengl
def test_the_printed_fix_fixes_it(store: DemonstrationStore) -> None:
    """Images are stored upright, and the metadata say otherwise; upright ones pass."""
    wrong = claiming(store, "upside_down")
    message = r"'observation.images.corner2' upside down, .*dataset.adapt.image_orientation=upright"
    with pytest.raises(DataError, match=message):
        check_orientation(wrong, [CORNER], [DRAWER])
    check_orientation(adapt(wrong, AdaptConfig(image_orientation="upright")), [CORNER], [DRAWER])


@needs_opengl
def test_the_fix_counts_what_the_metadata_say(store: DemonstrationStore, tmp_path: Path) -> None:
    """Stored turned by 180 degrees and declared upside down, as a rewritten copy of LIBERO's files is."""
    with StoreWriter(tmp_path / "turned.zarr", store.features, store.convention, store.provenance) as writer:
        image = store.frames(CORNER, store.episode_starts[:1])[:, ::-1, ::-1]
        arrays = {CORNER: np.ascontiguousarray(image), ACTION: np.zeros((1, 4), np.float32)}
        writer.append(Episode(arrays=arrays, task=DRAWER.task, seed=0))
    turned = claiming(open_store(tmp_path / "turned.zarr"), "upside_down")
    with pytest.raises(DataError, match=r"mirrored, .*dataset.adapt.image_orientation=rotated_180"):
        check_orientation(turned, [CORNER], [DRAWER])


@needs_opengl
@pytest.mark.parametrize("camera", ["corner2", "gripperPOV", "topview"])
def test_turns_are_recognised_whatever_stands_in_the_scene(camera: str) -> None:
    env = make(DRAWER.env_id, obs_mode="pixels", image_size=(64, 64), camera=camera)
    one, other = (env.reset(seed=seed)[0][IMAGE_PREFIX + camera] for seed in (50, 51))
    env.close()
    for rows, columns in TURNS:
        assert reversals(one[::2, ::2][::rows, ::columns], other) == (rows < 0, columns < 0)


def test_what_cannot_be_told_passes() -> None:
    """Nothing to see, noise, and a scene that is its own mirror image."""
    rng = np.random.default_rng(0)
    blank, noise = np.full((20, 20, 3), 7, np.uint8), rng.integers(0, 255, (64, 64, 3))
    assert reversals(blank, noise) == reversals(noise, blank) == (False, False)
    smooth = np.kron(rng.integers(0, 60, (4, 4, 3)), np.ones((16, 16, 1)))
    symmetric = smooth + smooth[:, ::-1] + smooth[::-1] + smooth[::-1, ::-1]
    assert reversals(symmetric[::-1, ::-1], symmetric) == (False, False)


def test_without_a_task_in_common_nothing_is_drawn(tmp_path: Path) -> None:
    described = features("pusht", "pixels", image_size=(32, 32))
    source, top = Provenance(source="test", licence="MIT"), IMAGE_PREFIX + "top"
    with StoreWriter(tmp_path / "pusht.zarr", described, convention("pusht"), source) as writer:
        image, action = np.zeros((1, 32, 32, 3), np.uint8), np.zeros((1, 2), np.float32)
        arrays: dict[str, np.ndarray] = {top: image, ACTION: action}
        writer.append(Episode(arrays=arrays, task=env_task("pusht").task, seed=0))
    check_orientation(open_store(tmp_path / "pusht.zarr"), [top], [DRAWER])


@pytest.mark.slow
@needs_opengl
def test_liberos_cameras() -> None:
    pytest.importorskip("libero")
    cameras = ("agentview", "eye_in_hand")
    task = "turn_on_the_stove"
    env = make(task, obs_mode="pixels", image_size=(64, 64), cameras=cameras, initial_states="drawn")
    one, other = (env.reset(seed=seed)[0] for seed in (0, 1))
    env.close()
    for key in one:
        for rows, columns in TURNS:
            assert reversals(one[key][::rows, ::columns], other[key]) == (rows < 0, columns < 0)
