"""``mode-data check`` and ``compare``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mode_datasets import ReplayBufferLayout, open_store
from mode_datasets.check import check_store
from mode_datasets.check.table import findings_table
from mode_datasets.compare import Subject, compare, comparison_table
from mode_datasets.edit import side
from mode_policy.apps.cli import console
from mode_policy.apps.data_stores import add_command, add_task, layout_of
from mode_policy.apps.progress import bar
from mode_policy.convention import Convention, Side
from mode_policy.normalization import statistics_from_json
from mode_policy.types import Feature


def add(commands: Any) -> None:
    """Add the commands."""
    check = add_command(
        commands,
        "check",
        _check,
        "read everything in a store and report what would harm training",
        "mode-data check week.zarr --html report.html",
        "mode-data check week.zarr --json > check.json          for mode-data filter --drop, and for CI",
        "mode-data check week.zarr --strict --ignore saturation convention",
        "mode-data check pusht_cchi_v7_replay.zarr --task pusht --camera top=img",
    )
    check.add_argument("path", metavar="STORE", help="folder or address (s3://…)")
    check.add_argument("--html", metavar="FILE", help="write a page with figures and frames, too")
    check.add_argument("--json", action="store_true", help="print the report as JSON instead of a table")
    check.add_argument("--strict", action="store_true", help="exit with 2 if there are warnings")
    check.add_argument("--ignore", nargs="+", default=[], metavar="CHECK", help="checks that do not count")
    codes = "exit codes: 0 good, 1 errors were found, 2 bad input, or --strict and warnings"
    check.epilog = f"{check.epilog}\n\n{codes}"
    add_task(check)
    comparison = add_command(
        commands,
        "compare",
        _compare,
        "whether demonstrations fit a policy, an environment or other ones; exit with 1 if not",
        "mode-data compare week.zarr libero_90.zarr",
        "mode-data compare week.zarr runs/libero_90/checkpoints/last",
        "mode-data compare pusht_cchi_v7_replay.zarr mode/pusht-v0 --task pusht",
    )
    comparison.add_argument("first", metavar="DATA", help="a store")
    comparison.add_argument("second", metavar="OTHER", help="a store, a checkpoint, or an environment's id")
    add_task(comparison)


def _check(arguments: argparse.Namespace) -> int:
    layout = layout_of(arguments.path, arguments)
    with _progress(quiet=arguments.json) as progress:
        checked = check_store(arguments.path, layout, ignore=arguments.ignore, progress=progress)
    if arguments.html:
        from mode_datasets.check.page import write_page

        write_page(arguments.html, checked.report, checked.contents)
    if arguments.json:
        json.dump(checked.report.to_json(), sys.stdout, indent=1)
        print()
    else:
        console.print(findings_table(checked.report))
        if arguments.html:
            console.print(f"page       {arguments.html}")
    return checked.report.exit_code(arguments.strict)


def _compare(arguments: argparse.Namespace) -> int:
    data = _of_store(arguments.first, layout_of(arguments.first, arguments))
    rows = compare(data, _other(arguments.second))
    console.print(comparison_table(arguments.first, arguments.second, rows))
    return int(any(row.verdict == "differs" for row in rows))


def _other(name: str) -> Subject:
    if name.startswith("mode/"):
        from mode_envs import env_task
        from mode_policy.apps.dataset import environment

        return Subject(side=environment(env_task(name).env_id))
    from mode_policy.checkpoint import DESCRIPTION, read_description

    if not (Path(name) / DESCRIPTION).is_file():
        return _of_store(name, None)
    data = read_description(Path(name))
    features = {key: Feature.from_json(feature) for key, feature in data["features"].items()}
    # Checkpoints of earlier versions carry no convention.
    convention = Convention(**data.get("convention", {}))
    return Subject(
        side=Side(name=name, features=features, convention=convention),
        statistics=statistics_from_json(data["statistics"]),
    )


def _of_store(path: str, layout: ReplayBufferLayout | None) -> Subject:
    store = open_store(path, layout)
    return Subject(side=side(store, path), statistics=store.statistics)


@contextmanager
def _progress(quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    if quiet:
        yield lambda what, done, total: None
        return
    with bar("reading") as progress:
        rows: dict[str, Any] = {}

        def advance(what: str, done: int, total: int) -> None:
            if what not in rows:
                rows[what] = progress.add_task(what, total=total, note=what.removeprefix("observation."))
            progress.update(rows[what], completed=done)

        yield advance
