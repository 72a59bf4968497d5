"""Telemetry: what every tick did, in memory that other processes read while the loop runs.

One file in shared memory holds fixed-size rings: ticks, chunks, and the newest picture of each camera. The
loop writes to it and to nothing else, so neither a slow disk nor a hanging browser can delay it; the log
(`mode_policy.deploy.telemetry_log`) and the monitor (`mode_policy.deploy.monitor`) are processes that
read::

    header (JSON)  │  control block  │  ring of ticks  │  ring of chunks  │  picture of each camera

There is one writer and no lock: a reader copies a record and then looks whether it was overwritten
meanwhile. The control block also carries one thing the other way: the request to stop.
"""

from __future__ import annotations

import json
import mmap
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mode_policy.deploy import runtime
from mode_policy.errors import ConfigError

HEADER = 16384
TICKS = 2**14  # at 100 Hz, the last two and a half minutes
CHUNKS = 64
VERSION = 3
#: Pages are there from the beginning, so that the loop meets none that is not; Linux alone knows this.
PRESENT = getattr(mmap, "MAP_POPULATE", 0)

CONTROL = np.dtype(
    [
        ("ticks", "i8"),  # records written so far
        ("chunks", "i8"),
        ("heartbeat", "f8"),  # monotonic time of the last tick
        ("stop", "i8"),  # set by others: stop the robot
        ("resting", "i8"),  # whether the loop is between two runs
        ("finished", "i8"),  # set by the loop: nothing more will come
        ("log", "i8"),  # 0 no log, 1 writing, 2 complete, 3 failed
        ("message", "S400"),  # of the log
    ]
)


def tick_dtype(actions: int, states: int) -> np.dtype[Any]:
    """Return the record of a tick; times are seconds of the monotonic clock."""
    return np.dtype(
        [
            ("episode", "i4"),
            ("tick", "i8"),
            ("due", "f8"),
            ("started", "f8"),
            ("finished", "f8"),
            ("observed", "f8"),  # when the observation was captured
            ("chunk", "i8"),  # tick of the observation that the action is based on, or -1
            ("index", "i4"),  # place of the action in its chunk, or -1
            ("delay", "i4"),  # ticks that the newest chunk took
            ("inference", "f4"),  # seconds that the newest chunk took
            ("policy", "f4"),  # of them, inside the policy
            ("interventions", "u4"),  # bits of `mode_policy.deploy.interventions.Intervention`
            ("skipped", "i4"),  # ticks left out so far
            ("losses", "i4"),  # of inference, so far
            ("proposal", "f4", (actions,)),  # NaN where the policy gave none
            ("action", "f4", (actions,)),  # NaN where nothing was sent
            ("state", "f4", (states,)),
        ]
    )


def chunk_dtype(chunk: int, actions: int) -> np.dtype[Any]:
    """Return the record of a chunk."""
    return np.dtype(
        [
            ("episode", "i4"),
            ("observed", "i8"),
            ("start", "i8"),
            ("arrived", "i8"),
            ("fixed", "i4"),
            ("actions", "f4", (chunk, actions)),
        ]
    )


