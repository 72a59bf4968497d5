"""Rings in shared memory: one writes, others read, nobody waits."""

import json
import os
import stat
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest

from mode_policy.deploy import runtime
from mode_policy.deploy.telemetry import CHUNKS, TICKS, Telemetry
from mode_policy.deploy.telemetry_log import LogProcess
from mode_policy.errors import ConfigError


@pytest.fixture
def telemetry():
    made = Telemetry.create(
        rate=50.0,
        actions=["x", "y"],
        states=["a"],
        chunk=4,
        cameras={"top": (2, 3, 3)},
        title="test",
    )
    yield made
    made.finish()


def record(telemetry, tick):
    telemetry.record(
        (0, tick, tick, tick, tick, tick, -1, -1, 0, 0.0, 0.0, 0, 0, 0, np.nan, [tick, -tick], [tick])
    )


def test_another_process_reads_the_same(telemetry):
    other = Telemetry.attach(telemetry.path)
    for tick in range(5):
        record(telemetry, tick)
    rows, following = other.since(0)
    assert following == 5
    np.testing.assert_array_equal(rows["action"][:, 1], [0, -1, -2, -3, -4])
    assert np.isnan(rows["proposal"]).all()
    record(telemetry, 5)
    rows, following = other.since(following)
    assert rows["tick"].tolist() == [5]
    assert other.header["title"] == "test"
    other.request_stop()
    assert telemetry.stop_requested


def test_it_is_for_its_owner_alone_and_gone_afterwards(telemetry):
    assert stat.S_IMODE(telemetry.path.stat().st_mode) == 0o600
    assert telemetry.path.parent == runtime.folder()
    telemetry.finish()
    assert not telemetry.path.exists()
    with pytest.raises(ConfigError, match="holds no telemetry"):
        Telemetry.attach(telemetry.path)


def test_the_ring_keeps_the_newest(telemetry):
    for tick in range(TICKS + 100):
        record(telemetry, tick)
    rows, following = telemetry.since(0)
    assert following == TICKS + 100
    assert rows["tick"][-1] == TICKS + 99
    np.testing.assert_array_equal(np.diff(rows["tick"]), 1)
    assert len(rows) >= TICKS - 2


def test_readers_never_see_half_a_record(telemetry):
    """A reader beside a writer that laps it: every record is whole, and none comes twice."""
    other, seen, over = Telemetry.attach(telemetry.path), [], threading.Event()

    def read():
        following = 0
        while not over.is_set():
            rows, following = other.since(following)
            seen.append(rows)

    reader = threading.Thread(target=read)
    reader.start()
    for tick in range(3 * TICKS):
        record(telemetry, tick)
    over.set()
    reader.join()
    rows = np.concatenate(seen)
    assert len(rows) > 1
    np.testing.assert_array_equal(rows["action"][:, 0], rows["tick"])
    np.testing.assert_array_equal(rows["action"][:, 1], -rows["tick"])
    assert (np.diff(rows["tick"]) > 0).all()


def test_chunks_and_pictures(telemetry):
    other = Telemetry.attach(telemetry.path)
    assert other.picture("top") is None
    picture = np.arange(18, dtype=np.uint8).reshape(2, 3, 3)
    telemetry.show("top", picture)
    np.testing.assert_array_equal(other.picture("top"), picture)
    for n in range(CHUNKS + 3):
        telemetry.record_chunk(0, n, n, n + 1, 2, np.full((3, 2), n))
    chunks, following = other.chunks_since(CHUNKS)
    assert following == CHUNKS + 3
    assert chunks["observed"].tolist() == [CHUNKS, CHUNKS + 1, CHUNKS + 2]
    assert np.isnan(chunks["actions"][:, 3]).all(), "shorter than announced"


def test_names_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match="do not fit into the telemetry's header"):
        Telemetry.create(rate=1.0, actions=["x" * 20000], shared=False)


def test_memory_that_is_full_is_noticed_before_the_run(tmp_path, monkeypatch):
    """Found out later, it would kill the process in the middle of a tick."""
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", tmp_path], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("a small memory cannot be mounted here; that takes root")
    monkeypatch.setattr("mode_policy.deploy.runtime.folder", lambda: tmp_path)
    try:
        with pytest.raises(ConfigError, match=r"has no room for \d+ MB of telemetry .*No space left"):
            Telemetry.create(rate=1.0, actions=["x"])
        assert list(tmp_path.iterdir()) == []
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_there_may_be_no_loop(tmp_path, monkeypatch):
    monkeypatch.setattr("mode_policy.deploy.runtime.folder", lambda: tmp_path)
    with pytest.raises(ConfigError, match="no control loop runs here"):
        Telemetry.attach()
    broken = tmp_path / f"mode-control-{os.getpid()}-x.telemetry"
    broken.write_bytes(b"nonsense")
    with pytest.raises(ConfigError, match="holds no telemetry"):
        Telemetry.attach()


def test_telemetry_of_another_version_is_not_misread(telemetry):
    header = json.dumps(telemetry.header | {"version": 1}).encode()
    other = telemetry.path.read_bytes().replace(json.dumps(telemetry.header).encode(), header)
    telemetry.path.write_bytes(other)
    with pytest.raises(ConfigError, match="its layout is version 1, this program reads version"):
        Telemetry.attach(telemetry.path)


def test_a_log_that_cannot_be_begun_is_noticed_before_the_run(telemetry):
    pytest.importorskip("pyarrow")
    with pytest.raises(ConfigError, match=r"a log at /proc/nowhere/run\.parquet cannot be begun"):
        LogProcess(telemetry, Path("/proc/nowhere/run.parquet"))


def test_what_killed_loops_left_is_cleared_away(tmp_path, monkeypatch):
    monkeypatch.setattr("mode_policy.deploy.runtime.folder", lambda: tmp_path)
    ended = subprocess.Popen(["true"])
    ended.wait()
    left = tmp_path / f"mode-control-{ended.pid}-x.telemetry"
    left.write_bytes(b"")
    with pytest.raises(ConfigError, match="no control loop runs here"):
        Telemetry.attach()
    made = Telemetry.create(rate=1.0, actions=["x"])
    assert list(tmp_path.iterdir()) == [made.path]
    made.finish()
