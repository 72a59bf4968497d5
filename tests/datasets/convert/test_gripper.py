"""A gripper whose actions are changes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mode_datasets.convert import SourceOptions, open_source
from mode_datasets.convert.gripper import hold_gripper
from mode_policy.errors import ConfigError
from mode_policy.types import ACTION, Episode

from ..conftest import TASKS
from .conftest import libero_attributes, libero_demo, to_store, write_hdf5


@pytest.mark.parametrize(
    ("changes", "positions"),
    [
        ([0, 0, 1, 0, 0, -1, 0], [-1, -1, 1, 1, 1, -1, -1]),
        ([0, -1, 0, 0.05, 1], [1, -1, -1, -1, 1]),
        ([0.8, 0, -0.09, -0.2, -0.7], [1, 1, 1, -1, -1]),
        ([0, 0.1, 0], [-1, -1, -1]),  # noise alone: open all the time
        ([1], [1]),
    ],
)
def test_the_last_change_counts(changes: list[float], positions: list[int]) -> None:
    actions = np.random.default_rng(0).normal(size=(len(changes), 3)).astype(np.float32)
    actions[:, 2] = changes
    before = actions.copy()
    episode = Episode(arrays={ACTION: actions}, task=TASKS[0], seed=1)
    held = hold_gripper(episode, "plus_closes").arrays[ACTION]
    np.testing.assert_array_equal(held[:, 2], positions)
    np.testing.assert_array_equal(held[:, :2], before[:, :2])
    np.testing.assert_array_equal(actions, before)
    # With the other sign, everything is the other way round.
    episode.arrays[ACTION][:, 2] *= -1
    np.testing.assert_array_equal(
        hold_gripper(episode, "plus_opens").arrays[ACTION][:, 2], -np.array(positions)
    )


def test_it_is_asked_for_when_converting(tmp_path: Path) -> None:
    demo = libero_demo(6, np.random.default_rng(0))
    demo["actions"][:, 6] = [0, 0, 1, 0, -1, 0]
    write_hdf5(tmp_path / "task_demo.hdf5", [demo], libero_attributes("close it"))
    store = to_store(tmp_path / "task_demo.hdf5", tmp_path / "out.zarr", gripper_changes=True)
    assert store.vectors()[ACTION][:, 6].tolist() == [-1, -1, 1, 1, -1, -1]
    with pytest.raises(ConfigError, match="needs --gripper plus_closes or plus_opens, and it is one_closes"):
        open_source(
            tmp_path / "task_demo.hdf5", None, SourceOptions(gripper_changes=True, gripper="one_closes")
        )
