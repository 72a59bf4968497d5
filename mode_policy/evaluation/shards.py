"""Evaluations that several machines make together: what each does, and how the parts become one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mode_policy.evaluation.records import ResultsError
from mode_policy.evaluation.results import Evaluation
from mode_policy.types import Task

FILE = "evaluation.json"


def parse_shard(text: str) -> tuple[int, int]:
    """Return number and count of a shard such as ``"0/4"``.

    Raises:
        ValueError: if it is none.
    """
    number, slash, count = text.partition("/")
    if not slash or not number.isdecimal() or not count.isdecimal() or not int(number) < int(count):
        raise ValueError(f"shard={text!r}; write shard=0/4 to shard=3/4 on four machines")
    return int(number), int(count)


def shard_folder(number: int, count: int) -> str:
    """Return the name of a shard's folder within that of the evaluation."""
    return f"shard_{number}_of_{count}"


def read_shards(folder: Path) -> dict[Path, Evaluation]:
    """Read all shards of an evaluation.

    Raises:
        ResultsError: if there are none, some are missing, or they are of different evaluations.
    """
    found = {path.parent: Evaluation.read(path) for path in sorted(folder.glob(f"shard_*_of_*/{FILE}"))}
    if not found:
        raise ResultsError(
            f"no shards in {folder}; it should hold {shard_folder(0, 4)}/{FILE} and so on, as evaluate.py "
            "with shard=0/4 writes them"
        )
    places = {path: parse_shard(str(one.settings.get("shard"))) for path, one in found.items()}
    counts = {count for _, count in places.values()}
    identities = {one.settings.get("identity") for one in found.values()}
    if len(counts) > 1 or len(identities) > 1:
        shown = ", ".join(f"{path.name} of {one.settings.get('identity')}" for path, one in found.items())
        raise ResultsError(f"the shards in {folder} are of different evaluations: {shown}")
    (count,) = counts
    if missing := sorted(set(range(count)) - {number for number, _ in places.values()}):
        raise ResultsError(
            f"{folder} lacks {', '.join(shard_folder(i, count) for i in missing)}; run evaluate.py with "
            f"shard={missing[0]}/{count} and the other settings unchanged, or bring its folder here"
        )
    return found


def merge(shards: Mapping[Path, Evaluation], folder: Path) -> Evaluation:
    """Return the evaluation that shards make together; videos stay where they are."""
    first = next(iter(shards.values()))
    tasks = {t.name: Task(name=t.name, instruction=t.instruction) for s in shards.values() for t in s.tasks}
    records = [
        replace(e, video=e.video and str((path / e.video).relative_to(folder)))
        for path, shard in shards.items()
        for e in shard.episodes
    ]
    kept = {name: value for name, value in first.settings.items() if name not in ("shard", "command")}
    settings: dict[str, Any] = kept | {
        "commands": {path.name: shard.settings.get("command") for path, shard in shards.items()},
        "devices": {path.name: shard.settings.get("device") for path, shard in shards.items()},
    }
    return Evaluation.from_records(records, list(tasks.values()), settings, first.suites)
