"""What the page shows, as JSON: read from the telemetry of a loop in another process."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from mode_policy.deploy.interventions import BLIND, Intervention, names
from mode_policy.deploy.runtime import is_alive
from mode_policy.deploy.telemetry import Telemetry
from mode_policy.errors import ConfigError

#: Upper ends of the histogram of inference times, in milliseconds.
LATENCIES = (5, 10, 20, 30, 50, 75, 100, 150, 200, 300, 500, 1000)
#: Records that one answer holds at most: what a page that opens late gets to see.
LATEST = 600
#: Seconds without a tick after which the loop counts as silent.
SILENT = 1.0
#: Reasons for which a robot is not driven by the policy but held.
HELD = BLIND | Intervention.LATE | Intervention.ACTION_INVALID


class Watched:
    """The newest loop on this machine, or that of a given file; follows from one run to the next."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._telemetry: Telemetry | None = None
        self._forget()

    def _forget(self) -> None:
        self._counted = self._misses = self._skipped = self._losses = 0
        self._episode = -1
        self._totals: dict[str, int] = {}
        self._held = False

    @property
    def telemetry(self) -> Telemetry | None:
        """The loop that is watched; the last one stays until a new one begins."""
        found = self._telemetry
        if found is None or found.control["finished"][0] or not is_alive(found.header["pid"]):
            try:
                newest = Telemetry.attach(self._path)
            except ConfigError:
                return found
            if found is None or newest.path != found.path:
                self._telemetry = newest
                self._forget()
        return self._telemetry

    def state(self, since: int, chunks_since: int) -> dict[str, Any]:
        """Return what happened from record ``since`` and chunk ``chunks_since`` on."""
        telemetry = self.telemetry
        if telemetry is None:
            return {"status": "waiting"}
        self._count(telemetry)
        header, control = telemetry.header, telemetry.control
        count = int(control["ticks"][0])
        rows, after = telemetry.since(max(since, count - LATEST) if 0 <= since <= count else count - LATEST)
        made, chunks_after = telemetry.chunks_since(max(0, chunks_since))
        silent = time.monotonic() - float(control["heartbeat"][0])
        return {
            "status": self._status(telemetry, silent),
            "silent": round(silent, 2),
            "run": telemetry.header["monotonic"],
            "title": header["title"],
            "rate": header["rate"],
            "actions": header["actions"],
            "cameras": list(header["cameras"]),
            "after": after,
            "chunks_after": chunks_after,
            "ticks": [_row(row) for row in rows],
            "chunks": [_chunk(row) for row in made[-8:]],
            "count": count,
            "misses": self._misses,
            "losses": self._losses,
            "interventions": self._totals,
            "latencies": self._latencies(telemetry),
            "log": {0: "none", 1: "writing", 2: "complete", 3: "failed"}[int(control["log"][0])],
            "log_message": bytes(control["message"][0]).decode(errors="replace"),
        }

    def _count(self, telemetry: Telemetry) -> None:
        """Add what is new to the totals, which reach further back than the ring."""
        rows, self._counted = telemetry.since(self._counted)
        for bits in rows["interventions"][rows["interventions"] != 0]:
            for name in names(int(bits)):
                self._totals[name] = self._totals.get(name, 0) + 1
        if len(rows):
            self._misses += int((rows["finished"] > rows["due"] + 1 / telemetry.header["rate"]).sum())
            begins = rows["episode"] != np.append(self._episode, rows["episode"][:-1])
            before = np.where(begins, 0, np.append(self._skipped, rows["skipped"][:-1]))
            self._misses += int((rows["skipped"] - before).sum())
            self._skipped, self._losses = int(rows["skipped"][-1]), int(rows["losses"][-1])
            self._episode = int(rows["episode"][-1])
            self._held = bool(rows["interventions"][-1] & HELD)

    def _status(self, telemetry: Telemetry, silent: float) -> str:
        if telemetry.control["finished"][0]:
            return "finished"
        if not is_alive(telemetry.header["pid"]):
            return "died"
        if telemetry.stop_requested:
            return "stopping"
        if telemetry.control["resting"][0]:
            return "between episodes"
        if not telemetry.control["ticks"][0]:
            return "starting"
        if silent > SILENT:
            return "silent"
        return "holding" if self._held else "running"

    def _latencies(self, telemetry: Telemetry) -> dict[str, Any]:
        rows, _ = telemetry.since(0)
        new = rows["chunk"][1:] != rows["chunk"][:-1]
        ms = 1e3 * rows["inference"][1:][new & (rows["chunk"][1:] >= 0)]
        counts, _ = np.histogram(ms, bins=(0, *LATENCIES, np.inf))
        return {"bounds": list(LATENCIES), "counts": counts.tolist()}


def _row(row: np.void) -> dict[str, Any]:
    return {
        "tick": int(row["tick"]),
        "episode": int(row["episode"]),
        "late": round(1e3 * float(row["started"] - row["due"]), 3),
        "busy": round(1e3 * float(row["finished"] - row["started"]), 3),
        "age": round(1e3 * float(row["started"] - row["observed"]), 2),
        "delay": int(row["delay"]),
        "index": int(row["index"]),
        "interventions": list(names(int(row["interventions"]))),
        "proposal": _finite(row["proposal"]),
        "action": _finite(row["action"]),
    }


def _chunk(row: np.void) -> dict[str, Any]:
    return {
        "episode": int(row["episode"]),
        "start": int(row["start"]),
        "fixed": int(row["fixed"]),
        "actions": _finite(row["actions"]),
    }


def _finite(values: np.ndarray) -> Any:
    """Nested lists with null for what JSON has no number for."""
    rounded = np.round(values.astype(float), 5)
    plain = rounded.astype(object)
    plain[~np.isfinite(rounded)] = None
    return plain.tolist()
