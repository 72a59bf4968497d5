"""A conversion as a whole: several processes, damaged episodes, kills, and what is left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from mode_datasets import open_store
from mode_datasets.convert import (
    Progress,
    Report,
    SinkOptions,
    Source,
    SourceOptions,
    convert,
    open_sink,
    open_source,
)
from mode_datasets.convert.assemble import task_of
from mode_datasets.convert.journal import Journal, Skipped
from mode_datasets.convert.pipeline import read_episodes
from mode_policy.errors import DataError
from mode_policy.types import Episode, InstructionTable

from ..conftest import CONVENTION, PROVENANCE, VECTORS, WITH_IMAGES, make_episodes, write
from .conftest import same_episodes, to_store

BAD = (0, 3, 4)


@dataclass(frozen=True, kw_only=True)
class Numbers(Source):
    """Episodes that are made when they are read; some are damaged."""

    count: int = 8
    bad: tuple[int, ...] = ()
    deadly: int = -1

    @property
    def num_episodes(self) -> int:
        return self.count

    def episode(self, index: int) -> Episode:
        if index in self.bad:
            raise DataError("it is damaged")
        if index == self.deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        return make_episodes([4 + index % 3], WITH_IMAGES, seed=index)[0]


def source(tmp_path: Path, **changes: object) -> Numbers:
    about = {
        "path": tmp_path / "made",
        "features": WITH_IMAGES,
        "convention": CONVENTION,
        "provenance": PROVENANCE,
    }
    return Numbers(**{**about, **changes})


def go(numbers: Source, destination: Path, to: str = "store", **options: object) -> Report:
    about = SinkOptions(
        features=numbers.features, convention=numbers.convention, provenance=numbers.provenance
    )
    return convert(numbers, open_sink(destination, to, about), destination, **{"workers": 0, **options})


def test_processes_give_the_same_episodes_in_the_same_order(tmp_path: Path) -> None:
    numbers = source(tmp_path, bad=BAD)
    seen: list[Progress] = []
    alone = go(numbers, tmp_path / "alone.zarr", progress=seen.append)
    together = go(numbers, tmp_path / "together.zarr", workers=2)
    assert alone.skipped == together.skipped
    same_episodes(open_store(tmp_path / "alone.zarr"), open_store(tmp_path / "together.zarr"))
    assert [p.done for p in seen] == list(range(9))
    assert seen[-1].steps == alone.steps == open_store(tmp_path / "alone.zarr").num_steps


def test_episodes_are_read_one_at_a_time(tmp_path: Path) -> None:
    """Memory holds what is being written, not what comes later."""
    read: list[int] = []

    @dataclass(frozen=True, kw_only=True)
    class Watched(Numbers):
        def episode(self, index: int) -> Episode:
            read.append(index)
            return super().episode(index)

    episodes = read_episodes(Watched(**vars(source(tmp_path))), range(8), workers=0)
    for expected in range(8):
        index, _ = next(episodes)
        assert (index, len(read)) == (expected, expected + 1)


def test_damaged_episodes_are_left_out_or_stop_it(tmp_path: Path) -> None:
    report = go(source(tmp_path, bad=BAD), tmp_path / "out.zarr")
    assert [(s.index, s.reason) for s in report.skipped] == [(i, "it is damaged") for i in BAD]
    assert (report.episodes, open_store(tmp_path / "out.zarr").num_episodes) == (5, 5)
    with pytest.raises(DataError, match=r"episode 0 of .*it is damaged"):
        go(source(tmp_path, bad=BAD), tmp_path / "strict.zarr", strict=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.zarr"]


def test_nothing_is_left_of_data_that_are_all_damaged(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none of the 3 episodes .* can be used; episode 0: it is damaged"):
        go(source(tmp_path, count=3, bad=(0, 1, 2)), tmp_path / "out.zarr")
    assert list(tmp_path.iterdir()) == []


def test_a_reader_that_dies_is_reported(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a process that read .*/made died.*--workers"):
        go(source(tmp_path, deadly=2), tmp_path / "out.zarr", workers=2)
    assert not (tmp_path / "out.zarr").exists()


KILLED = """
import os, signal, sys
from pathlib import Path
from tests.datasets.convert.test_pipeline import go, source

