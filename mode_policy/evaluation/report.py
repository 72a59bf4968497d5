"""An evaluation as one HTML file that needs nothing else: no server, no network, no folder beside it."""

from __future__ import annotations

import json
import os
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from mode_policy.evaluation import plots
from mode_policy.evaluation.page import key_facts, page, plain_table, sentence
from mode_policy.evaluation.plots import ExpertUsage
from mode_policy.evaluation.results import Evaluation
from mode_policy.files import replacing

VIDEO_BUDGET = 24_000_000  # bytes of video that a report embeds; browsers stay quick and mail accepts it


@dataclass(frozen=True, kw_only=True)
class Video:
    """A video for the report.

    Attributes:
        caption: What it shows.
        source: Path of an mp4 or GIF, or its bytes.
        success: Whether the episode succeeded, or None if that is not known.
    """

    caption: str
    source: Path | bytes
    success: bool | None = None


def episode_videos(evaluation: Evaluation, folder: Path | str) -> list[Video]:
    """Return the videos that the episodes name, in ``folder``, captioned by task, start and outcome."""
    return [
        Video(
            caption=f"{e.task}, {e.label}: {'success' if e.success else 'failure'} after {e.steps} steps",
            source=Path(folder) / e.video,
            success=e.success,
        )
        for e in evaluation.episodes
        if e.video
    ]


def write_report(
    path: Path | str,
    *,
    title: str,
    evaluation: Evaluation,
    metrics: Sequence[Mapping[str, Any]] = (),
    expert_usage: ExpertUsage | None = None,
    settings: Mapping[str, Any] | None = None,
    videos: Sequence[Video] = (),
    training_summary: Mapping[str, Any] | None = None,
    video_budget: int = VIDEO_BUDGET,
) -> Path:
    """Write an evaluation as one self-contained HTML file; a part that is missing is said to be missing.

    Args:
        path: Where to, e.g. ``report.html``. Replaced whole or not at all.
        title: Heading of the page.
        evaluation: The results. Of its settings, ``command`` and ``versions`` are shown apart.
        metrics: Training records, see `plots.learning_curves`.
        expert_usage: The router's probabilities by noise level.
        settings: The whole configuration, shown folded.
        videos: Shown failures first.
        training_summary: Key figures of training, name → value, e.g. ``{"parameters": "5.1 M"}``.
        video_budget: Bytes of video to embed. Files beyond it are linked relative to ``path``.

    Returns:
        ``path``.
    """
    path = Path(path)
    sections = (
        ("Results", _results(evaluation)),
        ("Success by task", _success(evaluation)),
        ("Videos", _videos(videos, path.parent, video_budget)),
        ("Training", _training(metrics, training_summary or {})),
        ("Experts by noise level", _experts(expert_usage)),
        ("Configuration", _configuration(evaluation.settings, settings or {})),
    )
    with replacing(path) as temporary:
        temporary.write_text(page(title, sections), encoding="utf-8")
    return path


def _results(evaluation: Evaluation) -> str:
    overall = evaluation.overall
    low, high = overall.interval
    facts: list[tuple[str, str, str]] = [
        (
            "success",
            f"{overall.success:.1%}" if overall.episodes else "–",
            f"95 % interval {low:.1%} – {high:.1%}",
        )
    ]
    for metric, mean in overall.metrics.items():
        low, high = overall.metric_intervals[metric]
        facts.append((metric, f"{mean:.3f}", f"mean, 95 % interval {low:.3f} – {high:.3f}"))
    tasks = len(evaluation.tasks)
    note = f"{tasks} task{'s' * (tasks != 1)}, {overall.successes} successful"
    facts.append(("episodes", str(overall.episodes), note))
    if overall.mean_steps is not None:
        facts.append(("steps to success", f"{overall.mean_steps:.1f}", "mean of successful episodes"))
    seconds = sum(episode.seconds for episode in evaluation.episodes)
    facts.append(("episode time", _duration(seconds), "wall clock, summed"))
    if restarts := sum(episode.restarts for episode in evaluation.episodes):
        facts.append(("simulator restarts", str(restarts), "episodes were run again"))
    return f'<p class="headline">{escape(evaluation.headline())}</p>\n{key_facts(facts)}'


