"""Reports for people: a table, and a page that needs nothing else."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
from rich.console import Console

from mode_datasets.check import check_store
from mode_datasets.check.page import write_page
from mode_datasets.check.table import findings_table
from mode_policy.types import ACTION, STATE
from tests.datasets.conftest import CAMERA, rewrite

from .conftest import FEATURES, MakeStore, changed

VECTORS = {key: FEATURES[key] for key in (STATE, ACTION)}


class _Checker(HTMLParser):
    """Finds tags that are not closed, and addresses of other files."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.outside: list[str] = []
        self.images = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "img", "br", "path", "use", "rect", "stop"):
            self.open.append(tag)
        self.images += tag == "img"
        for name, value in attrs:
            if name in ("src", "href", "xlink:href") and not (value or "").startswith(("data:", "#")):
                self.outside.append(str(value))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if self.open and self.open[-1] == tag:
            self.open.pop()


def parsed(path: Path) -> tuple[str, _Checker]:
    text = path.read_text()
    checker = _Checker()
    checker.feed(text)
    return text, checker


def test_the_page_stands_alone(tmp_path: Path, make_demos: MakeStore, clean_episodes) -> None:
    front = clean_episodes[5].arrays[CAMERA].copy()
    front[20:40] = front[20]

    def freeze(episodes):
        episodes[5] = changed(episodes[5], front=front)
        return episodes

    checked = check_store(make_demos(freeze))
    write_page(tmp_path / "report.html", checked.report, checked.contents)
    text, checker = parsed(tmp_path / "report.html")
    assert checker.outside == []
    assert checker.open == []
    assert not re.search(r"url\((?!#)", text)
    assert text.count("<svg") == 2 + 3 + 3 + 1, "lengths, tasks, each dimension, lag"
    assert checker.images == 2 * 6, "of each camera, strips of six episodes"
    assert "episode 5, reach: frozen_frames" in text
    assert "the picture stands still" in text


def test_a_page_of_a_store_that_cannot_be_opened(tmp_path: Path, make_demos: MakeStore) -> None:
    path = make_demos(features=VECTORS)
    rewrite(path, "meta/episode_ends", lambda ends: ends * 2)
    checked = check_store(path)
    write_page(tmp_path / "report.html", checked.report, checked.contents)
    text, checker = parsed(tmp_path / "report.html")
    assert "episode_ends" in text
    assert checker.open == []


def test_a_page_of_damaged_data(tmp_path: Path, make_demos: MakeStore) -> None:
    path = make_demos()
    rewrite(path, f"data/{STATE}", lambda x: np.full_like(x, np.nan))
    next(p for p in (path / "data" / CAMERA / "c").rglob("0") if p.is_file()).write_bytes(b"")
    checked = check_store(path)
    write_page(tmp_path / "report.html", checked.report, checked.contents)
    text, checker = parsed(tmp_path / "report.html")
    assert checker.open == []
    assert "No step of it can be read." in text
    assert "corrupt" in text


def test_text_of_the_data_is_not_taken_for_html(tmp_path: Path, make_demos: MakeStore) -> None:
    path = make_demos(name="<b>$x$&.zarr", features=VECTORS)
    checked = check_store(path)
    write_page(tmp_path / "report.html", checked.report, checked.contents)
    text, checker = parsed(tmp_path / "report.html")
    assert "<b>" not in text
    assert "&lt;b&gt;$x$&amp;.zarr" in text
    assert checker.open == []


def test_the_table_tells_where_and_what_to_do(make_demos: MakeStore) -> None:
    path = make_demos(features=VECTORS)
    rewrite(path, f"data/{STATE}", lambda x: np.where(np.arange(len(x))[:, None] == 3, np.nan, x))
    console = Console(width=140)
    with console.capture() as captured:
        console.print(findings_table(check_store(path).report))
    text = captured.get()
    row = next(line for line in text.splitlines() if "not_finite" in line)
    assert row.split()[:3] == ["error", "not_finite", "observation.state,"]
    assert "→ repair the source" in text
    assert text.rstrip().endswith("21 checks: 1 error, 1 note")
