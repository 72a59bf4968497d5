"""Making stores from stores: copies of chosen episodes, of one store or of several, and appending to one.

New stores are written by `StoreWriter`: they appear whole or not at all, and what an interrupted run has
written is taken up by the next one with the same sources.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from mode_datasets.inspection import episode_digests
from mode_datasets.profiles import ProfileName
from mode_datasets.schema import Provenance
from mode_datasets.store import DemonstrationStore, open_store
from mode_datasets.writer import StoreWriter
from mode_policy.convention import Convention, Side, differences
from mode_policy.errors import ConventionError, DataError, did_you_mean
from mode_policy.types import ACTION, Episode, Features, InstructionTable, Task

#: An interrupted run loses so many episodes at most.
COMMIT_EVERY = 25

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True, eq=False)
class Selection:
    """Episodes of a store, in the order in which they are copied.

    Attributes:
        store: Where they are.
        episodes: int64 ``(n,)``, their numbers.
    """

    store: DemonstrationStore
    episodes: np.ndarray

    @classmethod
    def whole(cls, store: DemonstrationStore) -> Selection:
        """Return all episodes of a store."""
        return cls(store=store, episodes=np.arange(store.num_episodes))


def copy_episodes(
    selections: Sequence[Selection],
    path: Path | str,
    *,
    keys: Sequence[str] | None = None,
    profile: ProfileName | None = None,
    command: str = "",
    overwrite: bool = False,
    rename_tasks: bool = False,
    progress: Progress = lambda done, total: None,
) -> None:
    """Write the selected episodes, one selection after another, to a new store.

    Conventions that only one of the stores knows hold for the new one. Its provenance names its sources.

    Args:
        selections: The episodes.
        path: Folder of the new store.
        keys: Features to copy; all by default.
        profile: How images are written; by default as in the first store.
        command: Command line, for the provenance.
        overwrite: Replace a store that is already at ``path``.
        rename_tasks: Add the name of their store to tasks that share a name but not the instruction.
        progress: Is called with the number of episodes copied, and of all.

    Raises:
        ConventionError: if the stores do not mean the same by their numbers.
        DataError: if nothing is selected, features differ, or writing fails.
    """
    selections = [s for s in selections if len(s.episodes)]
    if not selections:
        raise DataError("no episode is left to copy; loosen the conditions")
    stores = [selection.store for selection in selections]
    features = common_features(stores, keys)
    names = _task_names(stores, rename_tasks)
    writer = StoreWriter(
        path,
        features,
        common_convention(stores, features),
        Provenance(source=_source(selections), licence=_licence(stores), command=command),
        profile=profile or stores[0].profile or "train",
        overwrite=overwrite,
        resume=True,
        commit_every=COMMIT_EVERY,
    )
    total = sum(len(s.episodes) for s in selections)
    with writer:
        taken_up = writer.num_episodes
        for done, (of, index) in enumerate(_all(selections)):
            if done >= taken_up:
                writer.append(_with(stores[of].episode(index), features, names[of]))
            progress(done + 1, total)
        if (table := common_instructions(stores)) is not None:
            writer.set_instructions(table)


def append_episodes(
    path: Path | str,
    selections: Sequence[Selection],
    *,
    rename_tasks: bool = False,
    progress: Progress = lambda done, total: None,
) -> int:
    """Append the selected episodes to a store in place; those that it holds already are left out.

    That makes it safe to repeat after an interruption.

    Returns:
        The number of episodes that were appended.

    Raises:
        ConventionError: if the stores do not mean the same by their numbers.
        DataError: if features differ, or writing fails.
    """
    target = open_store(path)
    stores = [target, *(selection.store for selection in selections)]
    features = common_features(stores, list(target.features))
    common_convention(stores, features)
    names = _task_names(stores, rename_tasks)
    table = common_instructions(stores) if target.instruction_table is not None else None
    known = set(episode_digests(target))
    digests = [episode_digests(selection.store) for selection in selections]
    chosen = [
        replace(s, episodes=np.array([i for i in s.episodes if d[i] not in known], dtype=np.int64))
        for s, d in zip(selections, digests, strict=True)
    ]
    total = sum(len(s.episodes) for s in chosen)
    if not total:
        return 0
    writer = StoreWriter.append_to(path, commit_every=COMMIT_EVERY)
    source = f"{target.provenance.source}; appended: {_source(chosen)}"
    writer.provenance = replace(target.provenance, source=source, licence=_licence(stores))
    with writer:
        for done, (of, index) in enumerate(_all(chosen)):
            writer.append(_with(chosen[of].store.episode(index), features, names[of + 1]))
            progress(done + 1, total)
        if table is not None:
            writer.set_instructions(table)
    return total


def side(store: DemonstrationStore, name: str | None = None) -> Side:
    """Return a store as one side of a comparison."""
    return Side(name=name or store.location.name, features=store.features, convention=store.convention)


def common_features(stores: Sequence[DemonstrationStore], keys: Sequence[str] | None) -> Features:
    """Return the features that all stores have in common; names and units that only one knows count for all.

    Args:
        stores: One or more.
        keys: Those that are wanted; by default all, and then all stores must have all of them.

    Raises:
        DataError: if a store lacks one, or describes it otherwise.
    """
    wanted = list(dict.fromkeys(keys if keys is not None else [k for s in stores for k in s.features]))
    if ACTION not in wanted:
        wanted.append(ACTION)
    shared = sorted(set.intersection(*(set(s.features) for s in stores)))
    result: Features = {}
    for key in wanted:
        for store in stores:
            if key not in store.features:
                hint = did_you_mean(key, store.features)
                raise DataError(
                    f"{store.location} has no feature {key!r}.{hint} To leave it out, name those that all "
                    f"have: --features {' '.join(shared)}"
                )
        described = [store.features[key] for store in stores]
        if len({(f.shape, f.dtype, f.angles) for f in described}) > 1:
            listed = "; ".join(
                f"{s.location}: {f.dtype} {f.shape}, angles {f.angles}"
                for s, f in zip(stores, described, strict=True)
            )
            raise DataError(
                f"feature {key!r} is not the same in all stores ({listed}); leave it out with --features"
            )
        result[key] = replace(
            described[0],
            names=next((f.names for f in described if f.names), ()),
            unit=next((f.unit for f in described if f.unit), ""),
        )
    return result


def common_convention(stores: Sequence[DemonstrationStore], features: Collection[str]) -> Convention:
    """Return the convention of several stores; what only one knows counts for all.

    Args:
        stores: One or more.
        features: Those that matter; others may differ.

    Raises:
        ConventionError: if two of them differ.
    """
    sides = [side(store) for store in stores]
    sides = [replace(s, features={k: s.features[k] for k in s.features if k in features}) for s in sides]
    for (a, of_a), (b, of_b) in itertools.combinations(zip(stores, sides, strict=True), 2):
        found = differences(of_a, of_b)
        if found:
            lines = [f"  {d.what}: {d.first} and {d.second}\n    fix: {d.fix}" for d in found]
            raise ConventionError(
                f"{a.location} and {b.location} do not mean the same by their numbers, so they cannot be one "
                "store; train on both as a mixture, or convert one of them:\n" + "\n".join(lines)
            )
    known = [s.convention.to_json() for s in stores]
    return Convention(
        **{
            name: next((c[name] for c in known if c[name] not in ("unknown", [], None)), known[0][name])
            for name in known[0]
        }
    )


def common_instructions(stores: Sequence[DemonstrationStore]) -> InstructionTable | None:
    """Return the instruction tables of several stores as one; None if one has none or another encoder's."""
    tables = [store.instruction_table for store in stores]
    if any(t is None or tables[0] is None or t.encoder != tables[0].encoder for t in tables):
        return None
    rows = {text: row for t in tables if t for text, row in zip(t.instructions, t.embeddings, strict=True)}
    assert tables[0] is not None
    return InstructionTable(
        encoder=tables[0].encoder, instructions=tuple(rows), embeddings=torch.stack(list(rows.values()))
    )


