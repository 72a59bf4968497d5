"""The monitor's web server: the page, its data, and the stop button; for this machine alone."""

from __future__ import annotations

import json
import sys
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from mode_policy.deploy.monitor.page import PAGE, SCRIPT, STYLE
from mode_policy.deploy.monitor.state import Watched
from mode_policy.errors import ConfigError

#: A page from elsewhere cannot set this header without our consent, so it cannot press the button.
BUTTON = "X-Mode-Monitor"
FILES = {
    "/": ("text/html", PAGE),
    "/monitor.js": ("text/javascript", SCRIPT),
    "/monitor.css": ("text/css", STYLE),
}


class MonitorServer:
    """Serves the page at ``http://127.0.0.1:<port>``; use it as a context manager or call `run`.

    Args:
        watched: the loop to show.
        port: 0 for any free one.

    Raises:
        ConfigError: if the port is taken.
    """

    def __init__(self, watched: Watched, port: int = 8600) -> None:
        handler = type("Handler", (_Handler,), {"watched": watched, "lock": threading.Lock()})
        try:
            self._server = _Server(("127.0.0.1", port), handler)
        except OSError as error:
            raise ConfigError(f"cannot listen at port {port}: {error}; choose another with --port") from error
        self._server.daemon_threads = True
        self.port: int = self._server.server_address[1]
        self.address = f"http://127.0.0.1:{self.port}"

    def run(self) -> None:
        """Serve until interrupted."""
        self._server.serve_forever(poll_interval=0.2)

    def __enter__(self) -> MonitorServer:
        threading.Thread(target=self.run, name="monitor", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of pages that were closed in the middle of an answer."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: ThreadingHTTPServer
    watched: Watched
    lock: threading.Lock
    protocol_version = "HTTP/1.1"
    timeout = 30

    def do_GET(self) -> None:
        """Answer with a file of the page, the state, or a picture."""
        if not self._is_local():
            return
        url = urlsplit(self.path)
        if url.path in FILES:
            kind, text = FILES[url.path]
            self._reply(HTTPStatus.OK, text.encode(), f"{kind}; charset=utf-8")
        elif url.path == "/state":
            query = parse_qs(url.query)
            with self.lock:
                state = self.watched.state(_number(query, "since"), _number(query, "chunks"))
            self._reply(HTTPStatus.OK, json.dumps(state).encode(), "application/json")
        elif url.path.startswith("/camera/"):
            self._picture(unquote(url.path.removeprefix("/camera/")))
        else:
            self._reply(HTTPStatus.NOT_FOUND, b"there is no such page\n")

    def do_POST(self) -> None:
        """Stop the robot."""
        if not self._is_local():
            return
        if self.path != "/stop" or self.headers.get(BUTTON) != "stop":
            self._reply(HTTPStatus.FORBIDDEN, b"only the page's own button stops the robot\n")
            return
        telemetry = self.watched.telemetry
        if telemetry is None:
            self._reply(HTTPStatus.CONFLICT, b"no control loop runs\n")
            return
        telemetry.request_stop()
        self._reply(HTTPStatus.OK, b"stopping\n")

    def _picture(self, name: str) -> None:
        telemetry = self.watched.telemetry
        known = telemetry is not None and name in telemetry.header["cameras"]
        picture = telemetry.picture(name) if telemetry is not None and known else None
        if picture is None:
            self._reply(HTTPStatus.NOT_FOUND, b"no picture\n")
            return
        shape = "x".join(str(n) for n in picture.shape)
        self._reply(HTTPStatus.OK, picture.tobytes(), "application/octet-stream", {"X-Shape": shape})

    def _is_local(self) -> bool:
        """Refuse names that only resolve to this machine: a foreign page may have made its own do that."""
        host = self.headers.get("Host") or ""
        if host.removesuffix(f":{self.server.server_port}") in ("127.0.0.1", "localhost"):
            return True
        self._reply(HTTPStatus.FORBIDDEN, b"the monitor is at 127.0.0.1\n")
        return False

    def _reply(
        self,
        status: HTTPStatus,
        body: bytes,
        kind: str = "text/plain",
        headers: dict[str, str] | None = None,
    ) -> None:
        self.send_response(status)
        fixed = {
            "Content-Type": kind,
            "Content-Length": str(len(body)),
            "Cache-Control": "no-store",
            "Content-Security-Policy": "default-src 'self'; frame-ancestors 'none'",
            "X-Content-Type-Options": "nosniff",
        }
        for name, value in {**fixed, **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: a page asks ten times a second."""


def _number(query: dict[str, list[str]], name: str) -> int:
    value = query.get(name, ["0"])[0]
    return int(value) if value.lstrip("-").isdecimal() and len(value) < 16 else 0
