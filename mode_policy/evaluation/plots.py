"""Figures of an evaluation and of its training: matplotlib figures, and their text as inline SVG.

Everything uses matplotlib's object interface, so no figure is kept alive by global state. Colours are Okabe
and Ito's, which every kind of colour vision tells apart; heat maps run from white to dark in one hue.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from html import escape
from io import StringIO
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from mode_policy.evaluation.results import Evaluation

BLUE, ORANGE, INK, GREY = "#0072B2", "#D55E00", "#1F2933", "#7B8794"

# Title and curves (key in the metrics, label) of each panel of `learning_curves`.
PANELS: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = (
    ("Loss", (("loss", "training"), ("validation_loss", "validation"))),
    ("Load-balancing loss", (("load_balance", "training"),)),
    ("Learning rate", (("lr", ""),)),
    ("Samples per second", (("samples_per_second", ""),)),
)
MAX_POINTS = 1000  # per curve: more cannot be seen, and each costs a dozen bytes of SVG


class ExpertUsage(NamedTuple):
    """How the router distributes noise levels over experts.

    Attributes:
        probs: ``(S, L, N)``: mean probability of each of N experts in L layers at S noise levels, in [0, 1].
        sigmas: ``(S,)``: the noise levels, > 0.
        top_k: How many experts a token visits.
    """

    probs: np.ndarray
    sigmas: np.ndarray
    top_k: int = 2


def success_plot(evaluation: Evaluation) -> Figure:
    """Return horizontal bars of success per task and overall, with 95 % Wilson intervals as whiskers."""
    results = [*evaluation.tasks, evaluation.overall]
    names = [wrapped(result.name) for result in results]
    lines = max(name.count("\n") + 1 for name in names)
    figure = Figure(
        figsize=(4.8 if lines > 1 else 4.2, 0.6 + (0.1 + 0.14 * lines) * len(results)), layout="constrained"
    )
    axes = figure.add_subplot()
    for y, result in enumerate(results):
        low, high = result.interval
        colour = GREY if result is evaluation.overall else BLUE
        axes.barh(y, result.success if result.episodes else 0.0, height=0.62, color=colour, alpha=0.75)
        axes.errorbar(
            (low + high) / 2, y, xerr=(high - low) / 2, fmt="none", ecolor=INK, elinewidth=1, capsize=2.5
        )
        axes.text(1.02, y, f"{result.successes}/{result.episodes}", va="center", color=INK, fontsize=9)
    axes.set(xlim=(0, 1), ylim=(len(results) - 0.4, -0.6), xlabel="success rate, 95 % interval")
    axes.set_yticks(range(len(results)), names, parse_math=False)
    axes.get_yticklabels()[-1].set_fontweight("bold")
    axes.tick_params(axis="y", length=0)
    style_axes(axes, grid="x")
    return figure


def wrapped(name: str, width: int = 28) -> str:
    """Return a task's name in lines of at most ``width`` characters, broken after ``_``, ``-`` and spaces."""
    lines = [""]
    for part in re.findall(rf".{{0,{width - 1}}}?(?:[_ -]|.$)|.{{1,{width}}}", name):
        if lines[-1] and len(lines[-1] + part) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)


def learning_curves(metrics: Sequence[Mapping[str, Any]]) -> dict[str, Figure]:
    """Return the panels of `PANELS` for which there is data: title → figure over training steps.

    Args:
        metrics: Records such as ``{"step": 100, "loss": 0.41, "lr": 1e-3}``. Any key may be absent from any
            record. Of records that share a step, as after resuming, the last one counts.
    """
    figures = {}
    for title, keys in PANELS:
        curves = [(label, *_curve(metrics, key)) for key, label in keys]
        curves = [curve for curve in curves if curve[1].size]
        if not curves:
            continue
        figures[title] = figure = Figure(figsize=(3.0, 2.1), layout="constrained")
        axes = figure.add_subplot()
        for colour, (label, steps, values) in zip((BLUE, ORANGE), curves, strict=False):
            noisy = values.size > 60 and title != "Learning rate"
            marker = "o" if values.size <= 20 else None
            keep = slice(None, None, math.ceil(values.size / MAX_POINTS))
            if noisy:
                axes.plot(steps[keep], values[keep], color=colour, alpha=0.25, linewidth=0.8)
                values = _running_median(values)
            axes.plot(
                steps[keep],
                values[keep],
                color=colour,
                linewidth=1.6,
                marker=marker,
                markersize=3,
                label=label,
            )
        lowest, highest = axes.dataLim.intervaly
        if "loss" in title.lower() and lowest > 0 and highest / lowest > 5:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_minor_formatter(NullFormatter())
        else:
            axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        if title == "Samples per second":
            axes.set_ylim(bottom=0)  # a rate's dips mean something only against zero
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10], integer=True))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.set_title(title, loc="left", fontsize=10, color=INK)
        axes.set_xlabel("training step")
        if len(curves) > 1:
            axes.legend(frameon=False, fontsize=9)
        style_axes(axes, grid="both")
    return figures


