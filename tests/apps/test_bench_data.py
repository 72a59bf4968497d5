"""``mode-bench data``: which readers are measured on which data; their rates are the machine's business."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mode_datasets import open_store
from mode_policy.apps.bench import data_others, main
from mode_policy.errors import ConfigError
from mode_policy.types import ACTION, IMAGE_PREFIX, Feature, Features
from tests.datasets.conftest import VECTORS, make_episodes, write

FEATURES: Features = {
    **VECTORS,
    **{f"{IMAGE_PREFIX}{name}": Feature(shape=(32, 32, 3), dtype="uint8") for name in ("static", "gripper")},
}
READERS = {
    *(("ours, as it is", workers) for workers in (0, 2)),
    *((name, workers) for name in ("ours, train", "ours, train, in memory") for workers in (0, 2)),
    ("ours, jpeg", 0),
    ("ours, archive", 0),
    ("zarr-python, profile train", 0),
}


def measured(tmp_path: Path, *arguments: object) -> dict[str, Any]:
    main(["data", *map(str, arguments), "--record", str(tmp_path / "records")])
    (path,) = (tmp_path / "records").glob("data_*.json")
    return json.loads(path.read_text())


def test_a_store_of_ones_own(tmp_path: Path) -> None:
    """Fewer steps than a batch usually has; of three episodes, two are brought to the other formats."""
    pytest.importorskip("imagecodecs")
    write(tmp_path / "mine.zarr", make_episodes([12, 9, 7], FEATURES), FEATURES)
    before = sorted(path.stat().st_mtime_ns for path in (tmp_path / "mine.zarr").rglob("*"))
    some = ("--episodes", 2, "--seconds", 0, "--training", 0, "--ours-only")
    found = measured(tmp_path, "--store", tmp_path / "mine.zarr", *some)
    assert {(row["reader"], row["workers"]) for row in found["rows"]} == READERS
    for row in found["rows"]:
        assert 0 < row["lowest"] <= row["windows_per_s"] <= row["highest"]
        assert row["cpu_ms_per_1000"] > 0
    assert found["config"]["data"]["steps"] == 28
    assert {"commit", "date", "device", "versions"} <= set(found)
    assert sorted(path.stat().st_mtime_ns for path in (tmp_path / "mine.zarr").rglob("*")) == before


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("mine.zar", "no demonstration store at mine.zar. Did you mean .*mine.zarr"),
        ("mine.zarr", "mine.zarr has no cameras"),
        (".", "give the folder that holds `data` and `meta`"),
    ],
)
def test_a_store_that_cannot_be_measured(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "mine.zarr", make_episodes([5], VECTORS), VECTORS)
    with pytest.raises(SystemExit) as stopped:
        main(["data", "--store", path])
    assert stopped.value.code == 2
    error = capsys.readouterr().err.replace("\n", " ")
    assert error.startswith("error: ")
    assert re.search(message, error), error


def unavailable(*_: object) -> None:
    raise ConfigError("not here")


def test_what_is_not_installed_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("h5py")
    write(tmp_path / "mine.zarr", make_episodes([9, 6], FEATURES), FEATURES)
    for name in ("_video", "_image"):
        monkeypatch.setattr(data_others, name, unavailable)
    said: list[str] = []
    names = []
    for other in data_others.others(tmp_path, open_store(tmp_path / "mine.zarr"), 4, said.append):
        names.append(other.name)
        with other.reader as fetch:
            fetch(0), fetch(1)
        assert other.batch in (8, 15)
        assert other.megabytes is not None
    assert names == ["zarr-python, profile train", "h5py, robomimic HDF5"]
    assert said == ["left out   not here"] * 2


@pytest.mark.slow
def test_everything(tmp_path: Path) -> None:
    pytest.importorskip("lerobot.datasets.lerobot_dataset")
    found = measured(tmp_path, "--episodes", 1, "--seconds", 0.1, "--training", 0.5)
    rows = {(row["reader"], row["workers"]): row for row in found["rows"]}
    trainings = {
        ("training from states, tiny", 0),
        ("training from images, small", 2),
        ("training from images, small, in memory", 0),
    }
    files = {("h5py, robomimic HDF5", 0), ("LeRobotDataset, video", 0), ("LeRobotDataset, image", 0)}
    assert set(rows) == READERS - {("ours, as it is", 0), ("ours, as it is", 2)} | files | trainings
    for key in trainings:
        assert 0 <= rows[key]["waiting_percent"] <= 100
    assert found["config"]["data"]["features"][ACTION] == [7]
    assert np.prod(found["config"]["data"]["features"]["observation.images.static"]) == 128 * 128 * 3
