"""Checks of time: time stamps, and how long the state takes to follow the action."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mode_datasets.check.contents import Contents
from mode_datasets.check.findings import Finding, plural
from mode_policy.types import ACTION

#: A gap is an interval above this many periods; rates differ beyond this share.
GAP_PERIODS, RATE_SLACK = 1.5, 0.05

#: A lag is long above so many seconds and steps.
LONG_SECONDS, LONG_STEPS = 0.25, 3

#: Beyond this correlation, and this much above the other's, the data show which kind of actions they are.
KIND_SURE, KIND_MARGIN = 0.7, 0.25


def time_stamps(contents: Contents) -> Iterator[Finding]:
    """Hold time stamps, where there are any, to the control rate."""
    period = 1 / contents.store.fps
    for key, column in contents.stamp_columns:
        seconds = contents.vectors[key][:, column].astype(np.float64)
        interval = np.diff(seconds, prepend=np.nan)
        interval[~contents.continues] = np.nan
        known = interval[np.isfinite(interval)]
        if not len(known):
            continue
        backward = np.flatnonzero(interval <= 0)
        if len(backward):
            yield Finding(
                check="time_stamp",
                severity="error",
                what=f"{plural(len(backward), 'time stamp')} that do not increase",
                fix="store seconds since the start of the episode: float32 cannot hold a clock's",
                feature=key,
                episodes=contents.episodes_of(backward),
                step=contents.step_in_episode(int(backward[0])),
            )
            continue
        typical = float(np.median(known))
        if abs(typical / period - 1) > RATE_SLACK:
            yield Finding(
                check="time_stamp",
                severity="warning",
                what=f"time stamps are {1 / typical:.4g} Hz apart, the control rate is {1 / period:.4g} Hz",
                fix="correct the control rate (fps) and convert again",
                feature=key,
            )
        gaps = np.flatnonzero(interval > GAP_PERIODS * typical)
        if len(gaps):
            yield Finding(
                check="time_stamp",
                severity="warning",
                what=f"{plural(len(gaps), 'gap')}, up to {np.nanmax(interval):.3g} s, not {typical:.3g} s",
                fix="steps were dropped: leave these episodes out, or resample them when converting",
                feature=key,
                episodes=contents.episodes_of(gaps),
                step=contents.step_in_episode(int(gaps[0])),
            )


def lag(contents: Contents) -> Iterator[Finding]:
    """Tell by how many steps the state follows the action; one that moves first was recorded out of step."""
    found = contents.lag
    if found is None or found.steps is None:
        return
    fps, steps = contents.store.fps, found.steps
    sure = f"correlation {found.curves.max():.2f}, as {found.kind} actions"
    long = max(LONG_STEPS, LONG_SECONDS * fps)
    if steps < 0:
        yield Finding(
            check="lag",
            severity="warning",
            what=f"the state moves {plural(-steps, 'step')} before the action ({sure})",
            fix="actions were recorded late, or are states of the same step: shift them when converting",
            feature=ACTION,
        )
    else:
        after = f"by {plural(steps, 'step')}, {1000 * steps / fps:.0f} ms" if steps else "at once"
        yield Finding(
            check="lag",
            severity="warning" if steps > long else "info",
            what=f"the state follows the action {after} ({sure})",
            fix="a slow robot, or actions recorded early: if the latter, shift them to later steps"
            if steps > long
            else "as expected of a controlled robot",
            feature=ACTION,
        )


def action_kind(contents: Contents) -> Iterator[Finding]:
    """Find actions that are said to be targets and behave like changes, or the reverse."""
    found, said = contents.lag, contents.store.convention.action_kind
    if found is None or said == "unknown":
        return
    expected = "absolute" if said == "absolute" else "delta"
    high = float(found.curves.max())
    if found.kind != expected and high >= KIND_SURE and high - found.other >= KIND_MARGIN:
        yield Finding(
            check="convention",
            severity="warning",
            what=f"actions are said to be {said}, but the state follows them as {found.kind} ones "
            f"(correlation {high:.2f}, as {expected} ones {found.other:.2f})",
            fix="correct it: mode-data migrate PATH action_kind=…",
            feature=ACTION,
        )
