"""What a conversion must remember to go on after a kill: what it reads, and which episodes it left out.

The sink knows how many episodes it holds, but not which of the source were skipped before them. One line of
JSON per skipped episode is on disk before any later episode is.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mode_policy.errors import DataError
from mode_policy.files import write_text


@dataclass(frozen=True)
class Skipped:
    """An episode that was left out, and why."""

    index: int
    name: str
    reason: str


class Journal:
    """The file ``.<name>.convert.jsonl`` beside the destination.

    Args:
        destination: Of the conversion.
        identity: What is converted and how; an interrupted conversion of something else is not continued.
    """

    def __init__(self, destination: Path, identity: dict[str, Any]) -> None:
        destination = destination.absolute()
        self.path = destination.with_name(f".{destination.name}.convert.jsonl")
        self._identity = identity
        self.skipped: dict[int, Skipped] = {}

    def begin(self, written: int) -> int:
        """Return the first episode of the source that is still to be read.

        Args:
            written: Episodes that the sink holds already.

        Raises:
            DataError: if they are of another conversion.
        """
        if not written:
            self._start([self._identity])
            return 0
        lines = self._lines()
        if not lines or lines[0] != self._identity:
            raise DataError(
                f"{self.path.parent} holds an unfinished conversion of something else, or with other "
                f"settings, to the same destination; delete {self.path.name} and its '.partial' neighbour, "
                "or choose another destination"
            )
        self._start(lines)
        for line in lines[1:]:
            self.skipped[line["index"]] = Skipped(**line)
        index = 0
        while written or index in self.skipped:
            written -= index not in self.skipped
            index += 1
        return index

    def skip(self, episode: Skipped) -> None:
        """Remember that an episode is left out."""
        self.skipped[episode.index] = episode
        with self.path.open("a") as file:
            file.write(json.dumps(vars(episode)) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def end(self) -> None:
        """Forget everything; the conversion is complete."""
        self.path.unlink(missing_ok=True)

    def _start(self, lines: list[dict[str, Any]]) -> None:
        write_text(self.path, "".join(json.dumps(line) + "\n" for line in lines))

    def _lines(self) -> list[dict[str, Any]]:
        """Read what is there; a line that a kill cut short was not followed by any episode."""
        lines = []
        try:
            for line in self.path.read_text().splitlines():
                lines.append(json.loads(line))
        except (OSError, ValueError):
            pass
        return lines
