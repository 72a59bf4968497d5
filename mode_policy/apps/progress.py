"""Progress bars: what is done, how fast, how long it still takes."""

from __future__ import annotations

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column

from mode_policy.apps.cli import console


def _kept(width: int) -> Column:
    return Column(no_wrap=True, min_width=width)  # where a line is too narrow, the bar gives way


def bar(title: str, unit: str = "") -> Progress:
    """Return a bar that counts ``unit``s; tasks need a field ``note``, shown at the end."""
    counts = (
        [MofNCompleteColumn(table_column=_kept(9)), TextColumn(unit)]
        if unit
        else [TextColumn("{task.percentage:>3.0f}%")]
    )
    return Progress(
        SpinnerColumn(),
        TextColumn(f"{title:10}"),
        BarColumn(bar_width=24),
        *counts,
        TimeElapsedColumn(table_column=_kept(7)),
        TextColumn("left"),
        TimeRemainingColumn(table_column=_kept(7)),
        TextColumn("{task.fields[note]}"),
        console=console,
        refresh_per_second=2,
    )
