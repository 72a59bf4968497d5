"""Figures of a store: lengths, tasks, values over time, and how the state follows the action.

Legend: T steps of all episodes, N episodes, L lags.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mode_datasets.check.contents import Contents
from mode_datasets.check.lag import SURE, Lag
from mode_policy.evaluation.plots import BLUE, GREY, INK, ORANGE, style_axes
from mode_policy.types import ACTION

#: Points of a curve, bins of a histogram: more cannot be seen.
_POINTS, _BINS = 80, 40

_CYCLE = (BLUE, ORANGE, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", INK)


def lengths_figure(contents: Contents) -> Figure:
    """Return a histogram of the episodes' lengths."""
    lengths = contents.store.episode_lengths
    figure = Figure(figsize=(4.6, 2.2), layout="constrained")
    axes = figure.add_subplot()
    bins = np.histogram_bin_edges(lengths, bins=min(_BINS, max(1, int(np.ptp(lengths)) + 1)))
    axes.hist(lengths, bins=bins.tolist(), color=BLUE, alpha=0.75)
    axes.axvline(float(np.median(lengths)), color=ORANGE, linewidth=1.4)
    axes.set(xlabel="steps of an episode (line: median)", ylabel="episodes")
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    style_axes(axes, grid="y")
    return figure


def tasks_figure(contents: Contents) -> Figure:
    """Return horizontal bars of the episodes of each task."""
    store = contents.store
    counts = np.bincount(store.episode_tasks, minlength=len(store.tasks))
    figure = Figure(figsize=(4.6, 0.7 + 0.2 * len(counts)), layout="constrained")
    axes = figure.add_subplot()
    axes.barh(range(len(counts)), counts, height=0.62, color=BLUE, alpha=0.75)
    for row, count in enumerate(counts):
        axes.text(count, row, f" {count}", va="center", color=INK, fontsize=8)
    axes.set_yticks(range(len(counts)), [task.name for task in store.tasks], parse_math=False)
    axes.set(xlabel="episodes", ylim=(len(counts) - 0.4, -0.6))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.tick_params(axis="y", length=0)
    style_axes(axes, grid="x")
    return figure


def values_figure(
    contents: Contents, key: str, dim: int, episodes: Sequence[int], marked: Sequence[int]
) -> Figure:
    """Return one dimension of a feature over the course of some episodes, and a histogram of all its values.

    Args:
        contents: The store.
        key: Of the feature.
        dim: Its dimension.
        episodes: Those that are drawn.
        marked: Those of them that are drawn in another colour, on top.
    """
    x = contents.vectors[key][:, dim]
    figure = Figure(figsize=(3.4, 1.9), layout="constrained")
    over_time, histogram = figure.subplots(1, 2, sharey=True, width_ratios=(4, 1))
    starts, ends = contents.store.episode_starts, contents.store.episode_ends
    for episode in sorted(episodes, key=lambda e: e in marked):
        of_episode = x[starts[episode] : ends[episode]]
        extremes = starts[episode] + np.array([of_episode.argmin(), of_episode.argmax()])
        even = np.linspace(starts[episode], ends[episode] - 1, _POINTS).astype(int)
        at = np.union1d(even, extremes)
        style = {"color": ORANGE, "alpha": 0.9} if episode in marked else {"color": BLUE, "alpha": 0.4}
        over_time.plot(at - starts[episode], x[at], linewidth=0.9, **style)
    values = x[np.isfinite(x)]
    histogram.hist(values, bins=_BINS, orientation="horizontal", color=GREY, alpha=0.7)
    title = contents.name(key, dim)
    over_time.set_title(title, loc="left", fontsize=10, color=INK, parse_math=False)
    over_time.set_xlabel("step")
    over_time.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    over_time.yaxis.set_major_locator(MaxNLocator(5))
    style_axes(over_time, grid="y")
    style_axes(histogram)
    histogram.spines[["left", "bottom"]].set_visible(False)
    histogram.tick_params(left=False, bottom=False, labelbottom=False, labelleft=False)
    return figure


def lag_figure(contents: Contents, lag: Lag) -> Figure:
    """Return how strongly the state's change is tied to the action, over the lag between them."""
    figure = Figure(figsize=(4.6, 2.4), layout="constrained")
    axes = figure.add_subplot()
    for dim, curve in enumerate(lag.curves):
        colour = _CYCLE[dim % len(_CYCLE)] if curve.max() >= SURE else "#C5CDD5"
        label = contents.name(ACTION, dim) if dim < 8 else None
        axes.plot(lag.lags, curve, color=colour, linewidth=1.4, marker=".", markersize=3, label=label)
    axes.axvline(0, color=GREY, linewidth=0.8)
    if lag.steps is not None:
        axes.axvline(lag.steps, color=ORANGE, linewidth=1.4, linestyle="--")
    axes.set(xlabel="steps from the action to the state's change", ylabel="correlation", ylim=(0, 1.02))
    axes.xaxis.set_major_locator(MaxNLocator(7, integer=True))
    axes.legend(frameon=False, fontsize=8)
    style_axes(axes, grid="y")
    return figure
