"""A report of a check as tables for the terminal."""

from __future__ import annotations

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from mode_datasets.check.findings import Report, plural

COLOURS = {"error": "bold red", "warning": "yellow", "info": "cyan"}


def findings_table(report: Report) -> RenderableType:
    """Return the findings, the worst first, and a line that sums them up, for a `rich.console.Console`."""
    about = report.summary
    parts: list[RenderableType] = [Text(report.path, style="bold")]
    if about:
        parts.append(
            Text(
                f"{plural(about['episodes'], 'episode')} of {plural(len(about['tasks']), 'task')}, "
                f"{about['steps']} steps at {about['fps']:g} Hz",
                style="dim",
            )
        )
    table = Table("", "check", "where", "finding, and what to do", box=box.SIMPLE_HEAD, padding=(0, 1))
    table.columns[3].ratio = 1
    table.columns[2].max_width, table.columns[2].overflow = 28, "fold"
    for finding in report.findings:
        table.add_row(
            Text(finding.severity, style=COLOURS[finding.severity]),
            Text(finding.check),
            Text(finding.where()),
            Text.assemble(finding.what, (f"\n→ {finding.fix}", "dim")),
        )
    if report.findings:
        parts.append(table)
    worst = next((f.severity for f in report.findings), None)
    style = COLOURS[worst] if worst else "green"
    parts.append(Text(f"{len(report.checks)} checks: {report.headline()}", style=style))
    return Group(*parts)
