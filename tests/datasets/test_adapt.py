"""Conventions: differences are found and named with their fix, and the fix does what it says."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mode_datasets import DemonstrationStore, StoreWriter, open_store
from mode_datasets.adapt import AdaptConfig, adapt
from mode_policy.convention import Convention, Side, check_same, convert_gripper, differences
from mode_policy.errors import ConventionError, DataError
from mode_policy.types import ACTION, STATE, Feature, Features

from .conftest import CAMERA, PROVENANCE, WITH_IMAGES, make_episodes

FULL = Convention(
    action_kind="delta",
    action_frame="end_effector",
    action_scale=(0.05, 1.0),
    gripper="plus_closes",
    fps=20.0,
)
GRIPPERS = ("plus_closes", "plus_opens", "one_closes", "one_opens")


def side(name: str = "data", features: Features = WITH_IMAGES, **changes: object) -> Side:
    return Side(name=name, features=features, convention=Convention(**(FULL.to_json() | changes)))  # type: ignore[arg-type]


@pytest.fixture
def store(tmp_path: Path) -> DemonstrationStore:
    with StoreWriter(tmp_path / "demo.zarr", WITH_IMAGES, FULL, PROVENANCE) as writer:
        for episode in make_episodes([7, 4, 9], WITH_IMAGES):
            writer.append(episode)
    return open_store(tmp_path / "demo.zarr")


def test_equal_conventions_pass() -> None:
    assert differences(side(), side()) == []
    check_same(side(), side(), needs_all=True)


def test_what_is_unknown_is_not_compared() -> None:
    nothing = Side(name="env", features={}, convention=Convention())
    assert differences(side(), nothing) == differences(nothing, side()) == []


@pytest.mark.parametrize(
    ("changes", "what", "fix"),
    [
        ({"fps": 100.0}, "control rate", "bring the other side to 20 Hz"),
        ({"gripper": "plus_opens"}, "gripper", "dataset.adapt.gripper=plus_opens"),
        ({"gripper": "none"}, "gripper", "one side has no gripper"),
        ({"action_kind": "absolute"}, "action kind", "convert the actions"),
        ({"action_frame": "joint"}, "action frame", "convert the actions"),
        ({"action_scale": (0.1, 1.0)}, "action scale", r"dataset.adapt.action_scale=\[0.1, 1.0\]"),
        ({"fps": 10.0}, "control rate", "dataset.adapt.stride=2"),
        ({"fps": 15.0}, "control rate", "resample"),
    ],
)
def test_differences_are_named_with_their_fix(changes: dict[str, object], what: str, fix: str) -> None:
    with pytest.raises(ConventionError, match=rf"(?s)data and env.*{what}: .*fix: {fix}"):
        check_same(side(), side("env", **changes))


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({STATE: Feature(shape=(4,))}, "3 dimensions, env 4"),
        ({STATE: Feature(shape=(3,), names=("x", "z", "y"))}, "dimension 1 is the first that differs"),
        ({STATE: Feature(shape=(3,), unit="px")}, "unit of observation.state: data m, env px"),
        (
            {"observation.images.top": WITH_IMAGES[CAMERA]},
            rf"dataset.adapt.rename={{{CAMERA}: observation.images.top}}",
        ),
    ],
)
def test_features_are_compared(features: Features, message: str) -> None:
    with pytest.raises(ConventionError, match=message):
        check_same(side(), side("env", features), needs_all=True)


@given(st.sampled_from(GRIPPERS), st.sampled_from(GRIPPERS), st.floats(0, 1))
def test_gripper_conversions_invert_each_other(a: str, b: str, closed: float) -> None:
    meaning = {
        "plus_closes": 2 * closed - 1,
        "plus_opens": 1 - 2 * closed,
        "one_closes": closed,
        "one_opens": 1 - closed,
    }
    factor, offset = convert_gripper(a, b)
    assert factor * meaning[a] + offset == pytest.approx(meaning[b], abs=1e-12)


def test_the_gripper_is_converted(store: DemonstrationStore) -> None:
    there = adapt(store, AdaptConfig(gripper="plus_opens"))
    np.testing.assert_array_equal(there.vectors()[ACTION][:, -1], -store.vectors()[ACTION][:, -1])
    np.testing.assert_array_equal(there.vectors()[ACTION][:, :-1], store.vectors()[ACTION][:, :-1])
    assert there.convention.gripper == "plus_opens"
    assert there.statistics[ACTION]["max"][-1] == -store.statistics[ACTION]["min"][-1]
    assert differences(side(gripper="plus_opens"), side()) != []
    np.testing.assert_array_equal(
        adapt(there, AdaptConfig(gripper="plus_closes")).vectors()[ACTION], store.vectors()[ACTION]
    )


def test_the_scale_is_converted(store: DemonstrationStore) -> None:
    there = adapt(store, AdaptConfig(action_scale=(0.1, 2.0)))
    np.testing.assert_allclose(there.vectors()[ACTION], store.vectors()[ACTION] / 2, rtol=1e-6)
    assert there.convention.action_scale == (0.1, 2.0)


@pytest.mark.parametrize("kind", ["delta", "absolute"])
def test_steps_are_left_out(store: DemonstrationStore, kind: str) -> None:
    silent = dataclasses.replace(store.convention, action_kind="unknown")
    store = dataclasses.replace(store, convention=silent)
    there = adapt(store, AdaptConfig(stride=3, declare={"action_kind": kind}))
    assert there.fps == pytest.approx(20 / 3)
    assert there.episode_lengths.tolist() == [3, 2, 3]
    for i in range(3):
        old, new = store.episode(i), there.episode(i)
        np.testing.assert_array_equal(new.arrays[STATE], old.arrays[STATE][::3])
        np.testing.assert_array_equal(new.arrays[CAMERA], old.arrays[CAMERA][::3])
        groups = np.split(old.arrays[ACTION], range(3, len(old), 3))
        moved = [g[:, 0].sum() if kind == "delta" else g[-1, 0] for g in groups]
        np.testing.assert_allclose(new.arrays[ACTION][:, 0], moved, rtol=1e-5)
        np.testing.assert_array_equal(new.arrays[ACTION][:, -1], [g[-1, -1] for g in groups])


def test_features_are_renamed(store: DemonstrationStore) -> None:
    there = adapt(store, AdaptConfig(rename={CAMERA: "observation.images.top"}))
    steps = np.arange(5)
    np.testing.assert_array_equal(there.frames("observation.images.top", steps), store.frames(CAMERA, steps))
    assert CAMERA not in there.features


@pytest.mark.parametrize(
    ("orientation", "turn"),
    [
        ("upside_down", lambda x: x[:, ::-1]),
        ("rotated_180", lambda x: x[:, ::-1, ::-1]),
        ("upright", lambda x: x),
    ],
)
def test_images_are_delivered_upright(
    store: DemonstrationStore, orientation: str, turn: Callable[[np.ndarray], np.ndarray]
) -> None:
    there = adapt(store, AdaptConfig(image_orientation=orientation))  # type: ignore[arg-type]
    np.testing.assert_array_equal(
        there.frames(CAMERA, np.arange(9)), turn(store.frames(CAMERA, np.arange(9)))
    )
    np.testing.assert_array_equal(there.all_frames(CAMERA), turn(store.all_frames(CAMERA)))


def test_images_are_resized(store: DemonstrationStore) -> None:
    there = adapt(store, AdaptConfig(image_size=(8, 10)))
    assert there.features[CAMERA].shape == (8, 10, 3)
    frames, small = there.all_frames(CAMERA), store.all_frames(CAMERA)
    assert frames.shape == (20, 8, 10, 3)
    np.testing.assert_allclose(frames.mean((1, 2)), small.mean((1, 2)), atol=12)
    same = adapt(store, AdaptConfig(image_size=(4, 5), image_orientation="upside_down"))
    np.testing.assert_array_equal(same.all_frames(CAMERA), small[:, ::-1])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (AdaptConfig(gripper="plus_opens"), "does not say what its gripper"),
        (AdaptConfig(action_scale=(1.0, 1.0)), "does not say how large"),
        (AdaptConfig(stride=2), "absolute or deltas"),
    ],
)
def test_what_the_store_does_not_say_must_be_declared(
    store: DemonstrationStore, config: AdaptConfig, message: str
) -> None:
    silent = dataclasses.replace(store, convention=Convention(fps=20.0))
    with pytest.raises(DataError, match=message):
        adapt(silent, config)
    with pytest.raises(DataError, match="gripper 'wide' is none of"):
        adapt(silent, AdaptConfig(declare={"gripper": "wide"}))
    known = {"gripper": "plus_closes", "action_scale": [0.5, 1.0], "action_kind": "absolute", "fps": 20}
    told = adapt(silent, dataclasses.replace(config, declare=known))
    assert told.convention.action_kind == "absolute"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            AdaptConfig(declare={"gripper": "plus_opens"}),
            "its gripper is 'plus_closes', .* migrate .* gripper=",
        ),
        (AdaptConfig(gripper="none"), "cannot convert"),
        (AdaptConfig(action_scale=(1.0,)), "has 1 values .* give 2"),
        (AdaptConfig(declare={"griper": "none"}), "no 'griper'. Did you mean 'gripper'"),
        (AdaptConfig(rename={"observation.states": STATE}), "Did you mean 'observation.state'"),
        (AdaptConfig(rename={CAMERA: "observation.top"}), "of another kind"),
        (AdaptConfig(rename={CAMERA: CAMERA, STATE: ACTION}), "of another kind"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    store: DemonstrationStore, config: AdaptConfig, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        adapt(store, config)