def _success(evaluation: Evaluation) -> str:
    metrics = list(evaluation.overall.metrics)
    heads = ("task", "success", "95 % interval", "episodes", "mean steps", *metrics)
    rows = []
    for result in evaluation.tasks:
        name, *rest = result.row(metrics)
        said = escape(result.instruction)
        head = f'<th scope="row">{escape(name)}<small title="{said}">{said}</small></th>'
        rows.append(f"<tr>{head}{_row(rest)}</tr>")
    feet = []
    for result in (*evaluation.suite_results, evaluation.overall):
        name, *rest = result.row(metrics)
        feet.append(f'<tr><th scope="row">{escape(name)}</th>{_row(rest)}</tr>')
    table = (
        '<div class="scroll"><table><caption>Mean steps are those of successful episodes.</caption>'
        f"<thead><tr>{''.join(f'<th scope="col">{escape(head)}</th>' for head in heads)}</tr></thead>\n"
        f"<tbody>{'\n'.join(rows)}</tbody>\n"
        f"<tfoot>{''.join(feet)}</tfoot></table></div>"
    )
    plot = plots.svg(plots.success_plot(evaluation), f"Success rate per task. {evaluation.headline()}")
    failed = [
        (
            task.name,
            ", ".join(e.label for e in evaluation.episodes if e.task == task.name and not e.success),
        )
        for task in evaluation.tasks
        if task.successes < task.episodes
    ]
    count = evaluation.overall.episodes - evaluation.overall.successes
    failures = (
        f"<details><summary>Starts of the {count} failed episodes</summary>{plain_table(failed)}</details>"
    )
    return f'<div class="pair"><figure>{plot}</figure>{table}</div>\n{failures if failed else ""}'


def _videos(videos: Sequence[Video], folder: Path, budget: int) -> str:
    if not videos:
        return sentence("No videos were recorded.")
    figures = []
    for video in sorted(videos, key=lambda video: video.success is not False):
        body, spent = _video(video, folder, budget)
        budget -= spent
        outcome = {True: "success", False: "failure", None: ""}[video.success]
        figures.append(
            f'<figure class="{outcome}">{body}<figcaption>{escape(video.caption)}</figcaption></figure>'
        )
    return f'<div class="videos">{"\n".join(figures)}</div>'


def _video(video: Video, folder: Path, budget: int) -> tuple[str, int]:
    """Return a video's element and how many bytes of the budget it took."""
    try:
        size = len(video.source) if isinstance(video.source, bytes) else video.source.stat().st_size
        embed = size <= budget
        if isinstance(video.source, bytes):
            if not embed:
                return sentence("This video is too large to embed."), 0
            data = video.source
        else:
            with video.source.open("rb") as file:
                data = file.read() if embed else file.read(6)
    except OSError as error:
        return sentence(f"The video cannot be read: {error}"), 0
    gif = data.startswith((b"GIF87a", b"GIF89a"))
    if embed:
        url = f"data:{'image/gif' if gif else 'video/mp4'};base64,{b64encode(data).decode()}"
    else:
        assert isinstance(video.source, Path)
        url = quote(Path(os.path.relpath(video.source, folder)).as_posix())
    if gif:
        return f'<img src="{url}" alt="{escape(video.caption)}" loading="lazy">', size if embed else 0
    return (
        f'<video src="{url}" aria-label="{escape(video.caption)}" controls muted loop playsinline '
        'preload="metadata"></video>'
    ), (size if embed else 0)


def _training(metrics: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]) -> str:
    parts = [key_facts([(name, _text(value), "") for name, value in summary.items()])] if summary else []
    figures = plots.learning_curves(metrics)
    if figures:
        panels = (f"<figure>{plots.svg(figure, title)}</figure>" for title, figure in figures.items())
        note = sentence("Pale: as recorded. Strong: running median.") if len(metrics) > 60 else ""
        parts.append(f'<div class="grid">{"\n".join(panels)}</div>{note}')
    else:
        parts.append(sentence("No training metrics were found beside the checkpoint."))
    return "<br>\n".join(parts)


def _experts(usage: ExpertUsage | None) -> str:
    if usage is None:
        return sentence("The router's probabilities were not recorded.")
    figures = plots.expert_usage(*usage)
    panels = (
        f"<figure>{plots.svg(figure, f'Expert usage in layer {layer}')}</figure>"
        for layer, figure in enumerate(figures)
    )
    return (
        "<p>Mean probability that the router gives each expert. Denoising runs from left to right. "
        f'<span class="key"></span> marks where an expert is among the top {usage.top_k}, hence used.</p>\n'
        f'<div class="grid">{"\n".join(panels)}</div>'
    )


def _configuration(settings: Mapping[str, Any], configuration: Mapping[str, Any]) -> str:
    command, versions = settings.get("command"), settings.get("versions")
    rest = [(key, _text(value)) for key, value in settings.items() if key not in ("command", "versions")]
    parts = []
    if command:
        line = command if isinstance(command, str) else " ".join(map(str, command))
        parts.append(f'<p>This command reproduces it:</p><pre class="command">{escape(line)}</pre>')
    else:
        parts.append(sentence("The command that made this evaluation was not recorded."))
    if rest:
        parts.append(f"<h3>Evaluation</h3>{plain_table(rest)}")
    if isinstance(versions, Mapping):
        parts.append(
            f"<h3>Versions</h3>{plain_table((key, _text(value)) for key, value in versions.items())}"
        )
    if configuration:
        text = json.dumps(configuration, indent=2, ensure_ascii=False, default=str)
        parts.append(f"<details><summary>Whole configuration</summary><pre>{escape(text)}</pre></details>")
    return "\n".join(parts)


def _row(values: Iterable[str]) -> str:
    return "".join(f"<td>{escape(value)}</td>" for value in values)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"
