"""Make, look at, check and edit demonstrations, from the command line.

Examples::

    mode-data collect metaworld_mt10 episodes=50 noise=0.2
    mode-data download libero_90
    mode-data convert libero_90/ libero_90.zarr
    mode-data list [FOLDER]
    mode-data info datasets/store/pusht.zarr
    mode-data check datasets/store/pusht.zarr --html report.html
    mode-data view datasets/store/pusht.zarr 12 --sheet episode.png
    mode-data compare mine.zarr theirs.zarr
    mode-data merge a.zarr b.zarr both.zarr
    mode-data filter both.zarr good.zarr --drop check.json --min-length 20
    mode-data split good.zarr train.zarr test.zarr --fraction 0.1
    mode-data stats good.zarr --write
    mode-data migrate old.zarr action_kind=delta
    mode-data expert-table --suite spatial --states 10

``mode-data COMMAND --help`` has more. Where a command takes ``--task NAME``, a store of another layout is
read as that task's recipe (``conf/task/NAME.yaml``) says.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any

from mode_policy.apps import convert, data_check, data_edit, data_stores, data_view, expert_table
from mode_policy.apps.cli import exit_codes
from mode_policy.errors import ConfigError, did_you_mean

#: Each adds commands with `mode_policy.apps.data_stores.add_command`: a command's ``run`` takes the parsed
#: arguments, and may return an exit code.
GROUPS: tuple[Callable[[Any], None], ...] = (
    data_stores.add,
    convert.add,
    data_check.add,
    data_view.add,
    data_edit.add,
    expert_table.add,
)


def main(argv: Sequence[str] | None = None) -> None:
    """Run ``mode-data``."""
    parser = argparse.ArgumentParser(
        prog="mode-data",
        description=(__doc__ or "").replace("``", "").replace("::", ":"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in GROUPS:
        add(commands)
    given = list(sys.argv[1:] if argv is None else argv)
    with exit_codes():
        if given and not given[0].startswith("-") and given[0] not in commands.choices:
            raise ConfigError(f"unknown command {given[0]!r}.{did_you_mean(given[0], commands.choices)}")
        arguments = parser.parse_args(given)
        if code := arguments.run(arguments):
            raise SystemExit(code)
