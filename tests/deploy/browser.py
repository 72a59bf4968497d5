"""A real browser, headless, driven over its debugging protocol."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import connect


class Browser:
    """Chromium with one page."""

    def __init__(self, folder: Path, address: str) -> None:
        program = (
            shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
        )
        if program is None:
            pytest.skip("no chromium is installed: apt-get install -y chromium")
        self._process = subprocess.Popen(
            [
                program,
                "--headless=new",
                "--no-sandbox",  # tests may run as root
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--window-size=1280,1000",
                "--remote-debugging-port=0",
                f"--user-data-dir={folder}",
                address,
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        port = self._until(lambda: (folder / "DevToolsActivePort").read_text().splitlines()[0])
        pages = self._until(
            lambda: [p for p in _json(f"http://127.0.0.1:{port}/json") if p["type"] == "page"]
        )
        self._context = connect(pages[0]["webSocketDebuggerUrl"], max_size=None, compression=None)
        self._socket = self._context.__enter__()
        self._number = 0
        self.until(f"location.href.startsWith({address!r}) && document.readyState === 'complete'")

    @staticmethod
    def _until(get: Any, seconds: float = 90.0) -> Any:
        deadline = time.monotonic() + seconds
        while True:
            try:
                if found := get():
                    return found
            except (OSError, IndexError, ValueError):
                pass
            assert time.monotonic() < deadline, "the browser did not start"
            time.sleep(0.1)

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            answer = json.loads(self._socket.recv(timeout=90))
            if answer.get("id") == self._number:
                if "error" in answer:  # e.g. the page is just being replaced
                    raise ValueError(answer["error"])
                return answer["result"]

    def run(self, script: str) -> Any:
        """Evaluate a script in the page; return its value."""
        result = self._call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def until(self, script: str, seconds: float = 90.0) -> Any:
        """Wait until a script has a true value."""
        return self._until(lambda: self.run(script), seconds)

    def click(self, selector: str) -> None:
        """Click the middle of an element with the mouse."""
        box = self.run(
            f"(r => [r.x + r.width / 2, r.y + r.height / 2])"
            f"(document.querySelector('{selector}').getBoundingClientRect())"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self._call("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1)

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self._call("Page.captureScreenshot")["data"]))

    def close(self) -> None:
        self._context.__exit__(None, None, None)
        self._process.terminate()
        self._process.wait(timeout=30)


def _json(address: str) -> Any:
    with urllib.request.urlopen(address, timeout=5) as answer:
        return json.loads(answer.read())
