"""Stores behind an address are read as those on disk."""

from __future__ import annotations

import functools
import http.server
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import fsspec
import numpy as np
import pytest

from mode_datasets import BatchSampler, DemonstrationStore, Windows, WindowSpec, open_store
from mode_datasets.loader import BatchLoader
from mode_policy.errors import ConfigError, DataError
from mode_policy.types import ACTION

from .conftest import CAMERA, WITH_IMAGES


class _Ranges(http.server.SimpleHTTPRequestHandler):
    """Serves files, and ranges of them, as object stores do."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        content = path.read_bytes()
        start, end = 0, len(content)
        if wanted:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start = int(first) if first else max(0, end - int(last))
            end = min(end, int(last) + 1) if first and last else end
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(end - start))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Last-Modified", self.date_time_string())
        self.send_header("ETag", f'"{len(content)}"')
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(content)}")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[start:end])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    handler = functools.partial(_Ranges, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.fixture
def object_store(served: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The same server as an object store: an anonymous reader asks it for nothing that it cannot answer."""
    pytest.importorskip("aiohttp")
    pytest.importorskip("obstore")
    settings = {"ENDPOINT": served, "SKIP_SIGNATURE": "true", "ALLOW_HTTP": "true", "REGION": "x"}
    for name, value in settings.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    return served


def in_memory(path: Path) -> str:
    """Copy a store into fsspec's memory."""
    memory, address = fsspec.filesystem("memory"), "/bucket/demo.zarr"
    if memory.exists(address):  # one for the whole process
        memory.rm(address, recursive=True)
    memory.put(str(path), address, recursive=True)
    return f"memory:/{address}"


@pytest.mark.parametrize("kind", ["http", "memory", "s3"])
def test_a_remote_store_reads_as_a_local_one(
    make_store: Callable[..., DemonstrationStore],
    tmp_path: Path,
    object_store: str,
    kind: str,
) -> None:
    local = make_store([5, 9, 4], WITH_IMAGES, name="bucket/demo.zarr")
    address = {"http": f"{object_store}/bucket/demo.zarr", "s3": "s3://bucket/demo.zarr"}.get(kind)
    remote = open_store(address or in_memory(tmp_path / "bucket/demo.zarr"))
    assert remote.episode_lengths.tolist() == [5, 9, 4]
    np.testing.assert_array_equal(remote.vectors()[ACTION], local.vectors()[ACTION])
    steps = np.array([17, 3, 3, 0, 11])
    np.testing.assert_array_equal(remote.frames(CAMERA, steps), local.frames(CAMERA, steps))
    batches = [Windows(s, WindowSpec(), image_keys=[CAMERA]).batch(steps) for s in (remote, local)]
    assert (batches[0].observation.images[CAMERA] == batches[1].observation.images[CAMERA]).all()


@pytest.mark.parametrize("kind", ["http", "s3"])
def test_loader_processes_make_connections_of_their_own(
    make_store: Callable[..., DemonstrationStore], object_store: str, kind: str
) -> None:
    local = make_store([5, 9, 4], WITH_IMAGES, name="bucket/demo.zarr")
    remote = open_store({"http": f"{object_store}/bucket/demo.zarr", "s3": "s3://bucket/demo.zarr"}[kind])
    windows = [Windows(s, WindowSpec(), image_keys=[CAMERA]) for s in (remote, local)]
    windows[0].batch(np.arange(4))  # has connections
    sampler = BatchSampler(len(windows[0]), 4, seed=0)
    with closing(BatchLoader(windows[0], sampler, workers=1)) as loader:
        assert loader.start == "spawn"
        for step in range(3):
            images = windows[1].batch(sampler.indices(step)).observation.images[CAMERA]
            assert (loader(step).observation.images[CAMERA] == images).all()


def test_a_lost_remote_file_is_named(
    make_store: Callable[..., DemonstrationStore], tmp_path: Path, served: str
) -> None:
    pytest.importorskip("aiohttp")
    make_store([5, 9, 4], WITH_IMAGES)
    (tmp_path / "demo.zarr/data/action/c/0/0").unlink()
    with pytest.raises(DataError, match=rf"lacks its chunk file {served}/demo.zarr/data/action/c/0/0"):
        open_store(f"{served}/demo.zarr")


def test_nothing_at_the_address(served: str) -> None:
    pytest.importorskip("aiohttp")
    with pytest.raises(DataError, match=rf"no demonstration store at {served}/nothing.zarr"):
        open_store(f"{served}/nothing.zarr")


def test_unknown_kinds_of_address() -> None:
    with pytest.raises(ConfigError, match=r"gopher://.* cannot be opened: Protocol not known"):
        open_store("gopher://bucket/demo.zarr")
