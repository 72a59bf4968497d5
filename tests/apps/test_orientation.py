"""Demonstrations whose images are turned are found before training, whatever their metadata say."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from mode_datasets import DemonstrationStore, Provenance, StoreWriter, open_store
from mode_datasets.adapt import AdaptConfig, adapt
from mode_envs import convention, env_task, features, make, rendering_available
from mode_policy.apps.orientation import check_orientation, stored_orientation, turned
from mode_policy.errors import DataError
from mode_policy.types import ACTION, IMAGE_PREFIX, Episode

pytest.importorskip("gym_pusht")

PUSHT = env_task("pusht")
TOP = IMAGE_PREFIX + "top"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> DemonstrationStore:
    """Push-T's first pictures: the target is always in one place, block and finger are not."""
    path = tmp_path_factory.mktemp("stores") / "pusht.zarr"
    env = make("pusht", obs_mode="pixels", image_size=(48, 48))
    described = features("pusht", "pixels", image_size=(48, 48))
    meaning, source = convention("pusht"), Provenance(source="test", licence="MIT")
    with StoreWriter(path, described, meaning, source) as writer:
        for seed in range(8):
            image = env.reset(seed=seed)[0][TOP]
            arrays = {TOP: image[None], ACTION: np.zeros((1, 2), np.float32)}
            writer.append(Episode(arrays=arrays, task=PUSHT.task, seed=seed))
    return open_store(path)


def claiming(store: DemonstrationStore, orientation: str) -> DemonstrationStore:
    return dataclasses.replace(store, image_orientation=orientation)


def test_upright_images_pass(store: DemonstrationStore) -> None:
    check_orientation(store, [TOP], [PUSHT])
    check_orientation(store, [], [PUSHT])


@pytest.mark.parametrize("claimed", ["upside_down", "rotated_180"])
def test_the_printed_fix_fixes_it(store: DemonstrationStore, claimed: str) -> None:
    """Images are stored upright, and the metadata say otherwise."""
    wrong = claiming(store, claimed)
    with pytest.raises(DataError, match=r"'observation.images.top' .*image_orientation=upright"):
        check_orientation(wrong, [TOP], [PUSHT])
    check_orientation(adapt(wrong, AdaptConfig(image_orientation="upright")), [TOP], [PUSHT])


@pytest.mark.parametrize(
    ("rows", "columns", "expected"),
    [(1, 1, "upright"), (-1, 1, "upside_down"), (-1, -1, "rotated_180"), (1, -1, "mirrored")],
)
def test_turned_images_are_recognised_at_any_size(rows: int, columns: int, expected: str) -> None:
    env = make("pusht", obs_mode="pixels", image_size=(96, 96))
    seen = env.reset(seed=50)[0][TOP]
    image = env.reset(seed=51)[0][TOP][::3, ::3]
    assert turned(image[::rows, ::columns], seen) == expected


def test_what_tells_nothing_is_let_pass() -> None:
    blank = np.full((20, 20, 3), 7, np.uint8)
    noise = np.random.default_rng(0).integers(0, 255, (20, 20, 3))
    assert turned(blank, noise) == "upright"
    assert turned(noise, blank) == "upright"


def test_claims_and_findings_add_up() -> None:
    assert stored_orientation("upright", "upside_down") == "upside_down"
    assert stored_orientation("upside_down", "upside_down") == "upright"
    assert stored_orientation("rotated_180", "upside_down") == "mirrored"


@pytest.mark.slow
@pytest.mark.skipif(not rendering_available()[0], reason=rendering_available()[1])
def test_liberos_cameras_can_be_told_apart() -> None:
    task = "pick_up_the_milk_and_place_it_in_the_basket"
    env = make(task, obs_mode="pixels", image_size=(64, 64), initial_states="drawn")
    seen, other = (env.reset(seed=seed)[0] for seed in (0, 1))
    for key in seen:
        for turn, expected in ((-1, "upside_down"), (1, "upright")):
            assert turned(other[key][::turn], seen[key]) == expected
        assert turned(other[key][::-1, ::-1], seen[key]) == "rotated_180"


def test_where_it_was_recorded_does_not_matter(store: DemonstrationStore, tmp_path: Path) -> None:
    """A task that was not demonstrated, or cameras that the environment lacks, are other checks' business."""
    check_orientation(store, [TOP], [env_task("reach-v3")])
    check_orientation(store, [IMAGE_PREFIX + "front"], [PUSHT])