folder, to, kill_after = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])

def progress(p):
    if p.done == kill_after:
        os.kill(os.getpid(), signal.SIGKILL)

go(source(folder, bad=(0, 3, 4)), folder / "out.zarr", to, commit_seconds=0, progress=progress,
workers=int(sys.argv[4]))
"""


def killed(tmp_path: Path, to: str, after: int, workers: int = 0) -> None:
    command = [sys.executable, "-c", KILLED, str(tmp_path), to, str(after), str(workers)]
    ended = subprocess.run(command, cwd=Path(__file__).parents[3], check=False, capture_output=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()


@pytest.mark.parametrize("to", ["store", "replay_buffer"])
def test_a_killed_conversion_goes_on(tmp_path: Path, to: str) -> None:
    """Killed twice, before and after an episode that is left out; the result is that of a run in one go."""
    whole = go(source(tmp_path, bad=BAD), tmp_path / "whole.zarr", to)
    for after in (2, 5):
        killed(tmp_path, to, after)
        assert not (tmp_path / "out.zarr").exists()
        assert sorted(p.name for p in tmp_path.glob(".*")) == [".out.zarr.convert.jsonl", ".out.zarr.partial"]
    report = go(source(tmp_path, bad=BAD), tmp_path / "out.zarr", to)
    assert report.resumed == 2  # episodes 1 and 2
    assert report.skipped == whole.skipped
    assert report.episodes == whole.episodes == 5
    stores = [tmp_path / "whole.zarr", tmp_path / "out.zarr"]
    if to != "store":
        stores = [to_store(p, p.with_suffix(".own.zarr")).location.path for p in stores]
    same_episodes(open_store(stores[0]), open_store(stores[1]))
    assert list(tmp_path.glob(".*")) == []


def test_processes_end_with_the_one_that_was_killed(tmp_path: Path) -> None:
    killed(tmp_path, "store", 3, workers=2)
    mine = str(tmp_path).encode()
    for _ in range(100):
        left = [p for p in Path("/proc").glob("[0-9]*/cmdline") if mine in _read(p)]
        if not left:
            break
        time.sleep(0.1)
    assert left == []


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def test_an_interrupted_conversion_of_something_else_is_not_continued(tmp_path: Path) -> None:
    killed(tmp_path, "store", 5)
    for changed in ({"count": 9}, {"bad": (1,)}, {"path": tmp_path / "other"}):
        with pytest.raises(
            DataError, match=r"unfinished conversion of something else, or with other settings.*delete"
        ):
            go(source(tmp_path, **changed), tmp_path / "out.zarr")
    with pytest.raises(DataError, match="left by an interrupted writer of other features"):
        go(source(tmp_path, features=VECTORS), tmp_path / "out.zarr")


def test_ctrl_c_keeps_what_was_written(tmp_path: Path) -> None:
    def interrupt(p: Progress) -> None:
        if p.done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        go(source(tmp_path), tmp_path / "out.zarr", progress=interrupt)
    assert not (tmp_path / "out.zarr").exists()
    assert go(source(tmp_path), tmp_path / "out.zarr").resumed == 5


def test_a_journal_that_a_kill_cut_short_is_read_up_to_there(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "x", {"source": "a"})
    assert journal.begin(0) == 0
    journal.skip(Skipped(0, "episode 0", "bad"))
    journal.skip(Skipped(2, "episode 2", "bad"))
    with journal.path.open("a") as file:
        file.write('{"index": 7, "na')
    again = Journal(tmp_path / "x", {"source": "a"})
    assert again.begin(2) == 4  # 0 and 2 were left out, 1 and 3 written
    again.skip(Skipped(5, "episode 5", "bad"))
    assert [json.loads(line)["index"] for line in journal.path.read_text().splitlines()[1:]] == [0, 2, 5]


def test_formats_that_cannot_be_continued_start_anew(tmp_path: Path) -> None:
    pytest.importorskip("h5py")
    (tmp_path / ".out.hdf5.partial").write_bytes(b"what a killed writer left")
    report = go(source(tmp_path), tmp_path / "out.hdf5", "robomimic")
    assert (report.resumed, report.episodes) == (0, 8)
    with pytest.raises(KeyboardInterrupt):
        go(source(tmp_path), tmp_path / "more.hdf5", "robomimic", progress=_interrupt)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.hdf5"]


def _interrupt(p: Progress) -> None:
    if p.done == 3:
        raise KeyboardInterrupt


def test_only_data_of_the_same_format_are_replaced(tmp_path: Path) -> None:
    pytest.importorskip("h5py")
    about = SinkOptions(features=WITH_IMAGES, convention=CONVENTION, provenance=PROVENANCE, overwrite=True)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "text").write_text("years of work")
    with pytest.raises(DataError, match="of no format known here"):
        open_sink(tmp_path / "thesis", "libero", about)
    go(source(tmp_path), tmp_path / "out.hdf5", "robomimic")
    with pytest.raises(DataError, match="exists; choose another name"):
        go(source(tmp_path), tmp_path / "out.hdf5", "robomimic")
    again = open_sink(tmp_path / "out.hdf5", "robomimic", about)
    assert convert(source(tmp_path, count=2), again, tmp_path / "out.hdf5", workers=0).episodes == 2


def test_instructions_are_embedded_on_request(tmp_path: Path) -> None:
    import torch

    def embed(tasks) -> InstructionTable:
        texts = tuple(task.instruction for task in tasks)
        return InstructionTable(encoder="test", instructions=texts, embeddings=torch.eye(len(texts)))

    go(source(tmp_path), tmp_path / "out.zarr", embed=embed)
    table = open_store(tmp_path / "out.zarr").instruction_table
    assert table is not None
    assert table.encoder == "test"


def test_a_full_disk_is_explained(tmp_path: Path) -> None:
    """A limit on file size fails in the same system call as a full disk, and needs no rights."""
    pytest.importorskip("h5py")
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for to, name in (("replay_buffer", "a.zarr"), ("robomimic", "a.hdf5")):
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, hard))
        try:
            with pytest.raises(DataError, match=r"cannot write .*File too large"):
                go(source(tmp_path, count=40), tmp_path / name, to)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert not (tmp_path / name).exists()


def test_stores_are_sources_too(tmp_path: Path) -> None:
    write(tmp_path / "first.zarr", make_episodes([5, 4], WITH_IMAGES), WITH_IMAGES)
    opened, detected = open_source(tmp_path / "first.zarr", None, SourceOptions(gripper="one_closes"))
    assert detected.format == "store"
    go(opened, tmp_path / "second.zarr")
    second = open_store(tmp_path / "second.zarr")
    same_episodes(open_store(tmp_path / "first.zarr"), second)
    assert second.convention.gripper == "one_closes"


def test_instructions_that_differ_little_have_different_names() -> None:
    texts = ["open the drawer", "Open the drawer", "open the drawer.", "öffne", "???", "x" * 80, "x" * 81]
    assert len({task_of(text).name for text in texts}) == len(texts)
    assert task_of("open the drawer").name == "open-the-drawer"


def test_unknown_formats_are_answered_with_what_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "stuff").mkdir()
    (tmp_path / "stuff" / "notes.txt").write_text("")
    with pytest.raises(
        DataError, match=r"(?s)no format known here. It holds notes.txt. .*LeRobotDataset v3.*--from"
    ):
        open_source(tmp_path / "stuff", None, SourceOptions())
    with pytest.raises(DataError, match=r"nothing at .*stuf\. Did you mean 'stuff'"):
        open_source(tmp_path / "stuf", None, SourceOptions())
