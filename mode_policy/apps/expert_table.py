"""``mode-data expert-table``: how often LIBERO's scripted experts succeed, task by task."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from mode_envs.libero_tasks import LIBERO_SUITES
from mode_policy.apps.cli import console
from mode_policy.apps.data_stores import add_command
from mode_policy.errors import ConfigError, DataError, SimulatorError, did_you_mean
from mode_policy.files import explain_failed_write, write_text

_TIMEOUT = 1800.0  # seconds; an episode takes one or two, but the machine may be busy
_GOOD = 0.9
_REASONS = 3  # of a task's failures that the table has room for
_SEED = 0

Key = tuple[str, str, int]
"""Suite, task and initial state."""
Rows = Sequence[tuple[Key, dict[str, Any]]]
"""Episodes with their outcomes."""


def add(commands: Any) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "expert-table",
        _run,
        "measure LIBERO's scripted experts from its published initial states",
        "mode-data expert-table --states 10 --workers 8 --markdown table.md",
        "mode-data expert-table --suite spatial --suite goal --tasks 0,4 --states 2",
    )
    parser.add_argument(
        "--suite", action="append", choices=list(LIBERO_SUITES), help="may be repeated; all without it"
    )
    parser.add_argument("--tasks", default="", metavar="I,J", help="numbers within the suites, or names")
    parser.add_argument("--states", type=int, default=10, metavar="N", help="initial states 0 to N-1 (10)")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="processes (1)")
    parser.add_argument(
        "--results",
        type=Path,
        default=Path("runs/expert_table.jsonl"),
        metavar="FILE",
        help="an episode a line, written at once; what it holds is not run again (runs/expert_table.jsonl)",
    )
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table there, too")


def _run(arguments: argparse.Namespace) -> None:
    if arguments.states < 1 or arguments.workers < 1:
        raise ConfigError(
            f"--states {arguments.states} --workers {arguments.workers}: both must be at least 1"
        )
    wanted = list(_wanted(arguments.suite or list(LIBERO_SUITES), arguments.tasks, arguments.states))
    done = read_results(arguments.results)
    missing = [key for key in wanted if key not in done]
    console.print(f"{len(wanted) - len(missing)} episodes are in {arguments.results}, {len(missing)} to run")
    for key, row in _episodes(missing, arguments.workers):
        if isinstance(row, str):
            console.print(f"{key[0]} {key[1]} {key[2]}: {row}", markup=False, style="red")
            continue
        append_result(arguments.results, key, row)
        done[key] = row
        answer = "solved" if row["success"] else "failed"
        why = f" ({'; '.join(row['events'])})" if row["events"] and not row["success"] else ""
        console.print(f"{key[0]} {key[1]} {key[2]}: {answer} in {row['steps']} steps{why}", markup=False)
    rows = [(key, done[key]) for key in wanted if key in done]
    console.print(_table(rows))
    if arguments.markdown:
        write_text(arguments.markdown, markdown(rows))
    if len(rows) < len(wanted):
        raise SimulatorError(f"{len(wanted) - len(rows)} episodes could not be run; run the command again")


def _wanted(suites: Sequence[str], tasks: str, states: int) -> Iterator[Key]:
    chosen = [name.strip() for name in tasks.split(",") if name.strip()]
    every = [name for suite in suites for name in LIBERO_SUITES[suite].tasks]
    if unknown := [name for name in chosen if not name.isdigit() and name not in every]:
        raise ConfigError(f"unknown LIBERO task {unknown[0]!r}.{did_you_mean(unknown[0], every)}")
    for suite in suites:
        for number, task in enumerate(LIBERO_SUITES[suite].tasks):
            if not chosen or str(number) in chosen or task in chosen:
                yield from ((suite, task, state) for state in range(states))


def _episodes(keys: Sequence[Key], processes: int) -> Iterator[tuple[Key, dict[str, Any] | str]]:
    """Run episodes in processes that each do one task after another; yield outcomes, or why there is none."""
    from mode_envs.libero_trials import Trial
    from mode_envs.worker import Worker, WorkerDiedError

    tasks: dict[tuple[str, str], list[Key]] = defaultdict(list)
    for key in keys:
        tasks[key[:2]].append(key)
    queue = list(tasks.values())[::-1]
    workers = [Worker("mode_envs.libero_trials:Trials") for _ in range(min(processes, len(queue)))]
    left: dict[Any, tuple[Worker, list[Key]]] = {}

    def start(worker: Worker, own: list[Key]) -> None:
        if own := own or (queue.pop() if queue else []):
            suite, task, state = own[0]
            with contextlib.suppress(WorkerDiedError):  # `receive` says so, too
                worker.send(Trial(suite=suite, task=task, state=state, seed=_SEED))
            left[worker.connection] = (worker, own)

    try:
        for worker in workers:
            start(worker, [])
        while left:
            for connection in wait(list(left)):
                worker, own = left.pop(connection)
                try:
                    yield own[0], dataclasses.asdict(worker.receive(_TIMEOUT))
                except (SimulatorError, WorkerDiedError) as error:
                    yield own[0], str(error)
                    worker.close()
                    workers.remove(worker)
                    workers.append(worker := Worker("mode_envs.libero_trials:Trials"))
                start(worker, own[1:])
    finally:
        for worker in workers:
            worker.close()


def read_results(path: Path) -> dict[Key, dict[str, Any]]:
    """Return the episodes in a file of results; a last line that was cut off does not count.

    Raises:
        DataError: if another line is damaged.
    """
    lines = path.read_text().split("\n") if path.exists() else [""]
    found: dict[Key, dict[str, Any]] = {}
    for number, line in enumerate(lines[:-1], 1):  # a whole line ends in a newline
        try:
            row = json.loads(line)
            key = (str(row.pop("suite")), str(row.pop("task")), int(row.pop("state")))
        except (ValueError, KeyError, AttributeError) as error:
            raise DataError(
                f"line {number} of {path} is no result ({error}); remove it, or choose another file"
            ) from error
        found[key] = row
    return found


def append_result(path: Path, key: Key, row: Mapping[str, Any]) -> None:
    """Add an episode to a file of results, after a line that was cut off if there is one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps({"suite": key[0], "task": key[1], "state": key[2], **row}) + "\n"
    with explain_failed_write(path), path.open("a+b") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        whole = file.read().rfind(b"\n") + 1
        if whole < size:
            file.truncate(whole)
        file.write(line.encode())
        file.flush()
        os.fsync(file.fileno())


