"""A report of a check as one HTML page."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable, Sequence
from html import escape
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from mode_datasets import schema
from mode_datasets.check import figures
from mode_datasets.check.contents import CONSTANT, Contents
from mode_datasets.check.findings import CHECKS, Finding, Report
from mode_datasets.check.values import saturation_shares
from mode_policy.errors import DataError
from mode_policy.evaluation.page import key_facts, page, plain_table, sentence
from mode_policy.evaluation.plots import svg
from mode_policy.evaluation.video import contact_sheet
from mode_policy.files import write_text
from mode_policy.types import ACTION

#: What a page shows at most, so that browsers stay quick: panels of a feature, episodes in each, rows and
#: columns of a camera's sheet, pixels of a frame's height.
PANELS, CURVES, SHEET_ROWS, SHEET_COLUMNS, FRAME_PIXELS = 16, 12, 6, 8, 112

_CSS = """
.findings th, .findings td { text-align: left; white-space: normal; vertical-align: top; }
.findings td:nth-child(2) { white-space: nowrap; }
.findings td:nth-child(3) { min-width: 11rem; overflow-wrap: anywhere; color: var(--soft); }
.findings small { display: block; color: var(--soft); }
.error, .warning, .info { font-weight: 600; }
.error { color: #b3261e; } .warning { color: #a65b00; } .info { color: #0072b2; }
.strips figure { margin: .75rem 0; }
.strips img { display: block; width: 100%; border-radius: 4px; }
"""


def write_page(path: Path | str, report: Report, contents: Contents | None) -> None:
    """Write a report with figures of the data as one self-contained HTML file, replaced whole or not at all.

    Args:
        path: Where to, e.g. ``report.html``.
        report: What was found.
        contents: The store, or None where it could not be opened: then there are no figures.
    """
    name = Path(report.path).name
    sections = [("Findings", _findings(report))]
    if contents is not None:
        sections += [
            ("Overview", _overview(contents)),
            ("Episodes", _episodes(contents)),
            *((_title(key), _values(contents, key, report.findings)) for key in _vector_order(contents)),
            ("Action and state", _lag(contents)),
            *((_title(key), _frames(contents, key, report.findings)) for key in _cameras(contents)),
            ("About", _about(contents)),
        ]
    write_text(Path(path), page(f"Data check: {name}", sections, _CSS))


def _findings(report: Report) -> str:
    made = f"<details><summary>{len(report.checks)} checks were made</summary>"
    made += plain_table((name, CHECKS[name]) for name in report.checks) + "</details>"
    if not report.findings:
        return f'<p class="headline">{report.headline()}</p>{made}'
    rows = "\n".join(
        f'<tr><td class="{f.severity}">{f.severity}</td><td>{f.check}</td><td>{escape(f.where())}</td>'
        f"<td>{escape(f.what)}<small>{escape(f.fix)}</small></td></tr>"
        for f in report.findings
    )
    heads = "".join(f"<th>{head}</th>" for head in ("", "check", "where", "finding, and what to do"))
    return (
        f'<p class="headline">{report.headline()}</p>\n<div class="scroll"><table class="findings">'
        f"<thead><tr>{heads}</tr></thead>\n<tbody>{rows}</tbody></table></div>{made}"
    )


def _overview(contents: Contents) -> str:
    store = contents.store
    lengths = store.episode_lengths
    minutes = store.num_steps / store.fps / 60
    return key_facts(
        [
            ("episodes", str(store.num_episodes), f"{len(store.tasks)} task{'s' * (len(store.tasks) != 1)}"),
            ("steps", f"{store.num_steps:,}", f"{minutes:.1f} minutes"),
            ("control rate", f"{store.fps:g} Hz", ""),
            ("episode length", f"{np.median(lengths):g}", f"median; {lengths.min()} to {lengths.max()}"),
            ("cameras", str(len(_cameras(contents))), ""),
            ("action dimensions", str(store.features[ACTION].shape[0]), ""),
        ]
    )


def _episodes(contents: Contents) -> str:
    parts = [svg(figures.lengths_figure(contents), "Histogram of episode lengths")]
    if len(contents.store.tasks) > 1:
        parts.append(svg(figures.tasks_figure(contents), "Episodes of each task"))
    return f'<div class="pair">{"".join(f"<figure>{part}</figure>" for part in parts)}</div>'


def _values(contents: Contents, key: str, findings: Sequence[Finding]) -> str:
    x = contents.vectors[key]
    finite = x[np.isfinite(x).all(1)]
    ranges = np.ptp(finite, axis=0) if len(finite) else np.zeros(x.shape[1])
    varying = np.flatnonzero(ranges > CONSTANT * ranges.max(initial=0))
    marked = [e for f in findings if f.feature == key for e in f.episodes]
    episodes = _chosen(contents, marked, CURVES)
    panels = [
        svg(figures.values_figure(contents, key, int(dim), episodes, marked), contents.name(key, int(dim)))
        for dim in varying[:PANELS]
    ]
    notes = [f"{len(episodes)} episodes over time; at the right, how often each value occurs."]
    if set(marked) & set(episodes):
        notes.append("Orange: episodes with a finding.")
    if len(varying) > PANELS:
        notes.append(f"The first {PANELS} of {len(varying)} dimensions that vary.")
    grid = "".join(f"<figure>{panel}</figure>" for panel in panels)
    return f'{sentence(" ".join(notes))}<div class="grid">{grid}</div>{_statistics(contents, key, finite)}'


def _statistics(contents: Contents, key: str, finite: np.ndarray) -> str:
    if not len(finite):
        return sentence("No step of it can be read.")
    heads = ["dimension", "min", "1 %", "median", "99 %", "max", "mean", "std", "at bounds"]
    low, middle, high = np.quantile(finite, [0.01, 0.5, 0.99], axis=0)
    columns = (finite.min(0), low, middle, high, finite.max(0), finite.mean(0), finite.std(0))
    bounds = saturation_shares(finite)
    rows = "\n".join(
        f'<tr><th scope="row">{escape(contents.name(key, dim))}</th>'
        + "".join(f"<td>{column[dim]:.4g}</td>" for column in columns)
        + f"<td>{bounds[dim]:.1%}</td></tr>"
        for dim in range(finite.shape[1])
    )
    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    return (
        '<details><summary>Statistics of all dimensions</summary><div class="scroll"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div></details>"
    )


def _lag(contents: Contents) -> str:
    lag = contents.lag
    if lag is None:
        return sentence("There are no states to compare the actions with.")
    told = (
        f"As {lag.kind} actions. The dashed line is the lag that the curves agree on."
        if lag.steps is not None
        else "No state follows the actions closely enough to tell a lag."
    )
    figure = svg(figures.lag_figure(contents, lag), "Correlation over lag")
    return f'{sentence(told)}<div class="pair"><figure>{figure}</figure></div>'


def _frames(contents: Contents, key: str, findings: Sequence[Finding]) -> str:
    marked = {e: f.check for f in reversed(findings) for e in f.episodes if f.feature in ("", key)}
    strips = []
    for episode in sorted(_chosen(contents, list(marked), SHEET_ROWS)):
        start, end = contents.store.episode_starts[episode], contents.store.episode_ends[episode]
        steps = np.unique(np.linspace(start, end - 1, SHEET_COLUMNS).astype(int))
        caption = f"episode {episode}, {contents.store.tasks[contents.store.episode_tasks[episode]].name}"
        caption += f": {marked[episode]}" if episode in marked else ""
        try:
            strip = _jpeg(contact_sheet(_small(contents.store.frames(key, steps)), SHEET_COLUMNS))
            shown = f'<img src="data:image/jpeg;base64,{strip}" alt="{escape(caption)}" loading="lazy">'
        except DataError as error:
            shown = sentence(str(error))
        strips.append(f"<figure>{shown}<figcaption>{escape(caption)}</figcaption></figure>")
    return f'<div class="strips">{"".join(strips)}</div>'


def _about(contents: Contents) -> str:
    store = contents.store
    rows = [(key, f"{f.dtype} {f.shape} {f.unit}".strip()) for key, f in store.features.items()]
    rows += [(n.replace("_", " "), str(v)) for n, v in store.convention.to_json().items() if v]
    rows += [(name, str(value)) for name, value in store.provenance.to_json().items() if value]
    return plain_table(rows)


def _title(key: str) -> str:
    return key.removeprefix("observation.")


def _vector_order(contents: Contents) -> list[str]:
    return sorted(contents.vectors, key=lambda key: key != ACTION)


def _cameras(contents: Contents) -> tuple[str, ...]:
    return schema.image_keys(contents.store.features)


def _chosen(contents: Contents, wanted: Iterable[int], most: int) -> list[int]:
    """Return up to ``most`` episodes: at most half from ``wanted``, the others spread over the store."""
    chosen = list(dict.fromkeys(wanted))[: most // 2]
    spread = np.linspace(0, contents.store.num_episodes - 1, min(most, contents.store.num_episodes))
    return list(dict.fromkeys([*chosen, *spread.astype(int).tolist()]))[:most]


def _small(frames: np.ndarray) -> np.ndarray:
    """Return frames that are at most `FRAME_PIXELS` high."""
    height, width = frames.shape[1:3]
    if height <= FRAME_PIXELS:
        return frames
    size = (max(1, round(width * FRAME_PIXELS / height)), FRAME_PIXELS)
    return np.stack([np.asarray(Image.fromarray(frame).resize(size)) for frame in frames])


def _jpeg(image: np.ndarray) -> str:
    buffer = BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=82)
    return b64encode(buffer.getvalue()).decode()
