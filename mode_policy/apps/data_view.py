"""``mode-data view``."""

from __future__ import annotations

import argparse
from typing import Any

from mode_datasets import open_store
from mode_policy.apps.cli import console
from mode_policy.apps.data_stores import add_command, add_task, layout_of


def add(commands: Any) -> None:
    """Add the command."""
    view = add_command(
        commands,
        "view",
        _view,
        "show an episode in Rerun, or write it as a picture or a video",
        "mode-data view week.zarr 12",
        "mode-data view week.zarr 12 --sheet episode.png --video episode.mp4",
        "mode-data view week.zarr 12 --save episode.rrd",
    )
    view.add_argument("path", metavar="STORE")
    view.add_argument("episode", type=int, metavar="EPISODE", help="its number, from 0")
    view.add_argument(
        "--sheet", metavar="FILE", help="write frames and curves as a picture (.png, .svg, .pdf)"
    )
    view.add_argument("--video", metavar="FILE", help="write all cameras side by side as .mp4 or .gif")
    view.add_argument("--save", metavar="FILE", help="write a recording for Rerun (.rrd)")
    add_task(view)


def _view(arguments: argparse.Namespace) -> None:
    from mode_datasets import viewing

    # Leniently: what is damaged elsewhere must not keep one from looking.
    store = open_store(arguments.path, layout_of(arguments.path, arguments), lenient=True)
    if arguments.sheet:
        viewing.write_sheet(store, arguments.episode, arguments.sheet)
    if arguments.video:
        viewing.write_episode_video(store, arguments.episode, arguments.video)
    if arguments.save or not (arguments.sheet or arguments.video):
        viewing.show_in_rerun(store, arguments.episode, arguments.save)
    for written in filter(None, (arguments.sheet, arguments.video, arguments.save)):
        console.print(f"written    {written}")
