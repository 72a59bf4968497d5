"""``mode-data collect``, ``list`` and ``info``, and what all commands share."""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from mode_datasets import ReplayBufferLayout, describe, disk_usage, find_stores, open_store, reading
from mode_datasets.location import locate
from mode_policy.apps.cli import compose, console, quote_path, to_plain
from mode_policy.apps.config import DatasetConfig, TaskConfig
from mode_policy.config import build
from mode_policy.errors import ConfigError, DataError
from mode_policy.types import IMAGE_PREFIX, Feature


def add(commands: Any) -> None:
    """Add the commands."""
    collect = add_command(
        commands,
        "collect",
        _collect,
        "let scripted experts demonstrate a task",
        "mode-data collect metaworld_mt10 episodes=50 noise=0.2 path=datasets/store/mine.zarr",
        "mode-data collect libero_object episodes=50 cameras=agentview,eye_in_hand size=128",
        "mode-data collect libero_goal task.tasks=turn_on_the_stove,put_the_bowl_on_the_plate --hdf5 both/",
    )
    collect.add_argument("task", help="a task of conf/task, e.g. metaworld_mt10")
    collect.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="episodes, cameras (none for no pictures), size, noise, seed, path; and task.tasks",
    )
    collect.add_argument(
        "--hdf5", type=Path, metavar="FOLDER", help="also write them as LIBERO's authors do, a file a task"
    )
    listing = add_command(
        commands, "list", _list, "list the stores below a folder", "mode-data list datasets/store"
    )
    listing.add_argument(
        "folder", nargs="?", default=os.environ.get("MODE_DATA_DIR", "datasets/store"), type=Path
    )
    info = add_command(
        commands,
        "info",
        _info,
        "features, tasks, lengths, statistics and origin of a store",
        "mode-data info pusht_cchi_v7_replay.zarr --task pusht",
    )
    info.add_argument("path", help="folder or address (s3://…) of a store")
    add_task(info)


def add_command(commands: Any, name: str, run: Any, summary: str, *examples: str) -> argparse.ArgumentParser:
    """Add a command with its help and examples; ``run`` takes the parsed arguments."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog="examples:\n" + "\n".join(f"  {example}" for example in examples),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(run=run)
    return parser


def add_task(parser: argparse.ArgumentParser) -> None:
    """Add the options of `layout_of`, which say how to read a store of another layout."""
    parser.add_argument(
        "--task", metavar="NAME", help="read a store of another layout as this task's recipe says"
    )
    parser.add_argument(
        "--camera",
        action="append",
        default=[],
        metavar="NAME=ARRAY",
        help="with --task: read this array of images, which the recipe leaves out, as a camera",
    )


def layout_of(path: str, arguments: argparse.Namespace) -> ReplayBufferLayout | None:
    """Return how to read the store at ``path`` by the options of `add_task`; None for one of ours.

    Raises:
        ConfigError: naming what is unknown.
        DataError: if a store of another layout comes without a task, or a camera's array is not there.
    """
    if arguments.task is None:
        if arguments.camera:
            raise ConfigError("--camera adds to the recipe of a task; name it with --task")
        if (Path(path) / ".zgroup").is_file():  # zarr format 2, which is never ours
            raise DataError(
                f"{path} does not say what its arrays mean; name a task whose recipe does, e.g. --task pusht"
            )
        return None
    from mode_policy.apps.dataset import store_layout

    dataset, which, _ = recipe(arguments.task)
    layout = store_layout(dataset, which)
    for setting in arguments.camera:
        name, _, array = setting.partition("=")
        if layout is None or not name or not array:
            raise ConfigError(f"--camera {setting}: say NAME=ARRAY, of a store of another layout")
        key, location = IMAGE_PREFIX + name, locate(path)
        shape = reading.open_array(reading.open_group(location), location, f"data/{array}").shape[1:]
        layout = dataclasses.replace(
            layout,
            keys={**layout.keys, key: array},
            features={**layout.features, key: Feature(shape=shape, dtype="uint8")},
        )
    return layout


def recipe(task: str, overrides: Sequence[str] = ()) -> tuple[DatasetConfig, TaskConfig, str | None]:
    """Return the dataset, the task and the text encoder that ``conf/task/<task>.yaml`` describes.

    Args:
        task: its name.
        overrides: of the dataset, as ``key=value`` without the prefix ``dataset.``, and ``task.tasks=[…]``.
            A list may do without its brackets.

    Raises:
        ConfigError: naming what is unknown.
    """
    if bad := [o for o in overrides if "=" not in o]:
        raise ConfigError(f"cannot read {bad[0]!r}; settings look like episodes=50")
    data = to_plain(compose("train", [f"task={task}", *map(_override, overrides)]))
    language = data["policy"]["language"]
    return build(DatasetConfig, data["dataset"], "dataset"), build(TaskConfig, data["task"], "task"), language


def _collect(arguments: argparse.Namespace) -> None:
    from mode_policy.apps.collecting import check_experts
    from mode_policy.apps.dataset import env_tasks, get_store, store_path

    dataset, which, _ = recipe(arguments.task, ["source=scripted", *arguments.overrides])
    check_experts(env_tasks(which))
    if arguments.hdf5 is not None and arguments.hdf5.exists():
        raise DataError(f"{arguments.hdf5} exists; choose another name for --hdf5")
    # Who trains embeds the instructions; its text encoder may not be here.
    console.print(describe(get_store(dataset, which, language=None)))
    if arguments.hdf5 is not None:
        from mode_policy.apps.data import main

        main(["convert", store_path(dataset, which), str(arguments.hdf5), "--to", "libero"])


def _override(text: str) -> str:
    key, _, value = text.partition("=")
    if key in ("cameras", "task.tasks") and not value.startswith("["):
        value = f"[{'' if value in ('none', 'null') else value}]"
    return f"{key}={value}" if key == "task.tasks" else quote_path(f"dataset.{key}={value}")


def _list(arguments: argparse.Namespace) -> None:
    folder: Path = arguments.folder
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


def _info(arguments: argparse.Namespace) -> None:
    console.print(describe(open_store(arguments.path, layout_of(arguments.path, arguments))))