class Telemetry:
    """The rings. Made by the loop with `create`, read by others with `attach`.

    Attributes:
        header: what does not change during a run: names, rate, sizes, process id.
        control: the control block, a record.
        ticks: ring of tick records.
        chunks: ring of chunk records.
    """

    def __init__(self, memory: mmap.mmap, path: Path | None) -> None:
        self.path = path
        self._memory = memory
        length = int.from_bytes(memory[:4], "little")
        self.header: dict[str, Any] = json.loads(memory[4 : 4 + length])
        h = self.header
        if h["version"] != VERSION:
            raise ValueError(f"its layout is version {h['version']}, this program reads version {VERSION}")
        places = _layout(h)
        self.control = self._view(CONTROL, places["control"], 1)[0:1]
        self.ticks = self._view(tick_dtype(len(h["actions"]), len(h["states"])), places["ticks"], TICKS)
        self.chunks = self._view(chunk_dtype(h["chunk"], len(h["actions"])), places["chunks"], CHUNKS)
        self._cameras = {
            name: (
                self._view(np.dtype("i8"), place, 1),
                self._view(np.dtype("u1"), place + 64, int(np.prod(shape))),
            )
            for (name, shape), place in zip(h["cameras"].items(), places["cameras"], strict=True)
        }

    def _view(self, dtype: np.dtype[Any], offset: int, count: int) -> np.ndarray:
        return np.frombuffer(self._memory, dtype, count, offset)

    @classmethod
    def create(
        cls,
        *,
        rate: float,
        actions: Sequence[str],
        states: Sequence[str] = (),
        chunk: int = 1,
        cameras: Mapping[str, tuple[int, ...]] | None = None,
        title: str = "",
        shared: bool = True,
    ) -> Telemetry:
        """Make the rings, in a file of `runtime.folder` or, if not shared, for this process alone.

        Raises:
            ConfigError: if the names, or the rings, do not fit where they have to.
        """
        header = {
            "version": VERSION,
            "pid": os.getpid(),
            "began": time.time(),
            "monotonic": time.monotonic(),
            "rate": rate,
            "actions": list(actions),
            "states": list(states),
            "chunk": chunk,
            "cameras": {name: list(shape) for name, shape in (cameras or {}).items()},
            "title": title,
        }
        text = json.dumps(header).encode()
        if len(text) + 4 > HEADER:
            raise ConfigError(
                f"names of {len(text)} bytes do not fit into the telemetry's header of {HEADER}"
            )
        size = _layout(header)["end"]
        path = None
        if shared:
            runtime.clear_away()
            handle, name = tempfile.mkstemp(*runtime.name_parts(), runtime.folder())  # for its owner alone
            path = Path(name)
            try:
                os.posix_fallocate(handle, 0, size)  # what is missing later would kill the loop
                memory = mmap.mmap(handle, size, mmap.MAP_SHARED | PRESENT)
            except OSError as error:
                path.unlink()
                raise ConfigError(
                    f"{path.parent} has no room for {size / 1e6:.0f} MB of telemetry ({error}); free some, "
                    "or give it more, as with --shm-size where it is a container's"
                ) from error
            finally:
                os.close(handle)
        else:
            memory = mmap.mmap(-1, size, mmap.MAP_SHARED | PRESENT)
        memory[4 : 4 + len(text)] = text
        memory[:4] = len(text).to_bytes(4, "little")
        return cls(memory, path)

    @classmethod
    def attach(cls, path: Path | None = None) -> Telemetry:
        """Open the rings of a running loop: those of ``path``, or the newest.

        Raises:
            ConfigError: if there are none.
        """
        if path is None:
            found = runtime.running()
            if not found:
                raise ConfigError("no control loop runs here; start one with mode-control")
            path = max(found, key=lambda p: p.stat().st_mtime)
        try:
            with path.open("r+b") as f:
                memory = mmap.mmap(f.fileno(), 0)
            attached = cls(memory, path)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{path} holds no telemetry: {error}") from error
        return attached

    def record(self, values: tuple[Any, ...]) -> None:
        """Write the record of a tick; ``values`` in the order of `tick_dtype`."""
        n = int(self.control["ticks"][0])
        self.ticks[n % TICKS] = values
        self.control["heartbeat"] = values[4]
        self.control["ticks"] = n + 1

    def rest(self, resting: bool) -> None:
        """Tell readers whether ticks are to be expected, or the loop is between two runs."""
        self.control["resting"] = resting

    def record_chunk(
        self, episode: int, observed: int, start: int, arrived: int, fixed: int, actions: np.ndarray
    ) -> None:
        """Write the record of a chunk; actions beyond the announced length are left out."""
        n = int(self.control["chunks"][0])
        row = self.chunks[n % CHUNKS]
        row["episode"], row["observed"], row["start"] = episode, observed, start
        row["arrived"], row["fixed"] = arrived, fixed
        row["actions"] = np.nan
        kept = actions[: self.header["chunk"]]
        row["actions"][: len(kept)] = kept
        self.control["chunks"] = n + 1

    def show(self, camera: str, picture: np.ndarray) -> None:
        """Replace the picture of a camera."""
        version, pixels = self._cameras[camera]
        version += 1  # odd: being written
        pixels[:] = picture.reshape(-1)
        version += 1

    def picture(self, camera: str) -> np.ndarray | None:
        """Return the newest picture of a camera, or None before the first."""
        version, pixels = self._cameras[camera]
        for _ in range(20):
            before = int(version[0])
            if before == 0:
                return None
            copy = pixels.copy()
            if before == int(version[0]) and before % 2 == 0:
                return copy.reshape(self.header["cameras"][camera])
        return None

    def since(self, first: int) -> tuple[np.ndarray, int]:
        """Return tick records from number ``first`` on that are still there, and the next number."""
        return self._since(self.ticks, "ticks", TICKS, first)

    def chunks_since(self, first: int) -> tuple[np.ndarray, int]:
        """Return chunk records from number ``first`` on, and the next number."""
        return self._since(self.chunks, "chunks", CHUNKS, first)

    def _since(self, ring: np.ndarray, counter: str, size: int, first: int) -> tuple[np.ndarray, int]:
        end = int(self.control[counter][0])
        begin = max(first, end - size, 0)
        rows = ring[np.arange(begin, end) % size]
        # What was overwritten while it was copied; one more, which may be being written now.
        lost = int(self.control[counter][0]) + 1 - size - begin
        return rows[max(0, lost) :], end

    def request_stop(self) -> None:
        """Ask the loop to stop the robot at its next tick."""
        self.control["stop"] = 1

    @property
    def stop_requested(self) -> bool:
        """Whether somebody asked for a stop."""
        return bool(self.control["stop"][0])

    def finish(self) -> None:
        """Tell readers that nothing more will come, and take the file's name away."""
        self.control["finished"] = 1
        if self.path is not None:
            self.path.unlink(missing_ok=True)


def _layout(header: Mapping[str, Any]) -> dict[str, Any]:
    """Return the offset of each part in bytes, and the end."""
    actions, states = len(header["actions"]), len(header["states"])
    control = HEADER
    ticks = _aligned(control + CONTROL.itemsize)
    chunks = _aligned(ticks + TICKS * tick_dtype(actions, states).itemsize)
    end = _aligned(chunks + CHUNKS * chunk_dtype(header["chunk"], actions).itemsize)
    cameras = []
    for shape in header["cameras"].values():
        cameras.append(end)
        end = _aligned(end + 64 + int(np.prod(shape)))
    return {"control": control, "ticks": ticks, "chunks": chunks, "cameras": cameras, "end": end}


def _aligned(offset: int) -> int:
    return (offset + 63) // 64 * 64