def expert_usage(probs: np.ndarray, sigmas: np.ndarray, top_k: int = 2) -> list[Figure]:
    """Return one heat map per layer: experts × noise level, as in the MoDE paper (arXiv 2412.12953).

    Time runs from left to right as in denoising, from high noise to low. An orange line marks the noise
    levels at which an expert is among the ``top_k`` that are used. Arguments are those of `ExpertUsage`.

    Raises:
        ValueError: if shapes do not fit, a number is not finite, a noise level is not positive, or ``top_k``
            exceeds the experts.
    """
    probs, sigmas = np.asarray(probs, dtype=np.float64), np.asarray(sigmas, dtype=np.float64)
    if probs.ndim != 3 or sigmas.shape != probs.shape[:1] or not sigmas.size:
        raise ValueError(f"probabilities {probs.shape} and sigmas {sigmas.shape} are not (S, L, N) and (S,)")
    if not np.isfinite(probs).all():
        raise ValueError(f"{np.count_nonzero(~np.isfinite(probs))} probabilities are not finite")
    if not (np.isfinite(sigmas).all() and (sigmas > 0).all()):
        raise ValueError(f"noise levels must be positive; leave out the sampler's final 0: {sigmas}")
    _, layers, experts = probs.shape
    if not 1 <= top_k <= experts:
        raise ValueError(f"top_k is {top_k}, but there are {experts} experts")
    order = np.argsort(sigmas)
    probs, logs = probs[order], np.log(sigmas[order])
    middles = (logs[1:] + logs[:-1]) / 2  # cells meet half-way between noise levels, on the log axis
    outer = (logs[0] - middles[0], logs[-1] - middles[-1]) if middles.size else (-0.2, 0.2)
    edges = np.exp([logs[0] + outer[0], *middles, logs[-1] + outer[1]])
    ranks = np.argsort(np.argsort(-probs, axis=-1, kind="stable"), axis=-1, kind="stable")
    scale = max(math.ceil(float(probs.max()) * 10) / 10, 0.1)  # one scale for all layers

    figures = []
    for layer in range(layers):
        figure = Figure(figsize=(3.0, 0.8 + 0.2 * experts), layout="constrained")
        axes = figure.add_subplot()
        # Rasterised: browsers show seams between the vector cells of a mesh, and there are thousands.
        mesh = axes.pcolormesh(
            edges,
            np.arange(experts + 1) - 0.5,
            probs[:, layer].T,
            cmap="Blues",
            vmin=0,
            vmax=scale,
            rasterized=True,
        )
        for expert in range(experts):
            used = ranks[:, layer, expert] < top_k
            axes.hlines(
                np.full(used.sum(), expert), edges[:-1][used], edges[1:][used], color=ORANGE, linewidth=2
            )
        axes.set_xscale("log")
        axes.set(
            xlim=(edges[-1], edges[0]), ylim=(experts - 0.5, -0.5), xlabel="noise level σ", ylabel="expert"
        )
        axes.set_yticks(range(experts))
        axes.set_title(f"Layer {layer}", loc="left", fontsize=10, color=INK)
        bar = figure.colorbar(mesh, ax=axes, fraction=0.05, pad=0.02, ticks=[0, scale])
        bar.outline.set_visible(False)
        if bar.solids is not None:
            bar.solids.set_rasterized(True)
        bar.ax.tick_params(labelsize=8, length=0, colors=INK)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_locator(NullLocator())
        style_axes(axes)
        figures.append(figure)
    return figures


def svg(figure: Figure, label: str) -> str:
    """Return a figure as an ``<svg>`` element that fits its container, for inlining in HTML.

    Text stays text, so it can be searched and takes the page's font. Equal figures give equal strings.

    Args:
        figure: The figure.
        label: What it shows, for readers who cannot see it.
    """
    buffer = StringIO()
    # The two options of saving exist only as rcParams; the context restores them.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "mode_policy"}):
        figure.savefig(buffer, format="svg", dpi=200, transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    # Names like "axes_1" are never referred to, and would repeat in a page with several figures.
    text = re.sub(r' id="[A-Za-z0-9]+_\d+"', "", text)
    root, rest = text.split(">", 1)
    root = re.sub(r' (?:width|height|version)="[^"]*"', "", root)
    return f'{root} role="img" aria-label="{escape(label)}">{rest}'.strip()


def _curve(metrics: Sequence[Mapping[str, Any]], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Return steps and finite values of ``key``, by step."""
    points = {
        row["step"]: float(row[key])
        for row in metrics
        if "step" in row and isinstance(row.get(key), int | float) and math.isfinite(row[key])
    }
    steps = sorted(points)
    return np.array(steps, dtype=np.float64), np.array([points[step] for step in steps])


def _running_median(values: np.ndarray) -> np.ndarray:
    half = max(2, values.size // 60)
    padded = np.pad(values, half, mode="reflect")
    return np.median(np.lib.stride_tricks.sliding_window_view(padded, 2 * half + 1), axis=-1)


def style_axes(axes: Axes, grid: str = "") -> None:
    """Give axes the look of all our figures; ``grid`` is "", "x", "y" or "both"."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(colors=INK, labelsize=9)
    axes.xaxis.label.set(color=INK, fontsize=9)
    axes.yaxis.label.set(color=INK, fontsize=9)
    if grid:
        axes.set_axisbelow(True)
        axes.grid(axis=grid, color="#E4E7EB", linewidth=0.8)  # type: ignore[arg-type]