def _task_names(stores: Sequence[DemonstrationStore], rename: bool) -> list[dict[str, str]]:
    """Return, for each store, the new name of each of its tasks."""
    texts: dict[str, set[str]] = {}
    for task in [task for store in stores for task in store.tasks]:
        texts.setdefault(task.name, set()).add(task.instruction)
    clashing = {name for name, found in texts.items() if len(found) > 1}
    if clashing and not rename:
        name = min(clashing)
        raise DataError(
            f"task {name!r} has different instructions in these stores: {' and '.join(sorted(texts[name]))}; "
            "add the names of the stores to those of the tasks with --rename-tasks"
        )
    return [
        {
            t.name: f"{t.name} ({store.location.name.removesuffix('.zarr')})"
            if t.name in clashing
            else t.name
            for t in store.tasks
        }
        for store in stores
    ]


def _all(selections: Sequence[Selection]) -> list[tuple[int, int]]:
    return [(of, int(i)) for of, selection in enumerate(selections) for i in selection.episodes]


def _with(episode: Episode, features: Features, names: dict[str, str]) -> Episode:
    return replace(
        episode,
        arrays={key: episode.arrays[key] for key in features},
        task=Task(name=names[episode.task.name], instruction=episode.task.instruction),
    )


def _source(selections: Sequence[Selection]) -> str:
    """Say which episodes of which stores; the digest tells apart what the words do not."""
    parts = []
    for selection in selections:
        store, chosen = selection.store, selection.episodes
        digests = episode_digests(store)
        digest = hashlib.sha256(b"".join(digests[i] for i in chosen)).hexdigest()[:12]
        count = f"{len(chosen)} of {store.num_episodes} episodes"
        parts.append(f"{store.location.name} ({count}, {digest}; {store.provenance.source})")
    return " + ".join(parts)


def _licence(stores: Sequence[DemonstrationStore]) -> str:
    return " AND ".join(dict.fromkeys(store.provenance.licence for store in stores))
