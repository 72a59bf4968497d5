"""A hub on this machine: the few answers that the real client asks for, from an unreliable server."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import unquote, urlparse

REVISION = "f" * 40


@dataclass
class Site:
    """What is served, and how badly.

    Attributes:
        files: By path; for the hub, paths in the repository.
        repo: Name of the hub's repository.
        replaced: What is sent instead of a file whose description is that of `files`.
        cut_after: Bytes after which the next answers with a file break off.
        ranges: Whether parts of files are sent.
        log: Requests so far.
    """

    files: dict[str, bytes]
    repo: str = "someone/demos"
    replaced: dict[str, bytes] = field(default_factory=dict)
    cut_after: dict[str, list[int]] = field(default_factory=dict)
    ranges: bool = True
    log: list[tuple[str, str, str]] = field(default_factory=list)
    url: str = ""

    def describe(self, name: str) -> dict[str, Any]:
        """What the hub says of a file; those that end in .hdf5 are large ones."""
        data = self.files[name]
        entry: dict[str, Any] = {
            "rfilename": name,
            "size": len(data),
            "blobId": hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest(),
        }
        if name.endswith(".hdf5"):
            entry["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
        return entry

    def info(self) -> dict[str, Any]:
        """What the hub says of the repository."""
        return {
            "id": self.repo,
            "sha": REVISION,
            "siblings": [self.describe(name) for name in sorted(self.files)],
        }


@contextmanager
def served(site: Site) -> Iterator[Site]:
    """Serve a site on a free port."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, body: bool) -> None:
            path = unquote(urlparse(self.path).path)
            site.log.append((self.command, path, self.headers.get("Range", "")))
            api = f"/api/datasets/{site.repo}/revision/"
            tree = f"/api/datasets/{site.repo}/tree/"
            resolve = f"/datasets/{site.repo}/resolve/"
            if path.startswith(api):
                self._send(json.dumps(site.info()).encode(), {"Content-Type": "application/json"}, body)
            elif path.startswith(tree):
                listing = [
                    {"type": "file", "path": d["rfilename"], "size": d["size"], "oid": d["blobId"]}
                    | (
                        {"lfs": {"oid": d["lfs"]["sha256"], "size": d["size"], "pointerSize": 130}}
                        if "lfs" in d
                        else {}
                    )
                    for d in site.info()["siblings"]
                ]
                self._send(json.dumps(listing).encode(), {"Content-Type": "application/json"}, body)
            elif path.startswith(resolve):
                name = str(PurePosixPath(*PurePosixPath(path.removeprefix(resolve)).parts[1:]))
                about = site.describe(name)
                etag = about["lfs"]["sha256"] if "lfs" in about else about["blobId"]
                self._file(name, {"ETag": f'"{etag}"', "X-Repo-Commit": REVISION}, body)
            elif path[1:] in site.files:
                self._file(path[1:], {}, body)
            else:
                self.send_error(404)

        def _file(self, name: str, headers: dict[str, str], body: bool) -> None:
            data = site.replaced.get(name, site.files[name])
            wanted = self.headers.get("Range", "")
            if wanted and site.ranges:
                start = int(wanted.removeprefix("bytes=").split("-")[0])
                if start >= len(data):
                    self.send_error(416)
                    return
                headers = headers | {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}
                self._send(data[start:], headers, body, 206, site.cut_after.get(name, ()))
            else:
                self._send(data, headers, body, 200, site.cut_after.get(name, ()))

        def _send(
            self,
            data: bytes,
            headers: dict[str, str],
            body: bool,
            status: int = 200,
            cuts: Sequence[int] = (),
        ) -> None:
            self.send_response(status)
            for name, value in {
                "Content-Length": str(len(data)),
                "Accept-Ranges": "bytes",
                **headers,
            }.items():
                self.send_header(name, value)
            self.end_headers()
            if body:
                cut = cuts.pop(0) if isinstance(cuts, list) and cuts else None
                self.wfile.write(data[:cut])
                self.close_connection = cut is not None

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    site.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield site
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
