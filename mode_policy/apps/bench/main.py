"""The program ``mode-bench``.

::

    mode-bench data                     windows per second: ours, HDF5, LeRobotDataset
    mode-bench data --store PATH        on demonstrations of your own
    mode-bench data --record            also write benchmarks/results/data_….json
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from mode_policy.apps.bench import data
from mode_policy.apps.bench.record import RESULTS, Row, device, write_record
from mode_policy.apps.cli import console, exit_codes


def main(argv: Sequence[str] | None = None) -> None:
    """Run ``mode-bench``."""
    parser = argparse.ArgumentParser(
        prog="mode-bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    reading = commands.add_parser("data", help="windows per second from demonstrations")
    reading.add_argument("--store", type=Path, help="demonstrations with cameras; made up by default")
    reading.add_argument("--episodes", type=int, default=50, help="how many are made up")
    reading.add_argument("--seconds", type=float, default=5.0, help="for each reader")
    reading.add_argument("--ours-only", action="store_true", help="leave HDF5 and LeRobotDataset out")
    for command in (reading,):
        command.add_argument(
            "--record", nargs="?", type=Path, const=RESULTS, metavar="FOLDER", help="write a dated record"
        )
    arguments = parser.parse_args(argv)
    with exit_codes():
        about = device()
        config = data.DataBench(
            store=arguments.store,
            episodes=arguments.episodes,
            seconds=arguments.seconds,
            others=not arguments.ours_only,
        )
        rows = data.run(config, lambda text: console.print(f"measuring  {text}"))
        _finish("data", rows, asdict(config), arguments.record, about)


def _finish(name: str, rows: Sequence[Row], config: dict[str, Any], folder: Path | None, about: Row) -> None:
    console.print(table(name, rows))
    if folder is not None:
        plain = {key: str(value) if isinstance(value, Path) else value for key, value in config.items()}
        console.print(f"record     {write_record(name, rows, plain, folder, about)}")


def table(title: str, rows: Sequence[Row]) -> Table:
    """Return rows as a table; columns are the keys of the first."""
    shown = Table(*(key.replace("_", " ") for key in rows[0]), title=title)
    for row in rows:
        shown.add_row(*(f"{value:,}" if isinstance(value, int) else str(value) for value in row.values()))
    return shown
