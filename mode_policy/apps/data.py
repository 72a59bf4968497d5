"""``mode-data``: collect, list and inspect demonstrations.

::

    mode-data collect metaworld_mt10 episodes=50 noise=0.2
    mode-data list [FOLDER]
    mode-data info datasets/store/metaworld_mt10.zarr
    mode-data info PATH --task pusht        a store of another layout, read as that task's recipe says
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from mode_datasets import describe, disk_usage, find_stores, open_store
from mode_policy.apps.cli import compose, console, exit_codes, to_plain
from mode_policy.apps.config import DatasetConfig, TaskConfig
from mode_policy.apps.dataset import get_store, store_layout
from mode_policy.config import build
from mode_policy.errors import ConfigError, DataError


def main(argv: Sequence[str] | None = None) -> None:
    """Run ``mode-data``."""
    parser = argparse.ArgumentParser(
        prog="mode-data", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    collect = commands.add_parser("collect", help="let scripted experts demonstrate a task")
    collect.add_argument("task", help="a task of conf/task, e.g. metaworld_mt10")
    collect.add_argument("overrides", nargs="*", metavar="key=value", help="episodes, noise, seed, path")
    listing = commands.add_parser("list", help="list the stores below a folder")
    listing.add_argument(
        "folder", nargs="?", default=os.environ.get("MODE_DATA_DIR", "datasets/store"), type=Path
    )
    info = commands.add_parser("info", help="features, tasks, lengths, statistics and origin of a store")
    info.add_argument("path", type=Path)
    info.add_argument("--task", help="read a store of another layout as this task's recipe says")
    arguments = parser.parse_args(argv)
    with exit_codes():
        if arguments.command == "collect":
            _collect(arguments.task, arguments.overrides)
        elif arguments.command == "list":
            _list(arguments.folder)
        else:
            _info(arguments.path, arguments.task)


def recipe(task: str, overrides: Sequence[str] = ()) -> tuple[DatasetConfig, TaskConfig, str | None]:
    """Return the dataset, the task and the text encoder that ``conf/task/<task>.yaml`` describes.

    Args:
        task: its name.
        overrides: of the dataset, as ``key=value`` without the prefix ``dataset.``.

    Raises:
        ConfigError: naming what is unknown.
    """
    if bad := [o for o in overrides if "=" not in o]:
        raise ConfigError(f"cannot read {bad[0]!r}; settings look like episodes=50")
    data = to_plain(compose("train", [f"task={task}", *(f"dataset.{o}" for o in overrides)]))
    language = data["policy"]["language"]
    return build(DatasetConfig, data["dataset"], "dataset"), build(TaskConfig, data["task"], "task"), language


def _collect(task: str, overrides: Sequence[str]) -> None:
    dataset, which, language = recipe(task, overrides)
    if dataset.source != "collect":
        raise ConfigError(
            f"{task!r} has no scripted experts; its demonstrations come from {dataset.url or dataset.path}"
        )
    console.print(describe(get_store(dataset, which, language)))


def _list(folder: Path) -> None:
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}; name one, or set MODE_DATA_DIR")
    table = Table("store", "demonstrations", "tasks", "steps", "size", title=str(folder))
    for path in find_stores(folder):
        name = str(path.relative_to(folder))
        size = f"{disk_usage(path) / 1e6:.1f} MB"
        try:
            store = open_store(path)
        except DataError as error:
            table.add_row(name, str(error), "", "", size)
        else:
            table.add_row(name, str(store.num_episodes), str(len(store.tasks)), str(store.num_steps), size)
    console.print(
        table
        if table.row_count
        else f"no stores below {folder}; make one with: mode-data collect metaworld_mt10"
    )


def _info(path: Path, task: str | None) -> None:
    layout = None
    if task is not None:
        dataset, which, _ = recipe(task)
        layout = store_layout(dataset, which)
    console.print(describe(open_store(path, layout)))
