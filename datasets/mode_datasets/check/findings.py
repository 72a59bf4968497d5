"""What a check of a store found, for people, programs and CI."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from mode_policy.errors import DataError

Severity = Literal["error", "warning", "info"]

SEVERITIES: tuple[Severity, ...] = get_args(Severity)

#: Name of each check and what it finds.
CHECKS: Mapping[str, str] = {
    "unreadable": "a store that cannot be opened: metadata, lengths, tables that disagree",
    "corrupt_file": "files that are missing, cut short or changed",
    "not_finite": "NaN and infinite values",
    "statistics": "statistics that are not those of the data",
    "dead_dimension": "dimensions that never vary",
    "outlier": "values far beyond nearly all others",
    "saturation": "actions at their bounds",
    "stuck_state": "states that repeat while the actions go on",
    "still_episode": "episodes in which nothing changes",
    "short_episode": "episodes much shorter than the others of their task",
    "duplicate_episode": "episodes that are there twice, exactly or nearly",
    "time_stamp": "gaps, backward steps and wrong rates of time stamps",
    "lag": "steps by which the state follows the action, or precedes it",
    "frozen_frames": "pictures that stand still while the robot moves",
    "repeated_frames": "cameras slower than the control rate",
    "blank_frames": "pictures of a single colour",
    "same_camera": "one camera recorded under two names",
    "convention": "conventions that are unknown or contradicted by the values",
    "instruction": "instructions that are empty, shared by tasks, or badly embedded",
    "provenance": "an unknown licence",
    "leftover": "what interrupted writers left, and arrays that nobody reads",
}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that is wrong with a store, or worth knowing.

    Attributes:
        check: Name of the check, e.g. ``"frozen_frames"``; of `CHECKS`.
        severity: ``error``: training fails or learns something wrong; ``warning``: probably wrong, look at
            it; ``info``: good to know.
        what: What was found, in a sentence.
        fix: What to do about it.
        feature: Feature key that it concerns, or empty.
        episodes: Episodes that it concerns and that would have to go; empty where it concerns the whole
            store.
        step: Step in the first of the episodes where it shows first; None if it has none.
        files: Files that it concerns, relative to the store.
    """

    check: str
    severity: Severity
    what: str
    fix: str
    feature: str = ""
    episodes: tuple[int, ...] = ()
    step: int | None = None
    files: tuple[str, ...] = ()

    def where(self) -> str:
        """Return feature, episodes and step in a few words."""
        parts = [self.feature] if self.feature else []
        if self.episodes:
            parts.append(f"episode{'s' * (len(self.episodes) > 1)} {shortened(self.episodes)}")
        if self.step is not None:
            parts.append(f"step {self.step}")
        return ", ".join(parts)


@dataclass(frozen=True, kw_only=True)
class Report:
    """All findings about a store, the worst first.

    Attributes:
        path: Of the store.
        summary: Its key figures, see `DemonstrationStore.summary`; empty where it could not be opened.
        findings: What was found.
        checks: Names of the checks that were made.
    """

    path: str
    summary: Mapping[str, Any] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()
    checks: tuple[str, ...] = ()

    def count(self, severity: Severity) -> int:
        """Return the number of findings of a severity."""
        return sum(finding.severity == severity for finding in self.findings)

    def headline(self) -> str:
        """Return the result in a few words."""
        if not self.findings:
            return "nothing found"
        names = {"error": "errors", "warning": "warnings", "info": "notes"}
        counts = ((self.count(s), names[s]) for s in SEVERITIES)
        return ", ".join(f"{n} {name[:-1] if n == 1 else name}" for n, name in counts if n)

    def exit_code(self, strict: bool = False) -> int:
        """Return 1 if there are errors, 2 if there are warnings and ``strict`` is set, else 0."""
        if self.count("error"):
            return 1
        return 2 if strict and self.count("warning") else 0

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready mapping."""
        return {
            "path": self.path,
            "headline": self.headline(),
            "counts": {severity: self.count(severity) for severity in SEVERITIES},
            "checks": list(self.checks),
            "findings": [_plain(asdict(finding)) for finding in self.findings],
            "summary": dict(self.summary),
        }


def bad_episodes(
    report: Mapping[str, Any], severities: Iterable[str] = ("error",), checks: Iterable[str] = ()
) -> list[int]:
    """Return the episodes that the findings of `Report.to_json` concern, sorted.

    Args:
        report: What ``mode-data check --json`` printed.
        severities: Of the findings that count.
        checks: Names of further checks whose findings count, whatever their severity.

    Raises:
        DataError: if it is no such report.
    """
    severities, checks = set(severities), set(checks)
    try:
        found = [f for f in report["findings"] if f["severity"] in severities or f["check"] in checks]
        return sorted({int(episode) for f in found for episode in f["episodes"]})
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"this is no report of `mode-data check --json` ({type(error).__name__}: {error})"
        ) from error


def shortened(items: Iterable[Any], most: int = 6) -> str:
    """Return ``1, 2, 3 and 17 more``."""
    texts = [str(item) for item in items]
    shown = ", ".join(texts[:most])
    return shown if len(texts) <= most else f"{shown} and {len(texts) - most} more"


def _plain(data: dict[str, Any]) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in data.items()}


def plural(number: int, noun: str) -> str:
    """Return ``1 step`` or ``3 steps``."""
    return f"{number} {noun}{'s' * (number != 1)}"
