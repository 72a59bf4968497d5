"""``mode-data convert`` and ``download`` as a user calls them."""

from __future__ import annotations

from pathlib import Path

import pytest
import zarr

import mode_policy.apps.convert as program
from mode_datasets import open_store
from mode_datasets.published import HubData
from mode_policy.apps.data import main
from mode_policy.errors import DataError

from ..conftest import WITH_IMAGES, make_episodes, write
from .conftest import LIBERO_TASKS, Arrays

pytest.importorskip("h5py")


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program.console, "_width", 300)


def said(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """What the program prints; its exit code must be 0."""
    main([str(a) for a in arguments])
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The error that the program prints; its exit code must be 2."""
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in arguments])
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_one_command_and_a_report(
    libero: tuple[Path, dict[str, list[Arrays]]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import h5py

    monkeypatch.setattr("sys.argv", ["mode-data", "convert"])
    with h5py.File(libero[0] / f"{min(LIBERO_TASKS)}_demo.hdf5", "a") as file:
        del file["data/demo_1/actions"]
    shown = said(capsys, "convert", libero[0], tmp_path / "out.zarr", "--workers", 0)
    for part in (
        "format       libero: 2 HDF5 files",
        "has the attribute 'problem_info'",
        "feature      observation.images.agentview uint8 (16, 16, 3)",
        "note         observations are those after the action",
        "12 of 13",
        "plus_closes",
        "MB before",
        f"{min(LIBERO_TASKS)}_demo.hdf5/demo_1",
        "has no 'actions'",
    ):
        assert part in shown, shown
    store = open_store(tmp_path / "out.zarr")
    assert store.num_episodes == 12
    assert "convert" in store.provenance.command


def test_profiles_and_other_formats(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "first.zarr", make_episodes([5, 4], WITH_IMAGES), WITH_IMAGES)
    said(capsys, "convert", tmp_path / "first.zarr", tmp_path / "small.zarr", "--profile", "archive")
    assert open_store(tmp_path / "small.zarr").profile == "archive"
    said(capsys, "convert", tmp_path / "first.zarr", tmp_path / "all.hdf5", "--to", "robomimic")
    shown = said(capsys, "convert", tmp_path / "all.hdf5", tmp_path / "back.zarr", "--gripper", "one_closes")
    assert "format       robomimic" in shown
    assert open_store(tmp_path / "back.zarr").convention.gripper == "one_closes"
    said(capsys, "convert", tmp_path / "first.zarr", tmp_path / "back.zarr", "--overwrite")
    inside = refused(capsys, "convert", tmp_path / "first.zarr", tmp_path / "first.zarr" / "sub.zarr")
    assert "is inside its source" in inside
    assert open_store(tmp_path / "back.zarr").convention.gripper == "unknown"


def test_a_replay_buffer_is_described_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "first.zarr", make_episodes([5, 4], WITH_IMAGES), WITH_IMAGES)
    said(capsys, "convert", tmp_path / "first.zarr", tmp_path / "buffer.zarr", "--to", "replay_buffer")
    del zarr.open_group(str(tmp_path / "buffer.zarr"), mode="r+").attrs["mode_policy"]  # as others write them
    buffer, out = tmp_path / "buffer.zarr", tmp_path / "out.zarr"
    assert "--fps" in refused(capsys, "convert", buffer, out, "--instruction", "push")
    given = (
        "--fps",
        10,
        "--instruction",
        "push",
        "--key",
        "action=action",
        "--key",
        "observation.state=state",
    )
    assert "format       replay_buffer" in said(capsys, "convert", buffer, out, *given)
    assert sorted(open_store(out).features) == ["action", "observation.state"]


def test_what_cannot_be_done_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "first.zarr", make_episodes([5], WITH_IMAGES), WITH_IMAGES)
    first, out = tmp_path / "first.zarr", tmp_path / "out"
    for arguments, message in [
        ((first, out, "--to", "lerobt"), "Did you mean 'lerobot'"),
        ((first, out, "--from", "robomimc"), "Did you mean 'robomimic'"),
        ((first, out.with_suffix(".hdf5")), "say --to robomimic"),
        ((first, out, "--lossless"), "with --to lerobot"),
        ((first, out, "--to", "robomimic", "--profile", "jpeg"), "are for stores"),
        ((first, out, "--mask", "x"), "--mask means nothing for the format 'store'"),
        ((first, out, "--key", "action"), "keys look like"),
        ((first, out, "--key", "action=a"), "a store describes itself"),
        ((tmp_path, out), "What was looked for"),
        ((tmp_path / "frist.zarr", out), "Did you mean 'first.zarr'"),
    ]:
        assert message in refused(capsys, "convert", *arguments)
        assert not list(tmp_path.glob("*out*"))


def test_push_t_is_converted_by_its_recipe(
    pusht_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = said(capsys, "convert", pusht_path, tmp_path / "pusht.zarr", "--task", "pusht")
    assert "206 of 206" in shown
    store = open_store(tmp_path / "pusht.zarr")
    assert (store.num_steps, store.fps) == (25650, 10.0)
    assert store.features["observation.state"].angles == (4,)


def test_downloads_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "Did you mean 'libero_90'" in refused(capsys, "download", "libero90")

    def unreachable(item: HubData, destination: Path, **_: object) -> bool:
        assert destination == tmp_path / "libero_90"
        raise DataError("the hub cannot be reached")

    monkeypatch.setattr(program, "download", unreachable)
    assert "the hub cannot be reached" in refused(capsys, "download", "libero_90", "--folder", tmp_path)
    monkeypatch.setattr(program, "download", lambda *_, **__: True)
    shown = said(capsys, "download", "libero_90", "--folder", tmp_path)
    assert f"next         mode-data convert {tmp_path / 'libero_90'}" in shown
    assert "CC-BY-4.0" in shown
