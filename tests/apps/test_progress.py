"""Progress where there is no terminal: lines in a log."""

from io import StringIO

import pytest
from rich.console import Console

from mode_policy.apps import progress


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> StringIO:
    text = StringIO()
    monkeypatch.setattr(progress, "console", Console(file=text, width=100))
    return text


def advance(log: StringIO) -> list[str]:
    """Advance a bar ten times; return what a log has before the bar's own last line."""
    with progress.bar("collecting", "demonstrations") as bar:
        task = bar.add_task("", total=10, note="")
        for done in range(1, 11):
            bar.update(task, completed=done, note=f"success {done}")
        return log.getvalue().splitlines()


def test_a_log_gets_a_line_now_and_then(log, monkeypatch):
    monkeypatch.setattr(progress, "LINE_EVERY", 0.0)
    lines = advance(log)
    assert len(lines) == 10
    assert lines[2].startswith("collecting 30% in 0 min")
    assert lines[2].endswith("success 3")


def test_short_work_prints_no_lines(log):
    assert advance(log) == []
