"""Damaged files are named, all of them, and what can still be checked is checked."""

from __future__ import annotations

import json
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
import zarr

from mode_datasets import ReplayBufferLayout, StoreWriter, open_store
from mode_datasets.check import CHECKS, bad_episodes, check_store
from mode_policy.convention import Convention
from mode_policy.errors import ConfigError, DataError
from mode_policy.normalization import statistics_to_json
from mode_policy.types import ACTION, STATE, InstructionTable
from tests.datasets.conftest import CAMERA, PROVENANCE, rewrite

from .conftest import CONVENTION, FEATURES, TASKS, WRIST, MakeStore, alarms, only

VECTORS = {key: FEATURES[key] for key in (STATE, ACTION)}


def files_of(path: Path, key: str) -> list[Path]:
    files = [p for p in (path / "data" / key / "c").rglob("*") if p.is_file()]
    return sorted(files, key=lambda p: int(p.relative_to(path / "data" / key / "c").parts[0]))


def flip_a_bit(file: Path, at: float = 0.5) -> None:
    content = bytearray(file.read_bytes())
    content[int(at * (len(content) - 1))] ^= 4
    file.write_bytes(content)


def episodes_in(path: Path, first: int, last: int) -> tuple[int, ...]:
    """Episodes that rows ``first`` to ``last`` belong to."""
    ends = np.asarray(zarr.open_array(str(path / "meta" / "episode_ends"), mode="r")[...])
    low, high = np.searchsorted(ends, [first, last], side="right")
    return tuple(range(low, high + 1))


def test_a_flipped_bit_in_each_of_several_arrays(make_demos: MakeStore) -> None:
    path = make_demos()
    state, wrist = files_of(path, STATE)[2], files_of(path, WRIST)[0]
    flip_a_bit(state)
    flip_a_bit(wrist, 0.3)
    report = check_store(path).report
    found = [f for f in report.findings if f.check == "corrupt_file"]
    assert {f.feature: f.files for f in found} == {
        STATE: (str(state.relative_to(path)),),
        WRIST: (str(wrist.relative_to(path)),),
    }
    of_state = next(f for f in found if f.feature == STATE)
    assert of_state.episodes == episodes_in(path, 200, 299)
    assert {f.check for f in report.findings if f.severity != "info"} == {"corrupt_file"}
    assert report.exit_code() == 1


