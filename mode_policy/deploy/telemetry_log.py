"""The log of a run: a process that copies telemetry from memory into a Parquet file.

``python -m mode_policy.deploy.telemetry_log MEMORY LOG``. The control loop never touches a disk; if the
disk is full, the log ends, says so in the control block, and the robot goes on. If the loop dies, what it
did until then is still written. Columns are the fields of `mode_policy.deploy.telemetry.tick_dtype`; the
header is in the file's metadata under ``mode_policy``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from mode_policy.deploy.telemetry import Telemetry
from mode_policy.errors import ConfigError, ModePolicyError
from mode_policy.files import replacing

POLL = 0.2
ROWS = 2000
WRITING, COMPLETE, FAILED = 1, 2, 3


class LogProcess:
    """Writes the telemetry of this process to a file until it is finished.

    Args:
        telemetry: shared rings.
        path: of the Parquet file; appears when the run is over.

    Raises:
        ConfigError: if pyarrow is not installed, or the file cannot be begun.
    """

    def __init__(self, telemetry: Telemetry, path: Path) -> None:
        import importlib.util

        if importlib.util.find_spec("pyarrow") is None:
            raise ConfigError("a log needs pyarrow: pip install 'mode-policy[control]', or use log=null")
        assert telemetry.path is not None
        self.path = path
        self._telemetry = telemetry
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "mode_policy.deploy.telemetry_log", str(telemetry.path), str(path)],
            stdin=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(p or "." for p in sys.path)},
            start_new_session=True,  # Ctrl-C ends the loop; the log then still has to be completed
        )
        deadline = time.monotonic() + 30
        while not self.status and self._process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        if self.status == FAILED:
            raise ConfigError(f"a log at {path} cannot be begun: {self.message}")

    @property
    def status(self) -> int:
        """0 before it began, then one of ``WRITING``, ``COMPLETE``, ``FAILED``."""
        return int(self._telemetry.control["log"][0])

    @property
    def message(self) -> str:
        """Why it failed, or ""."""
        return bytes(self._telemetry.control["message"][0]).decode(errors="replace")

    def close(self) -> bool:
        """Wait until a finished run is written; return whether the log is complete."""
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        return self.status == COMPLETE


def table(rows: np.ndarray, header: dict[str, Any]) -> Any:
    """Return tick records as a ``pyarrow.Table``."""
    import pyarrow as pa

    columns: dict[str, Any] = {}
    for name in rows.dtype.names or ():
        values = np.ascontiguousarray(rows[name])
        if values.ndim == 1:
            columns[name] = pa.array(values)
        else:
            columns[name] = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])
    made = pa.table(columns)
    return made.replace_schema_metadata({"mode_policy": json.dumps(header)})


def write(telemetry: Telemetry, path: Path) -> None:
    """Copy records to ``path`` until the run is finished or its process has died.

    Raises:
        ModePolicyError: if the disk is full.
    """
    import pyarrow.parquet as pq

    with replacing(path) as partial:
        empty = table(telemetry.ticks[:0], telemetry.header)
        done, waiting = 0, []
        with pq.ParquetWriter(partial, empty.schema) as writer:
            telemetry.control["log"] = WRITING
            over = False
            while not over:
                over = bool(telemetry.control["finished"][0]) or orphaned(telemetry)
                rows, done = telemetry.since(done)
                waiting.append(rows)
                if over or sum(map(len, waiting)) >= ROWS:
                    writer.write_table(table(np.concatenate(waiting), telemetry.header))
                    waiting = []
                if not over:
                    time.sleep(POLL)


def orphaned(telemetry: Telemetry) -> bool:
    """Whether the loop, which started this process, has died."""
    return os.getppid() != telemetry.header["pid"]


def main() -> None:
    """Write a log until its run is over."""
    telemetry = Telemetry.attach(Path(sys.argv[1]))
    try:
        write(telemetry, Path(sys.argv[2]))
    except (ModePolicyError, OSError) as error:
        telemetry.control["message"] = str(error).encode()[:400]
        telemetry.control["log"] = FAILED
        raise SystemExit(1) from None
    finally:
        if telemetry.path is not None and orphaned(telemetry):
            telemetry.path.unlink(missing_ok=True)  # its owner could not
    telemetry.control["log"] = COMPLETE


if __name__ == "__main__":
    main()
