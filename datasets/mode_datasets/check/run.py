"""Checking a store from its files to its meaning."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mode_datasets import reading, schema
from mode_datasets.check import cameras, episodes, files, meaning, timing, values
from mode_datasets.check.contents import Contents
from mode_datasets.check.findings import CHECKS, SEVERITIES, Finding, Report
from mode_datasets.location import Location, locate
from mode_datasets.schema import ReplayBufferLayout
from mode_datasets.store import open_store
from mode_policy.errors import ConfigError, DataError, did_you_mean

_OF_CONTENTS: tuple[Callable[[Contents], Iterator[Finding]], ...] = (
    values.not_finite,
    values.dead_dimensions,
    values.outliers,
    values.saturation,
    values.stuck_states,
    values.still_episodes,
    episodes.short_episodes,
    episodes.duplicate_episodes,
    timing.time_stamps,
    timing.lag,
    timing.action_kind,
    meaning.statistics,
    meaning.conventions,
    meaning.instructions,
    meaning.origin,
    meaning.notes,
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Checked:
    """A store that has been checked.

    Attributes:
        report: What was found.
        contents: What could be read of the store, or None where it could not be opened.
    """

    report: Report
    contents: Contents | None


def _silent(what: str, done: int, total: int) -> None:
    pass


def check_store(
    path: Path | str | Location,
    layout: ReplayBufferLayout | None = None,
    *,
    ignore: Iterable[str] = (),
    progress: Callable[[str, int, int], None] = _silent,
) -> Checked:
    """Read everything in a store and look for what would harm training; nothing is written.

    Args:
        path: Folder or address of the store.
        layout: Description of a store of another layout.
        ignore: Names of checks whose findings are left out, of `CHECKS`.
        progress: Is called with what is read, how much of it has been read, and how much there is.

    Raises:
        DataError: if there is no zarr group at ``path``, or it needs a layout.
        ConfigError: if ``ignore`` names no check.
    """
    ignore = set(ignore)
    for name in sorted(ignore - set(CHECKS)):
        raise ConfigError(f"unknown check {name!r}.{did_you_mean(name, CHECKS)}")
    location = locate(path)
    group = reading.open_group(location)
    if layout is None and "schema_version" not in group.attrs:
        open_store(location)  # says what to do
    names = files.wanted_arrays(location, layout)
    found = [*files.damaged_metadata(location, names), *files.unread_arrays(location, layout)]
    found += meaning.remains(location)
    broken = {file for finding in found for file in finding.files}
    damage = {}
    small = [name for name in names if name not in broken and group[name].ndim <= 3]  # type: ignore[union-attr]
    for i, name in enumerate(small):
        damage[name] = files.read_files(location, reading.open_array(group, location, name))
        progress("vectors", i + 1, len(small))
    contents = None
    try:
        store = open_store(location, layout, check_statistics=False, lenient=True)
    except DataError as error:
        found.append(
            Finding(
                check="unreadable",
                severity="error",
                what=str(error).removeprefix(f"{location}: "),
                fix="no further check is possible before this is right",
            )
        )
        for name in names:
            if name not in broken and name not in damage:
                damage[name] = files.read_files(location, reading.open_array(group, location, name))
    else:
        attributes = schema.migrate(dict(group.attrs)) if layout is None else {}
        unread = {name: d.rows for name, d in damage.items()}
        contents = Contents(store=store, attributes=attributes, damage=unread)
        for check in _OF_CONTENTS:
            found += check(contents)
        found += cameras.check_cameras(contents, _scan(contents, progress))
    found += _damage(contents, damage)
    found = [finding for finding in found if finding.check not in ignore]
    found.sort(key=lambda finding: (SEVERITIES.index(finding.severity), list(CHECKS).index(finding.check)))
    report = Report(
        path=str(location),
        summary=contents.store.summary() if contents else {},
        findings=tuple(found),
        checks=tuple(name for name in CHECKS if name not in ignore),
    )
    return Checked(report=report, contents=contents)


def _scan(contents: Contents, progress: Callable[[str, int, int], None]) -> dict[str, cameras.Scan]:
    scans = {}
    for key in schema.image_keys(contents.store.features):
        done = 0

        def advance(frames: int, key: str = key) -> None:
            nonlocal done
            done += frames
            progress(key, done, contents.store.num_steps)

        scans[key] = cameras.scan(contents, key, advance)
    return scans


def _damage(contents: Contents | None, damage: Mapping[str, files.Damage]) -> Iterator[Finding]:
    """Tell which files are damaged, and, where that is known, which episodes they hold."""
    keys = {contents.store.array(key).path: key for key in contents.store.features} if contents else {}
    for name, what in damage.items():
        if not what.files:
            continue
        rows = np.flatnonzero(what.rows)
        if contents is None or name not in keys:
            yield what.finding("")
            continue
        rows = rows[rows < contents.store.num_steps]
        if len(rows):
            first = contents.step_in_episode(int(rows[0]))
            yield what.finding(keys[name], contents.episodes_of(rows), first)
