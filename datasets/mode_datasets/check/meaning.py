"""Checks of what a store says about itself: statistics, conventions, instructions, origin, leftovers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from shlex import quote

import numpy as np

from mode_datasets import schema
from mode_datasets.check.contents import Contents
from mode_datasets.check.findings import Finding, plural, shortened
from mode_datasets.location import LocalFolder, Location
from mode_datasets.upkeep import wrong_statistics
from mode_policy.normalization import compute_statistics
from mode_policy.types import ACTION

#: What a gripper's values look like by convention.
_GRIPPER_RANGES = {
    "plus_closes": (-1.0, 1.0),
    "plus_opens": (-1.0, 1.0),
    "one_closes": (0.0, 1.0),
    "one_opens": (0.0, 1.0),
}


def statistics(contents: Contents) -> Iterator[Finding]:
    """Compare the statistics that are stored with those of the data."""
    stored = contents.attributes.get("statistics")
    if not stored or not contents.finite.all():
        return
    fix = f"if the data are right, renew them: mode-data stats {quote(str(contents.store.location))} --write"
    if stored["episodes"] not in (None, contents.store.num_episodes):
        return  # computed anew when the store is opened, which a note says
    if stored["computed_from"] != schema.fingerprint(contents.vectors):
        yield Finding(
            check="statistics",
            severity="error",
            what="statistics were computed from other data than the store holds",
            fix=fix,
        )
    wrong = wrong_statistics(contents.store.statistics, compute_statistics(contents.vectors))
    for key in dict.fromkeys(w.key for w in wrong):
        of_key = [w for w in wrong if w.key == key]
        named = [
            f"{w.name} {contents.name(key, w.dimension)}: {w.stored:.4g}, not {w.true:.4g}" for w in of_key
        ]
        yield Finding(
            check="statistics",
            severity="error",
            what=f"{plural(len(of_key), 'value')} not those of the data: {shortened(named, most=3)}",
            fix=fix,
            feature=key,
        )


def conventions(contents: Contents) -> Iterator[Finding]:
    """Tell which conventions are not known, and whether the gripper's values fit its convention."""
    convention = contents.store.convention
    unknown = [n for n in ("action_kind", "action_frame", "gripper") if getattr(convention, n) == "unknown"]
    if unknown:
        lag = contents.lag
        seems = {"action_kind": lag.kind} if lag is not None and lag.steps is not None else {}
        settings = [f"{name}={seems.get(name, '…')}" for name in unknown]
        native = bool(contents.attributes)
        yield Finding(
            check="convention",
            severity="info",
            what=f"not known: {', '.join(name.replace('_', ' ') for name in unknown)}; a mismatch with a "
            "policy or an environment goes unnoticed",
            fix=f"state it: mode-data migrate {quote(str(contents.store.location))} {' '.join(settings)}"
            if native
            else f"state it when training: {' '.join(f'dataset.adapt.declare.{s}' for s in settings)}",
            feature=ACTION,
        )
    if convention.gripper in _GRIPPER_RANGES and contents.finite.any():
        low, high = _GRIPPER_RANGES[convention.gripper]
        values = contents.actions[contents.finite, -1]
        middle = (low + high) / 2
        outside = values.min() < low - 0.5 or values.max() > high + 0.5
        one_sided = low < 0 <= values.min() and values.max() > middle
        if outside or one_sided:
            yield Finding(
                check="convention",
                severity="warning",
                what=f"the gripper is said to go from {low:g} to {high:g} ({convention.gripper}), its values "
                f"from {values.min():.3g} to {values.max():.3g}",
                fix="correct the convention: mode-data migrate PATH gripper=…",
                feature=ACTION,
            )


def instructions(contents: Contents) -> Iterator[Finding]:
    """Find instructions that are empty or shared by different tasks, and embeddings that tell nothing."""
    store = contents.store
    empty = [task.name for task in store.tasks if not task.instruction.strip()]
    if empty:
        rows = [row for row, task in enumerate(store.tasks) if task.name in empty]
        yield Finding(
            check="instruction",
            severity="warning",
            what=f"tasks without an instruction: {shortened(empty)}",
            fix="a policy with language cannot tell them apart: convert again with instructions",
            episodes=tuple(np.flatnonzero(np.isin(store.episode_tasks, rows)).tolist()),
        )
    by_text = defaultdict(list)
    for task in store.tasks:
        by_text[" ".join(task.instruction.lower().split())].append(task.name)
    for text, names in by_text.items():
        if text and len(names) > 1:
            yield Finding(
                check="instruction",
                severity="warning",
                what=f"tasks {shortened(names)} have the same instruction {text!r}",
                fix="give different tasks different instructions, or one name to equal tasks",
            )
    unused = [t.name for row, t in enumerate(store.tasks) if row not in set(store.episode_tasks.tolist())]
    if unused:
        yield Finding(
            check="instruction",
            severity="info",
            what=f"tasks without episodes: {shortened(unused)}",
            fix="nothing is learnt of them; mode-data filter leaves them out",
        )
    yield from _embeddings(contents)


def _embeddings(contents: Contents) -> Iterator[Finding]:
    table = contents.store.instruction_table
    if table is None:
        return
    x = table.embeddings.numpy()
    useless = ~np.isfinite(x).all(1) | (np.abs(x).max(1, initial=0) == 0)
    _, counts = np.unique(x[~useless], axis=0, return_counts=True)
    if useless.any() or (counts > 1).any():
        yield Finding(
            check="instruction",
            severity="error",
            what=f"of {len(x)} embeddings of instructions, {useless.sum()} are zero or not finite, and "
            f"{counts[counts > 1].sum()} equal another",
            fix=f"the text encoder {table.encoder!r} failed: make the store again",
        )


def origin(contents: Contents) -> Iterator[Finding]:
    """Tell that a licence is not known."""
    provenance = contents.store.provenance
    if provenance.licence.strip().lower() in ("", "unknown", "none"):
        yield Finding(
            check="provenance",
            severity="info",
            what="the licence of the data is not known",
            fix="ask who made the data before you share them, or what is trained on them",
        )


def notes(contents: Contents) -> Iterator[Finding]:
    """Pass on what was noted when the store was opened, such as steps that were never acknowledged."""
    for note in contents.store.notes:
        yield Finding(
            check="leftover",
            severity="warning",
            what=note,
            fix="the store is used without it; to tidy up: mode-data filter PATH COPY",
        )


def remains(location: Location) -> Iterator[Finding]:
    """Find what an interrupted writer left beside a store."""
    if not isinstance(location, LocalFolder):
        return
    path = location.path.absolute()
    for suffix, what in (
        ("partial", "an interrupted writer left an unfinished store beside it"),
        ("replaced", "a store that was being replaced was left beside it"),
    ):
        rest = path.with_name(f".{path.name}.{suffix}")
        if rest.exists():
            yield Finding(
                check="leftover",
                severity="warning",
                what=f"{what}: {rest}",
                fix="run the writer's command again to go on, or delete it",
            )
