"""``mode-merge``: make one evaluation of the shards that several machines wrote.

::

    uv run evaluate.py checkpoint=runs/… task=libero90 shard=0/4      # and 1/4, 2/4, 3/4, each on its machine
    uv run mode-merge runs/…/evaluation_libero90

The folder holds those of the shards, ``shard_0_of_4`` and so on, brought together if the machines share none.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from mode_policy.apps.cli import console, exit_codes
from mode_policy.evaluation import Evaluation, episode_videos, write_report
from mode_policy.evaluation.shards import FILE, merge, read_shards


def main(argv: Sequence[str] | None = None) -> None:
    """Run ``mode-merge``."""
    parser = argparse.ArgumentParser(
        prog="mode-merge", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="the evaluation's folder, which holds those of its shards")
    arguments = parser.parse_args(argv)
    with exit_codes():
        evaluation = merge_folder(arguments.folder)
        console.print(evaluation.table())
        console.print(f"evaluation {arguments.folder / FILE}\nreport     {arguments.folder / 'report.html'}")
        console.print(evaluation.headline())


def merge_folder(folder: Path) -> Evaluation:
    """Write ``evaluation.json`` and ``report.html`` of all shards in a folder.

    Raises:
        ResultsError: if some are missing, or they are of different evaluations.
    """
    evaluation = merge(read_shards(folder), folder)
    evaluation.write(folder / FILE)
    write_report(
        folder / "report.html",
        title=f"MoDE on {evaluation.settings.get('task', 'tasks')}",
        evaluation=evaluation,
        settings=evaluation.settings.get("configuration"),
        videos=episode_videos(evaluation, folder),
    )
    return evaluation
