"""Whether demonstrations can be used with a policy, or together with other demonstrations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from mode_policy.convention import Difference, Side, differences, missing
from mode_policy.normalization import Statistics
from mode_policy.types import Feature, feature_kind

Verdict = Literal["same", "unknown", "spare", "range", "differs"]

#: Ranges are worth a look if one is so many times the other, or if they do not meet.
RANGE_RATIO = 3.0

_LOOKS = {"same": "green", "unknown": "cyan", "spare": "dim", "range": "yellow", "differs": "bold red"}


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is compared: a side with its statistics, empty where it has none."""

    side: Side
    statistics: Statistics = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of a comparison.

    Attributes:
        what: E.g. ``"gripper"`` or a feature.
        first, second: What it is on both sides.
        verdict: ``differs`` must be set right; ``range`` is worth a look; ``spare`` is in the first only,
            which does no harm; ``unknown`` could not be compared.
        fix: What to do about it.
    """

    what: str
    first: str
    second: str
    verdict: Verdict
    fix: str = ""


def compare(data: Subject, other: Subject) -> list[Row]:
    """Compare demonstrations with what they are to be used with: conventions, features, ranges."""
    a, b = data.side, other.side
    found = {d.what: d for d in [*differences(a, b), *missing(a, b)]}
    rows = []
    for what, first, second in zip(_NAMES, _said(a), _said(b), strict=True):
        known = "unknown" not in (first, second)
        rows.append(_row(what, first, second, found.pop(what, None), "same" if known else "unknown"))
    for key in sorted({*a.features, *b.features}, key=lambda key: (feature_kind(key), key)):
        first, second = _described(a.features.get(key)), _described(b.features.get(key))
        rows.append(_row(key, first, second, found.pop(key, None), "same" if key in b.features else "spare"))
    rows += [_row(d.what, d.first, d.second, d, "differs") for d in found.values()]
    for key in sorted({*data.statistics} & {*other.statistics}):
        rows += _ranges(key, a.features[key], data.statistics[key], other.statistics[key])
    return rows


def comparison_table(first: str, second: str, rows: list[Row]) -> RenderableType:
    """Return a comparison for a `rich.console.Console`, and below it how to set right what differs."""
    table = Table("", "", first, second, box=box.SIMPLE_HEAD, padding=(0, 1))
    for column in table.columns:
        column.overflow = "fold"
    for row in rows:
        table.add_row(Text(row.verdict, style=_LOOKS[row.verdict]), row.what, row.first, row.second)
    wrong = [row for row in rows if row.verdict == "differs"]
    lines = [Text.assemble((f"{row.what}: ", "bold"), row.fix) for row in wrong]
    end = f"{len(wrong)} differences; to set them right:" if wrong else "nothing that is known to differ"
    return Group(table, Text(end, style="bold red" if wrong else "green"), *lines)


_NAMES = ("control rate", "action kind", "action frame", "action scale", "gripper")


def _said(side: Side) -> tuple[str, ...]:
    c = side.convention
    rate = "unknown" if c.fps is None else f"{c.fps:g} Hz"
    scale = str(list(c.action_scale)) if c.action_scale else "unknown"
    return rate, c.action_kind, c.action_frame, scale, c.gripper


def _described(feature: Feature | None) -> str:
    if feature is None:
        return "absent"
    if len(feature.shape) == 3:
        return f"{feature.shape[0]} × {feature.shape[1]} pixels"
    dims = f"{feature.shape[0]} dimension{'s' * (feature.shape[0] != 1)}"
    return f"{dims}, {feature.unit}" if feature.unit else dims


def _row(what: str, first: str, second: str, difference: Difference | None, verdict: Verdict) -> Row:
    if difference is None:
        return Row(what=what, first=first, second=second, verdict=verdict)
    return Row(
        what=what, first=difference.first, second=difference.second, verdict="differs", fix=difference.fix
    )


def _ranges(
    key: str, feature: Feature, a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]
) -> list[Row]:
    """Return the dimensions whose 98 % ranges are far apart: often another unit, frame or scale."""
    if a["q01"].shape != b["q01"].shape:
        return []
    span_a, span_b = a["q99"] - a["q01"], b["q99"] - b["q01"]
    small = 1e-5 * max(span_a.max(initial=0), span_b.max(initial=0))
    varies = (span_a > small) & (span_b > small)
    apart = (a["q01"] > b["q99"]) | (b["q01"] > a["q99"])
    larger, lesser = np.maximum(span_a, span_b), np.minimum(span_a, span_b)
    flagged = varies & (apart | (larger > RANGE_RATIO * lesser))
    names = feature.names or tuple(f"dimension {i}" for i in range(feature.shape[0]))
    return [
        Row(
            what=f"{key}: {names[dim]}",
            first=f"{a['q01'][dim]:.3g} … {a['q99'][dim]:.3g}",
            second=f"{b['q01'][dim]:.3g} … {b['q99'][dim]:.3g}",
            verdict="range",
        )
        for dim in np.flatnonzero(flagged)
    ]
