"""``mode-data merge``, ``append``, ``split``, ``filter``, ``stats`` and ``migrate``."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.table import Table

from mode_datasets import open_store, split_episodes
from mode_datasets.check import CHECKS, bad_episodes
from mode_datasets.check.findings import plural
from mode_datasets.edit import Selection, append_episodes, copy_episodes
from mode_datasets.schema import fingerprint
from mode_datasets.selecting import Criteria, parse_numbers, select
from mode_datasets.upkeep import (
    SETTINGS,
    migrate_store,
    renew_statistics,
    stored_statistics,
    wrong_statistics,
)
from mode_policy.apps.cli import console
from mode_policy.apps.data_stores import add_command, add_task, layout_of
from mode_policy.apps.progress import bar
from mode_policy.errors import ConfigError, DataError, did_you_mean
from mode_policy.normalization import compute_statistics


def add(commands: Any) -> None:
    """Add the commands."""
    merge = add_command(
        commands,
        "merge",
        _merge,
        "copy the episodes of several stores into a new one",
        "mode-data merge monday.zarr tuesday.zarr week.zarr",
        "mode-data merge sim.zarr real.zarr both.zarr --features observation.state action",
    )
    merge.add_argument("sources", nargs="+", metavar="SOURCE")
    merge.add_argument("out", metavar="OUT", help="folder of the new store")
    _add_copying(merge)
    _add_rename(merge)
    append = add_command(
        commands,
        "append",
        _append,
        "append episodes to a store in place, but for those that it holds already",
        "mode-data append week.zarr wednesday.zarr",
    )
    append.add_argument("path", metavar="STORE")
    append.add_argument("sources", nargs="+", metavar="SOURCE")
    _add_rename(append)
    split = add_command(
        commands,
        "split",
        _split,
        "copy the episodes of a store into two new ones, task by task",
        "mode-data split week.zarr train.zarr test.zarr --fraction 0.1",
    )
    split.add_argument("path", metavar="STORE")
    split.add_argument("first", metavar="FIRST", help="folder of the larger store")
    split.add_argument("second", metavar="SECOND", help="folder of the store that gets the fraction")
    split.add_argument("--fraction", type=float, default=0.1, help="of each task's episodes (default: 0.1)")
    split.add_argument("--seed", type=int, default=0, help="determines which (default: 0)")
    _add_copying(split)
    add_task(split)
    _add_filter(commands)
    stats = add_command(
        commands,
        "stats",
        _stats,
        "compare a store's statistics with its data; exit with 1 if they differ",
        "mode-data stats week.zarr",
        "mode-data stats week.zarr --write",
    )
    stats.add_argument("path", metavar="STORE")
    stats.add_argument("--write", action="store_true", help="compute them anew and store them")
    migrate = add_command(
        commands,
        "migrate",
        _migrate,
        "bring a store to the current schema, and state what it did not say",
        "mode-data migrate old.zarr",
        "mode-data migrate old.zarr action_kind=delta action_frame=end_effector gripper=plus_closes",
        "mode-data migrate old.zarr action_scale=0.05,0.05,0.05,0.5,0.5,0.5,1 licence=MIT",
    )
    migrate.add_argument("path", metavar="STORE")
    migrate.add_argument("settings", nargs="*", metavar="key=value", help=", ".join(SETTINGS))


def _add_filter(commands: Any) -> None:
    parser = add_command(
        commands,
        "filter",
        _filter,
        "copy the episodes that meet all conditions into a new store",
        "mode-data filter week.zarr good.zarr --min-length 20 --only-tasks push reach",
        "mode-data filter week.zarr good.zarr --drop check.json            of mode-data check --json",
        "mode-data filter week.zarr good.zarr --drop check.json --severity error warning",
        "mode-data filter week.zarr good.zarr --where 'max(observation.reward) >= 1'",
        "mode-data filter pusht_cchi_v7_replay.zarr pusht.zarr --task pusht --camera top=img",
    )
    parser.add_argument("path", metavar="STORE")
    parser.add_argument("out", metavar="OUT", help="folder of the new store")
    parser.add_argument("--only-tasks", nargs="+", default=(), metavar="TASK", help="episodes of these tasks")
    parser.add_argument("--episodes", metavar="0-9,12", help="these episodes")
    parser.add_argument("--min-length", type=int, default=0, metavar="STEPS")
    parser.add_argument("--max-length", type=int, metavar="STEPS")
    parser.add_argument("--success", action="store_true", help="successful ones, by observation.success")
    parser.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="CONDITION",
        help="min, max, mean, first or last of a dimension, e.g. 'last(observation.state[z]) > 0.1'",
    )
    parser.add_argument("--drop", metavar="REPORT", help="not those that `mode-data check --json` found bad")
    parser.add_argument(
        "--severity",
        nargs="+",
        default=["error"],
        choices=["error", "warning", "info"],
        help="of the findings that --drop counts (default: error)",
    )
    parser.add_argument(
        "--checks", nargs="+", default=[], metavar="CHECK", help="whose findings --drop counts in any case"
    )
    _add_copying(parser)
    add_task(parser)


def _add_copying(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--features", nargs="+", metavar="KEY", help="copy these features; by default all")
    parser.add_argument(
        "--profile",
        choices=["train", "archive", "jpeg"],
        help="how images are written; by default as they are",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a store that is there")


def _add_rename(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--rename-tasks",
        action="store_true",
        help="add the store's name to tasks that share a name but not the instruction",
    )


def _merge(arguments: argparse.Namespace) -> None:
    selections = [Selection.whole(open_store(path)) for path in arguments.sources]
    _copy(selections, arguments.out, arguments, rename_tasks=arguments.rename_tasks)


def _append(arguments: argparse.Namespace) -> None:
    selections = [Selection.whole(open_store(path)) for path in arguments.sources]
    with _progress("appending") as progress:
        number = append_episodes(
            arguments.path, selections, rename_tasks=arguments.rename_tasks, progress=progress
        )
    spare = sum(len(selection.episodes) for selection in selections) - number
    known = f", {spare} were there already" if spare else ""
    console.print(f"appended   {plural(number, 'episode')} to {arguments.path}{known}")


def _split(arguments: argparse.Namespace) -> None:
    store = open_store(arguments.path, layout_of(arguments.path, arguments))
    parts = split_episodes(store, arguments.fraction, arguments.seed)
    for path, episodes in zip((arguments.first, arguments.second), parts, strict=True):
        if not len(episodes):
            raise DataError(f"{path} would be empty; choose another fraction than {arguments.fraction:g}")
    for path, episodes in zip((arguments.first, arguments.second), parts, strict=True):
        _copy([Selection(store=store, episodes=episodes)], path, arguments)


def _filter(arguments: argparse.Namespace) -> None:
    store = open_store(arguments.path, layout_of(arguments.path, arguments))
    criteria = Criteria(
        tasks=arguments.only_tasks,
        episodes=None if arguments.episodes is None else parse_numbers(arguments.episodes),
        drop=[] if arguments.drop is None else _bad(arguments),
        min_length=arguments.min_length,
        max_length=arguments.max_length,
        success=arguments.success,
        where=arguments.where,
    )
    episodes = select(store, criteria)
    console.print(f"chosen     {len(episodes)} of {store.num_episodes} episodes")
    _copy([Selection(store=store, episodes=episodes)], arguments.out, arguments)


def _bad(arguments: argparse.Namespace) -> list[int]:
    for name in arguments.checks:
        if name not in CHECKS:
            raise ConfigError(f"unknown check {name!r}.{did_you_mean(name, CHECKS)}")
    file = Path(arguments.drop)
    try:
        report = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise DataError(
            f"cannot read {file} ({error}); make it with: mode-data check {arguments.path} --json > {file}"
        ) from None
    return bad_episodes(report, arguments.severity, arguments.checks)


def _stats(arguments: argparse.Namespace) -> int:
    vectors = open_store(arguments.path, check_statistics=False).vectors()
    stored, computed_from = stored_statistics(arguments.path)
    wrong = wrong_statistics(stored, compute_statistics(vectors))
    if not wrong and computed_from == fingerprint(vectors):
        console.print(f"the statistics of {arguments.path} are those of its data")
        return 0
    table = Table("feature", "statistic", "dimension", "stored", "of the data", title=str(arguments.path))
    for w in wrong:
        table.add_row(w.key, w.name, str(w.dimension), f"{w.stored:.6g}", f"{w.true:.6g}")
    console.print(table if wrong else f"the statistics of {arguments.path} were computed from other data")
    if not arguments.write:
        console.print(f"if the data are right, renew them with: mode-data stats {arguments.path} --write")
        return 1
    renew_statistics(arguments.path)
    console.print("renewed")
    return 0


def _migrate(arguments: argparse.Namespace) -> None:
    if bad := [s for s in arguments.settings if "=" not in s]:
        raise ConfigError(f"cannot read {bad[0]!r}; settings look like action_kind=delta")
    changed = migrate_store(arguments.path, dict(s.split("=", 1) for s in arguments.settings))
    for key, (old, new) in changed.items():
        console.print(
            f"{key}: {json.dumps(old)} → {json.dumps(new)}" if key != "statistics" else f"{key}: counted"
        )
    if not changed:
        console.print(f"{arguments.path} is up to date")


def _copy(
    selections: Sequence[Selection], out: str, arguments: argparse.Namespace, rename_tasks: bool = False
) -> None:
    with _progress("copying") as progress:
        copy_episodes(
            selections,
            out,
            keys=arguments.features,
            profile=arguments.profile,
            command=shlex.join(["mode-data", *sys.argv[1:]]),
            overwrite=arguments.overwrite,
            rename_tasks=rename_tasks,
            progress=progress,
        )
    store = open_store(out)
    console.print(
        f"written    {out}: {plural(store.num_episodes, 'episode')} of "
        f"{plural(len(store.tasks), 'task')}, {store.num_steps} steps"
    )


@contextmanager
def _progress(title: str) -> Iterator[Callable[[int, int], None]]:
    with bar(title, "episodes") as progress:
        row = progress.add_task(title, total=None, note="")
        yield lambda done, total: progress.update(row, completed=done, total=total)
