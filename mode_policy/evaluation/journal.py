"""Episodes of an evaluation that is under way, each on disk as soon as it has ended."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Self

from mode_policy.evaluation.records import EpisodeRecord, ResultsError

Key = tuple[str, int, int | None, int]
"""Task, seed, initial state, repeat."""


def digest(identity: Mapping[str, Any]) -> str:
    """Return a short name of everything that outcomes depend on."""
    text = json.dumps(identity, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


class Journal:
    """The records of a folder's unfinished evaluation; what is there already is read first.

    Each evaluation has a file of its own, named after all that its outcomes depend on: an interrupted one
    goes on, and never with episodes of another checkpoint or with other settings.

    Args:
        folder: Of the results.
        identity: JSON-ready: everything that outcomes depend on.

    Raises:
        ResultsError: on entering, if another process is at it, or the file was changed by hand.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self.path = folder / f".unfinished-{digest(identity)}.jsonl"
        self.films = folder / f".unfinished-{digest(identity)}.films"
        self.records: dict[Key, EpisodeRecord] = {}
        self._identity = identity
        self._file: IO[bytes] | None = None

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("ab+")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise ResultsError(
                f"another process makes this evaluation in {self.path.parent}; wait for it, or choose "
                "another output"
            ) from None
        self._file.seek(0)
        whole = 0
        for line in self._file:
            if not line.endswith(b"\n"):
                break  # the writer was killed in the middle of it
            whole += len(line)
            self._read(line)
        self._file.truncate(whole)
        if not whole:
            self._write({"identity": dict(self._identity)})
        return self

    def __exit__(self, *_: object) -> None:
        assert self._file is not None
        self._file.close()

    def append(self, record: EpisodeRecord) -> None:
        """Put a record on disk; it replaces an earlier one of the same episode."""
        self._write({"outcome": record.outcome(), "run": record.run()})
        self.records[key(record)] = record

    def remove(self) -> None:
        """Delete the file: the results are complete, and elsewhere."""
        self.path.unlink(missing_ok=True)
        if self.films.is_dir():
            for film in self.films.iterdir():
                film.unlink()
            self.films.rmdir()

    def _read(self, line: bytes) -> None:
        try:
            data = json.loads(line)
            if "identity" not in data:
                record = EpisodeRecord.from_json(data["outcome"], data["run"])
                self.records[key(record)] = record
        except (ValueError, KeyError, TypeError) as error:
            raise ResultsError(f"{self.path} is damaged ({error}); delete it to evaluate anew") from error

    def _write(self, data: Mapping[str, Any]) -> None:
        assert self._file is not None
        self._file.write(json.dumps(data, sort_keys=True, default=str).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())


def key(record: EpisodeRecord) -> Key:
    """Return what names an episode."""
    return record.task, record.seed, record.initial_state, record.repeat