def _per_task(rows: Rows) -> dict[tuple[str, str], list[dict[str, Any]]]:
    tasks: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for (suite, task, _), row in rows:
        tasks[suite, task].append(row)
    return tasks


def _solved(episodes: Sequence[Mapping[str, Any]]) -> int:
    return sum(row["success"] for row in episodes)


_HEADINGS = (
    "suite",
    "tasks",
    "at 90 % or more",
    "episodes solved",
    "mean steps",
    "steps",
    "speed, m/s",
    "peak, m/s",
    "jerk, m/s³",
)


def _suites(rows: Rows) -> Iterator[tuple[str, ...]]:
    """Yield what `_HEADINGS` name for each suite.

    The last four are medians over solved episodes, and between which values nine of ten are.
    """
    tasks = _per_task(rows)
    for suite in dict.fromkeys(suite for suite, _ in tasks):
        own = [episodes for (name, _), episodes in tasks.items() if name == suite]
        every = [row for episodes in own for row in episodes]
        good = sum(_solved(episodes) >= _GOOD * len(episodes) for episodes in own)
        solved = [row for row in every if row["success"]]

        def spread(name: str, digits: int, solved: Sequence[Mapping[str, Any]] = solved) -> str:
            if not solved:
                return "-"
            low, middle, high = np.quantile([row[name] for row in solved], [0.05, 0.5, 0.95])
            return f"{middle:.{digits}f} ({low:.{digits}f}–{high:.{digits}f})"

        yield (
            suite,
            str(len(own)),
            str(good),
            f"{len(solved)} of {len(every)}",
            f"{statistics.mean(row['steps'] for row in solved):.0f}" if solved else "-",
            spread("steps", 0),
            spread("mean_speed", 2),
            spread("peak_speed", 2),
            spread("jerk", 1),
        )


def _table(rows: Rows) -> Table:
    table = Table(*_HEADINGS)
    for row in _suites(rows):
        table.add_row(*row)
    return table


def markdown(rows: Rows) -> str:
    """Return two tables as Markdown: a row a suite, and a row a task with why episodes failed."""
    text = [_line(_HEADINGS), "|---" * len(_HEADINGS) + "|", *map(_line, _suites(rows)), ""]
    text += ["| suite | task | solved | steps | what went wrong last where it was not |", "|---" * 5 + "|"]
    for (suite, task), episodes in _per_task(rows).items():
        steps = [row["steps"] for row in episodes if row["success"]]
        failed = [row["events"][-1] if row["events"] else "time" for row in episodes if not row["success"]]
        reasons = sorted(set(failed), key=lambda reason: (-failed.count(reason), reason))[:_REASONS]
        text.append(
            _line(
                (
                    suite,
                    f"`{task}`",
                    f"{len(steps)}/{len(episodes)}",
                    f"{statistics.median(steps):.0f}" if steps else "-",
                    "; ".join(f"{reason} ({failed.count(reason)})" for reason in reasons),
                )
            )
        )
    return "\n".join(text) + "\n"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
