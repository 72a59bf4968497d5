from __future__ import annotations

import re
from base64 import b64decode
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from mode_policy.evaluation import (
    Evaluation,
    ExpertUsage,
    Video,
    episode_videos,
    write_gif,
    write_report,
)

from .conftest import HOSTILE

VOID = {"meta", "br", "img"}


class Page(HTMLParser):
    """Collects elements, addresses and text; fails on tags that do not nest."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.html = path.read_text(encoding="utf-8")
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(self.html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self._open.append(tag)
        for name, value in attrs:
            assert not name.startswith("on")
            if name == "id":
                self.ids.append(value or "")
            if name.split(":")[-1] in ("src", "href", "srcset", "poster", "data", "action"):
                self.addresses.append(value or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def full(evaluation: Evaluation, frames: np.ndarray, tmp_path: Path) -> Page:
    video = write_gif(tmp_path / "in.gif", frames, 10)
    probs = np.random.default_rng(0).dirichlet(np.ones(4), size=(12, 3))
    path = write_report(
        tmp_path / "report.html",
        title=HOSTILE,
        evaluation=evaluation,
        metrics=[{"step": i, "loss": 1 / (i + 1), "lr": 1e-3} for i in range(100)],
        expert_usage=ExpertUsage(probs, np.geomspace(0.01, 80, 12)),
        settings={"model": {"name": HOSTILE}},
        videos=[
            Video(caption="the good one", source=video, success=True),
            Video(caption=HOSTILE, source=video.read_bytes(), success=False),
            Video(caption="an mp4", source=b"\0\0\0\x18ftypmp42"),
        ],
        training_summary={HOSTILE: HOSTILE, "steps": 1000},
    )
    return Page(path)


def test_report_needs_nothing_else(full: Page) -> None:
    assert full.addresses
    assert all(address.startswith(("#", "data:")) for address in full.addresses)
    assert not {"script", "link", "iframe", "object", "embed", "base"} & set(full.tags)
    # Names of XML vocabularies are identifiers, not requests; apart from them no address may appear.
    assert set(re.findall(r"https?://[^\s\"<]+", full.html)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    assert "@import" not in full.html
    assert all(url.startswith("#") for url in re.findall(r"url\(([^)]*)\)", full.html))


def test_report_escapes_what_it_is_given(full: Page) -> None:
    assert "<script" not in full.html
    assert full.text.count(HOSTILE) >= 6


def test_report_says_it_all(full: Page, evaluation: Evaluation) -> None:
    for part in (
        evaluation.headline(),
        "0.75",
        "evaluate.py a=<b>",
        "Layer 2",
        "Learning rate",
        "coverage",
        "top 2",
    ):
        assert part in full.text
    assert full.tags.count("svg") == 1 + 2 + 3
    assert full.tags.count("section") == 6


def test_references_inside_the_page_resolve(full: Page) -> None:
    targets = {address[1:] for address in full.addresses if address.startswith("#")}
    targets |= set(re.findall(r"url\(#([^)]*)\)", full.html))
    assert targets <= set(full.ids)


def test_failures_come_first_and_videos_are_embedded(full: Page, tmp_path: Path) -> None:
    assert full.html.index('class="failure"') < full.html.index('class="success"')
    (good, bad) = [a for a in full.addresses if a.startswith("data:image/gif")]
    assert b64decode(good.split(",")[1]) == b64decode(bad.split(",")[1]) == (tmp_path / "in.gif").read_bytes()
    assert "video" in full.tags


def test_report_with_nothing_says_so_in_plain_words(tmp_path: Path) -> None:
    page = Page(write_report(tmp_path / "r.html", title="t", evaluation=Evaluation.from_records([], [], {})))
    for sentence in (
        "No videos were recorded.",
        "No training metrics were found",
        "probabilities were not recorded.",
        "command that made this evaluation was not recorded.",
    ):
        assert sentence in page.text
    assert "nan%" not in page.text


def test_videos_beyond_the_budget_are_linked(
    evaluation: Evaluation, frames: np.ndarray, tmp_path: Path
) -> None:
    video = write_gif(tmp_path / "videos" / "a b#1.gif", frames, 10)
    size = video.stat().st_size
    videos = [
        Video(caption="first", source=video),
        Video(caption="second", source=video),
        Video(caption="third", source=video.read_bytes()),
        Video(caption="fourth", source=tmp_path / "lost.mp4"),
    ]
    page = Page(
        write_report(
            tmp_path / "report" / "r.html", title="t", evaluation=evaluation, videos=videos, video_budget=size
        )
    )
    assert sum(address.startswith("data:image/gif") for address in page.addresses) == 1
    assert "../videos/a%20b%231.gif" in page.addresses
    assert "too large to embed" in page.text
    assert "cannot be read" in page.text
    assert "lost.mp4" in page.text


def test_episode_videos(evaluation: Evaluation, tmp_path: Path) -> None:
    from dataclasses import replace

    first, second = evaluation.episodes[:2]
    filmed = replace(evaluation, episodes=(replace(first, video="videos/a.mp4"), second))
    (video,) = episode_videos(filmed, tmp_path)
    assert video == Video(
        caption="reach, seed 0: failure after 40 steps", source=tmp_path / "videos/a.mp4", success=False
    )


def test_failed_write_keeps_the_old_report(
    evaluation: Evaluation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_report(tmp_path / "r.html", title="old", evaluation=evaluation)

    def fail(*_: object, **__: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(OSError, match="no space"):
        write_report(path, title="new", evaluation=evaluation)
    assert "<title>old</title>" in path.read_text()
    assert list(tmp_path.iterdir()) == [path]
