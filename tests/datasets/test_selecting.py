"""Episodes are chosen by what is known of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mode_datasets import DemonstrationStore, open_store
from mode_datasets.selecting import Criteria, parse_numbers, select
from mode_policy.errors import DataError
from mode_policy.types import STATE, Feature

from .conftest import VECTORS, make_episodes, write

REWARD = "observation.reward"


@pytest.fixture
def rewarded(tmp_path: Path) -> DemonstrationStore:
    """Five episodes; the reward's maximum is the episode's number, its last value half of that."""
    features = {**VECTORS, REWARD: Feature(shape=(1,))}
    episodes = make_episodes([3, 5, 7, 9, 11], VECTORS)
    for i, episode in enumerate(episodes):
        reward = np.linspace(0, i, len(episode), dtype=np.float32)[:, None]
        reward[-1] = i / 2
        reward[1] = i
        episodes[i] = replace(episode, arrays={**episode.arrays, REWARD: reward})
    write(tmp_path / "demo.zarr", episodes, features)
    return open_store(tmp_path / "demo.zarr")


@pytest.mark.parametrize(
    ("criteria", "expected"),
    [
        (Criteria(), [0, 1, 2, 3, 4]),
        (Criteria(tasks=["reach"]), [1, 3]),
        (Criteria(episodes=[4, 0, 4]), [0, 4]),
        (Criteria(drop=[1, 2]), [0, 3, 4]),
        (Criteria(min_length=5, max_length=9), [1, 2, 3]),
        (Criteria(where=[f"max({REWARD}) >= 3"]), [3, 4]),
        (Criteria(where=[f"last({REWARD})<1"]), [0, 1]),
        (Criteria(where=[f"first({REWARD}) == 0", f"max({REWARD}[0]) > 1.5e0"]), [2, 3, 4]),
        (Criteria(where=[f"min({STATE}[y]) < 1e9"], tasks=["push"], drop=[0]), [2, 4]),
        (Criteria(where=["mean(action[1]) > 100"]), []),
    ],
)
def test_criteria(rewarded: DemonstrationStore, criteria: Criteria, expected: list[int]) -> None:
    assert select(rewarded, criteria).tolist() == expected


def test_success_is_a_feature(rewarded: DemonstrationStore, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"does not record success.*--where"):
        select(rewarded, Criteria(success=True))
    success = "observation.success"
    episodes = [
        replace(e, arrays={**e.arrays, success: np.float32([[0.0]] * (len(e) - 1) + [[i % 2]])})
        for i, e in enumerate(make_episodes([3, 4, 5], VECTORS))
    ]
    write(tmp_path / "s.zarr", episodes, {**VECTORS, success: Feature(shape=(1,))})
    assert select(open_store(tmp_path / "s.zarr"), Criteria(success=True)).tolist() == [1]


@pytest.mark.parametrize(
    ("criteria", "message"),
    [
        (Criteria(tasks=["pusch"]), "no task 'pusch'. Did you mean 'push'"),
        (Criteria(episodes=[5]), "episodes 0 to 4; 5 is none"),
        (Criteria(drop=[-1]), "-1 is none"),
        (Criteria(where=["largest(action) > 1"]), "cannot read the condition"),
        (Criteria(where=["max(acton) > 1"]), "no vector 'acton'. Did you mean 'action'"),
        (Criteria(where=["max(action) > 1"]), "'action' has 2 dimensions; name one"),
        (Criteria(where=["max(observation.state[w]) > 1"]), "no dimension 'w'"),
        (Criteria(where=["max(action[0]) > 1e"]), "'1e' is no number"),
        (Criteria(where=["__import__('os')"]), "cannot read the condition"),
    ],
)
def test_criteria_that_make_no_sense(rewarded: DemonstrationStore, criteria: Criteria, message: str) -> None:
    with pytest.raises(DataError, match=message):
        select(rewarded, criteria)


def test_numbers() -> None:
    assert parse_numbers("0-3, 7,9-9") == [0, 1, 2, 3, 7, 9]
    for text in ("", "1-", "a", "1;2", "-3"):
        with pytest.raises(DataError, match="episodes look like"):
            parse_numbers(text)
