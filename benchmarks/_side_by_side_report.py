"""Table, plot and record of `lerobot_side_by_side`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mode_policy.apps.bench.record import write_record
from mode_policy.evaluation.intervals import bootstrap_mean, wilson
from mode_policy.evaluation.plots import BLUE, GREY, INK
from mode_policy.files import replacing, write_text

Row = dict[str, Any]


def summary(row: Row) -> Row:
    """Return a method's figures with their intervals, ready for a record."""
    successes, episodes = sum(row["success"]), len(row["success"])
    low, high = wilson(successes, episodes)
    best = sum(row["best_reward"]) / episodes
    best_low, best_high = bootstrap_mean(row["best_reward"])
    kept = (
        "method",
        "parameters",
        "steps",
        "minutes",
        "share_of_core",
        "samples_per_second",
        "error",
        "p50_s",
        "p90_s",
        "command",
    )
    return {k: row[k] for k in kept} | {
        "success": successes / episodes,
        "success_interval": [low, high],
        "best_reward": best,
        "best_reward_interval": [best_low, best_high],
        "episodes": episodes,
    }


def table(rows: Sequence[Row]) -> str:
    """Return the rows of `summary` as Markdown."""
    lines = [
        "| method | parameters that act | samples/s | success | best reward | held-out error | chunk, p50 |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        (low, high), (best_low, best_high) = r["success_interval"], r["best_reward_interval"]
        lines.append(
            f"| {r['method']} | {r['parameters'] / 1e6:.2f} M | {r['samples_per_second']:,.0f} | "
            f"**{r['success']:.2f}** [{low:.2f}, {high:.2f}] | {r['best_reward']:.3g} [{best_low:.3g}, "
            f"{best_high:.3g}] | {r['error']:.3g} | {1e3 * r['p50_s']:.0f} ms |"
        )
    return "\n".join(lines) + "\n"


def plot(rows: Sequence[Row]) -> Figure:
    """Return success with intervals, training speed and latency, side by side."""
    figure = Figure(figsize=(9.5, 0.9 + 0.34 * len(rows)), layout="constrained")
    first, second, third = figure.subplots(1, 3, sharey=True)
    _bars(first, rows, "success", "success rate, 95 % interval")
    for y, row in enumerate(rows):
        low, high = row["success_interval"]
        first.errorbar(
            (low + high) / 2, y, xerr=(high - low) / 2, fmt="none", ecolor=INK, elinewidth=1, capsize=2.5
        )
    first.set_xlim(0, 1)
    _bars(second, rows, "samples_per_second", "samples per second, training")
    _bars(third, rows, "p50_s", "seconds for a chunk")
    first.set_yticks(range(len(rows)), [row["method"] for row in rows])
    first.invert_yaxis()
    return figure


def _bars(axes: Axes, rows: Sequence[Row], key: str, label: str) -> None:
    colours = [BLUE if row["method"].startswith("MoDE") else GREY for row in rows]
    axes.barh(range(len(rows)), [row[key] for row in rows], height=0.62, color=colours, alpha=0.75)
    axes.set_xlabel(label)
    axes.spines[["top", "right"]].set_visible(False)


def write_report(
    measured: Sequence[Row], config: dict[str, Any], work: Path, docs: Path | None, record: Path | None
) -> None:
    """Print the table; write it, the plot and, where wanted, a record and a page of the documentation."""
    rows = [summary(row) for row in measured]
    text, figure = table(rows), plot(rows)
    print(text)
    write_text(work / "table.md", text)
    name = f"lerobot_side_by_side_{config['task']}"
    places = [work / "plot.png", *([docs / "media" / f"{name}.png"] if docs else [])]
    for path in places:
        with replacing(path) as partial:
            figure.savefig(partial, dpi=150)
    if docs:
        commands = "\n".join(f"# {row['method']}\n{row['command']}\n" for row in rows)
        kind = "minutes" if config["clock"] == "wall" else "minutes of one processor core"
        page = (
            f"# MoDE beside LeRobot's policies: {config['task']}\n\n{config['minutes']:g} {kind} of "
            f"training each, batch {config['batch_size']}, {config['data']['train_episodes']} "
            f"demonstrations, {rows[0]['episodes']} rollouts from the same seeds, one run of "
            f"`benchmarks/lerobot_side_by_side.py`. Brackets are 95 % intervals; the error is the mean "
            f"absolute one of the executed actions on {config['data']['held_out_episodes']} held-out "
            f"demonstrations, in raw units.\n\n![Success, training speed and latency](media/{name}.png)\n\n"
            f"{text}\n```\n{commands}```\n"
        )
        write_text(docs / f"{name}.md", page)
    if record is not None:
        print(f"record     {write_record(name, rows, config, record)}")