def test_a_damaged_frame_is_located_to_the_step(make_demos: MakeStore, clean_episodes) -> None:
    path = make_demos()
    file = files_of(path, CAMERA)[1]
    content = file.read_bytes()
    index = np.frombuffer(content[-16 * 100 - 4 : -4], "<u8").reshape(-1, 2)
    damaged = bytearray(content)
    damaged[int(index[42, 0] + index[42, 1] // 2)] ^= 1
    file.write_bytes(damaged)
    finding = only(path, "corrupt_file")
    episode = episodes_in(path, 142, 142)
    assert finding.episodes == episode
    assert finding.step == 142 - sum(len(e) for e in clean_episodes[: episode[0]])


def test_a_shard_that_was_cut_short_loses_all_its_frames(make_demos: MakeStore) -> None:
    path = make_demos()
    file = files_of(path, CAMERA)[1]
    file.write_bytes(file.read_bytes()[:-200])
    finding = only(path, "corrupt_file")
    assert finding.episodes == episodes_in(path, 100, 199)
    assert finding.files == (str(file.relative_to(path)),)


@pytest.mark.parametrize("key", [ACTION, CAMERA])
def test_files_that_are_missing(make_demos: MakeStore, key: str) -> None:
    path = make_demos()
    lost = [files_of(path, key)[i] for i in (0, 3)]
    for file in lost:
        file.unlink()
    finding = only(path, "corrupt_file")
    assert finding.files == tuple(str(file.relative_to(path)) for file in lost)
    assert "2 of " in finding.what


def test_a_store_that_cannot_be_opened_still_has_its_files_read(make_demos: MakeStore) -> None:
    path = make_demos()
    rewrite(path, "meta/episode_ends", lambda ends: ends[::-1].copy())
    camera, action = files_of(path, CAMERA)[2], files_of(path, ACTION)[1]
    flip_a_bit(camera)
    flip_a_bit(action)
    checked = check_store(path)
    assert checked.contents is None
    found = {f.check: f for f in checked.report.findings}
    assert "not strictly increasing" in found["unreadable"].what
    named = {file for f in checked.report.findings for file in f.files}
    assert named == {str(file.relative_to(path)) for file in (camera, action)}


def test_damaged_metadata_of_an_array(make_demos: MakeStore) -> None:
    path = make_demos(features=VECTORS)
    (path / "data" / STATE / "zarr.json").write_text("{")
    found = alarms(check_store(path).report)
    assert set(found) == {"corrupt_file", "unreadable"}
    assert "metadata is damaged" in found["corrupt_file"].what


def test_statistics_of_other_data(make_demos: MakeStore) -> None:
    path = make_demos(features=VECTORS)
    rewrite(path, f"data/{STATE}", lambda x: x + np.float32(1))
    findings = [f for f in check_store(path).report.findings if f.severity == "error"]
    assert {f.check for f in findings} == {"statistics"}
    assert f"mode-data stats {path} --write" in findings[0].fix


def test_statistics_that_were_changed(make_demos: MakeStore) -> None:
    path = make_demos(features=VECTORS)
    group = zarr.open_group(str(path), mode="r+")
    statistics = dict(group.attrs["statistics"])  # type: ignore[arg-type]
    values = statistics_to_json(open_store(path).statistics)
    values[ACTION]["q99"][1] = 7.0
    group.update_attributes({"statistics": statistics | {"values": values}})
    assert "q99 y: 7, not 0." in only(path, "statistics").what


def test_embeddings_that_tell_nothing(make_demos: MakeStore, clean_episodes) -> None:
    path = make_demos(features=VECTORS)
    texts = tuple(task.instruction for task in TASKS)
    with StoreWriter.append_to(path) as writer:
        writer.set_instructions(
            InstructionTable(encoder="minilm-l6-v2", instructions=texts, embeddings=torch.zeros(2, 8))
        )
    finding = only(path, "instruction")
    assert finding.severity == "error"
    assert "2 are zero" in finding.what


def test_what_an_interrupted_append_left(make_demos: MakeStore, clean_episodes) -> None:
    path = make_demos(features=VECTORS)
    group = zarr.open_group(str(path), mode="r+")
    group.update_attributes({"episodes": 10})
    findings = [f for f in check_store(path).report.findings if f.severity != "info"]
    assert {f.check for f in findings} == {"leftover"}
    dropped = len(clean_episodes[10]) + len(clean_episodes[11])
    assert any(f"{dropped} steps" in f.what for f in findings)


def test_what_an_interrupted_writer_left_beside_it(make_demos: MakeStore) -> None:
    path = make_demos(features=VECTORS)
    beside = path.with_name(f".{path.name}.partial")
    beside.mkdir()
    assert str(beside) in only(path, "leftover").what


def test_damage_at_a_remote_address(make_demos: MakeStore) -> None:
    path = make_demos()
    flip_a_bit(files_of(path, STATE)[2])
    files_of(path, CAMERA)[1].unlink()
    fsspec.filesystem("memory").put(str(path), "/bucket/demo.zarr", recursive=True)
    found = [f for f in check_store("memory://bucket/demo.zarr").report.findings if f.severity == "error"]
    assert {f.files for f in found} == {(f"data/{STATE}/c/2/0",), (f"data/{CAMERA}/c/1/0/0/0",)}


def test_stores_of_another_layout(tmp_path: Path, clean_episodes) -> None:
    path = tmp_path / "foreign.zarr"
    group = zarr.create_group(str(path), zarr_format=2)
    joined = {key: np.concatenate([e.arrays[key] for e in clean_episodes]) for key in FEATURES}
    ends = np.cumsum([len(e) for e in clean_episodes])
    for name, x in (
        ("data/state", joined[STATE]),
        ("data/action", joined[ACTION]),
        ("data/img", joined[CAMERA].astype(np.float32)),
        ("data/spare", joined[ACTION]),
        ("meta/episode_ends", ends),
    ):
        group.create_array(name, data=x, chunks=(61, *x.shape[1:]), config={"write_empty_chunks": True})
    layout = ReplayBufferLayout(
        keys={STATE: "state", ACTION: "action", CAMERA: "img"},
        features={key: FEATURES[key] for key in (STATE, ACTION, CAMERA)},
        convention=CONVENTION,
        task=TASKS[0],
        provenance=PROVENANCE,
    )
    report = check_store(path, layout).report
    assert alarms(report) == {}
    assert any("data/spare" in f.what for f in report.findings)
    (path / "data" / "img" / "3.0.0.0").unlink()
    (path / "data" / "state" / "5.0").write_bytes(b"")
    found = [f for f in check_store(path, layout).report.findings if f.severity == "error"]
    assert {f.files for f in found} == {("data/img/3.0.0.0",), ("data/state/5.0",)}
    with pytest.raises(DataError, match="Describe it"):
        check_store(path)


def test_a_missing_store_suggests_its_neighbours(make_demos: MakeStore) -> None:
    path = make_demos(features=VECTORS)
    with pytest.raises(DataError, match=r"Did you mean 'demo.zarr'"):
        check_store(path.with_name("dmeo.zarr"))


def test_checks_can_be_left_out(make_demos: MakeStore) -> None:
    path = make_demos(features=VECTORS, convention=Convention(fps=20.0))
    assert any(f.check == "convention" for f in check_store(path).report.findings)
    report = check_store(path, ignore=["convention"]).report
    assert all(f.check != "convention" for f in report.findings)
    assert "convention" not in report.checks
    with pytest.raises(ConfigError, match="Did you mean 'saturation'"):
        check_store(path, ignore=["saturaton"])


def test_a_report_survives_json(make_demos: MakeStore) -> None:
    path = make_demos()
    flip_a_bit(files_of(path, STATE)[0])
    report = check_store(path).report
    data = json.loads(json.dumps(report.to_json()))
    assert data["counts"]["error"] == 1
    assert set(data["checks"]) == set(CHECKS)
    assert bad_episodes(data) == list(episodes_in(path, 0, 99))
    assert bad_episodes(data, severities=["warning"]) == []
    assert bad_episodes(data, severities=[], checks=["corrupt_file"]) == list(episodes_in(path, 0, 99))
    with pytest.raises(DataError, match="no report"):
        bad_episodes({"findings": [{}]})
