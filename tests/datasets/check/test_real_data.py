"""The real Push-T demonstrations are clean, and faults that are put into them are found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mode_datasets import DemonstrationStore, ReplayBufferLayout, StoreWriter, open_store
from mode_datasets.check import check_store
from mode_policy.convention import Convention
from mode_policy.types import ACTION, STATE, Episode, Feature, Task
from tests.datasets.conftest import CAMERA, PROVENANCE

from .conftest import alarms, changed

LAYOUT = ReplayBufferLayout(
    keys={STATE: "state", ACTION: "action", CAMERA: "img"},
    features={
        STATE: Feature(shape=(5,), angles=(4,)),
        ACTION: Feature(shape=(2,)),
        CAMERA: Feature(shape=(96, 96, 3), dtype="uint8"),
    },
    convention=Convention(fps=10.0),
    task=Task(name="pusht", instruction="Push the T-shaped block onto the T-shaped target."),
    provenance=PROVENANCE,
)


@pytest.fixture(scope="module")
def pusht(pusht_path: Path) -> DemonstrationStore:
    return open_store(pusht_path, LAYOUT)


def test_the_real_demonstrations_raise_no_alarm(pusht: DemonstrationStore) -> None:
    seen: dict[str, tuple[int, int]] = {}
    report = check_store(
        pusht.location, LAYOUT, progress=lambda what, done, total: seen.update({what: (done, total)})
    ).report
    assert alarms(report) == {}
    assert seen[CAMERA] == (25650, 25650)
    (lag,) = [f.what for f in report.findings if f.check == "lag"]
    assert "by 1 step, 100 ms" in lag
    assert "as absolute actions" in lag


def frozen(episode: Episode) -> Episode:
    front = episode.arrays[CAMERA].copy()
    front[30:60] = front[30]
    return changed(episode, front=front)


def late(episode: Episode) -> Episode:
    action = episode.arrays[ACTION]
    return changed(episode, action=action[np.clip(np.arange(len(action)) - 3, 0, None)])


def glitch(episode: Episode) -> Episode:
    action = episode.arrays[ACTION].copy()
    action[11, 1] = 65535
    return changed(episode, action=action)


@pytest.mark.parametrize(
    ("fault", "chosen", "check"),
    [
        (frozen, lambda i: i == 4, "frozen_frames"),
        (late, lambda i: True, "lag"),
        (glitch, lambda i: i == 4, "outlier"),
        (
            lambda e: replace(e, arrays={k: x[:6] for k, x in e.arrays.items()}),
            lambda i: i == 4,
            "short_episode",
        ),
    ],
)
def test_faults_in_real_demonstrations_are_found(
    tmp_path: Path,
    pusht: DemonstrationStore,
    fault: Callable[[Episode], Episode],
    chosen: Callable[[int], bool],
    check: str,
) -> None:
    path = tmp_path / "pusht.zarr"
    with StoreWriter(path, LAYOUT.features, LAYOUT.convention, PROVENANCE) as writer:
        for i in range(12):
            episode = pusht.episode(i)
            writer.append(fault(episode) if chosen(i) else episode)
    found = alarms(check_store(path).report)
    assert set(found) == {check}
    assert found[check].episodes in ((4,), ())
