"""Progress bars: what is done, how fast, how long it still takes; in a log file, a line now and then."""

from __future__ import annotations

import time
from typing import Any

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column

from mode_policy.apps.cli import console

#: Seconds between lines, where there is no terminal that could show a bar.
LINE_EVERY = 60.0


def _kept(width: int) -> Column:
    return Column(no_wrap=True, min_width=width)  # where a line is too narrow, the bar gives way


class Bar(Progress):
    """A progress bar with a title that is also fit for the log of a job that runs for days."""

    def __init__(self, title: str, *columns: Any, **options: Any) -> None:
        super().__init__(*columns, **options)
        self._title = title
        self._told = time.monotonic()

    def update(self, task_id: TaskID, *arguments: Any, **fields: Any) -> None:
        """Take what is done; where nobody sees the bar, print it now and then."""
        super().update(task_id, *arguments, **fields)
        if self.console.is_terminal or time.monotonic() - self._told < LINE_EVERY:
            return
        self._told = time.monotonic()
        row = next(row for row in self.tasks if row.id == task_id)
        left = "" if row.time_remaining is None else f", {row.time_remaining / 60:.0f} min left"
        done = f"{row.percentage:.0f}% in {(row.elapsed or 0.0) / 60:.0f} min{left}"
        self.console.print(f"{self._title:10} {done}  {row.fields.get('note', '')}".rstrip())


def bar(title: str, unit: str = "") -> Progress:
    """Return a bar that counts ``unit``s; tasks need a field ``note``, shown at the end."""
    counts = (
        [MofNCompleteColumn(table_column=_kept(9)), TextColumn(unit)]
        if unit
        else [TextColumn("{task.percentage:>3.0f}%")]
    )
    return Bar(
        title,
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
