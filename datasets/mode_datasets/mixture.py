"""Several stores as one: other robots, other cameras, other numbers of episodes.

Every part is brought to the layout of the *target*, the first part: its cameras (absent ones are black, other
sizes are resized), its states, and its raw units. Parts that mean something else by their numbers, such as
another gripper sign, are refused. Parts are normalised each by its own statistics: a value
that is one deviation (or the upper end of the range) in its own store becomes one deviation (the upper end)
in the target's units, so that the policy, which normalises by the target's statistics, sees all parts on the
same scale. Control rates are made equal beforehand, with `mode_datasets.adapt`, or differ on purpose.

Legend: B batch, H history.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from mode_datasets.resize import resized
from mode_datasets.windows import Windows, tensors_of
from mode_policy.convention import Side, differences
from mode_policy.errors import ConventionError, DataError
from mode_policy.normalization import NormalizationMode, Normalizer
from mode_policy.types import ACTION, Batch, InstructionTable


@dataclass(frozen=True)
class MixturePart:
    """One part: its windows, and its share of the batches (relative to those of the others).

    Attributes:
        windows: Of its store.
        weight: Its share.
        any_rate: Whether its control rate may differ from the target's: then its actions stand for steps of
            another length.
    """

    windows: Windows
    weight: float
    any_rate: bool = False


class Mixture:
    """Windows of several stores, numbered one part after another.

    Args:
        parts: The target first.
        normalize_state: How the policy normalises states; parts are matched by the same statistics.
        normalize_action: How it normalises actions.

    Raises:
        DataError: if a part lacks a state or has other dimensions than the target, its control rate differs,
            or only some parts carry instructions, or of different encoders.
    """

    def __init__(
        self,
        parts: Sequence[MixturePart],
        *,
        normalize_state: NormalizationMode = "mean_std",
        normalize_action: NormalizationMode = "min_max",
    ) -> None:
        if not parts:
            raise DataError("a mixture needs at least one store")
        self.parts = tuple(parts)
        self.target = parts[0].windows
        for part in parts[1:]:
            self._check(part)
        self.offsets = np.cumsum([0, *(len(part.windows) for part in parts)])
        modes = dict.fromkeys(self.target.state_keys, normalize_state) | {ACTION: normalize_action}
        self._maps = [
            {key: _match(part.windows, self.target, key, mode) for key, mode in modes.items()}
            for part in parts
        ]

    def __len__(self) -> int:
        return int(self.offsets[-1])

    @property
    def fork_safe(self) -> bool:
        """Whether a process that was forked can go on reading."""
        return all(part.windows.fork_safe for part in self.parts)

    def batch(self, indices: np.ndarray, out: Batch | None = None) -> Batch:
        """Return the windows at ``indices``, int ``(B,)`` in ``[0, len(self))``, in the target's layout.

        Args:
            indices: Which.
            out: A batch of these shapes to fill; a new one by default.

        Raises:
            DataError: if an image's chunk file cannot be decoded.
        """
        number = np.searchsorted(self.offsets, indices, side="right") - 1
        out = out if out is not None else self.target.empty(len(indices))
        for i in np.unique(number):
            rows = np.flatnonzero(number == i)
            _put(self._part(int(i), indices[rows] - self.offsets[i]), out, torch.from_numpy(rows))
        return out

    def _part(self, number: int, indices: np.ndarray) -> Batch:
        """A part's windows in the target's layout."""
        batch = self.parts[number].windows.batch(indices)
        maps = self._maps[number]
        observation = batch.observation
        shape = (len(indices), self.target.spec.history)
        return replace(
            batch,
            observation=replace(
                observation,
                states={k: _affine(observation.states[k], maps[k]) for k in self.target.state_keys},
                images={
                    key: _fit(observation.images.get(key), (*shape, *self.target.store.features[key].shape))
                    for key in self.target.image_keys
                },
            ),
            actions=_affine(batch.actions, maps[ACTION]),
        )

    def _check(self, mixed: MixturePart) -> None:
        part, target = mixed.windows, self.target
        where = f"{part.store.location} does not mix with {target.store.location}"
        if part.spec != target.spec:
            raise DataError(f"{where}: cut both with the same history, chunk and stride")
        for key in (*target.state_keys, ACTION):
            if key != ACTION and key not in part.state_keys:
                raise DataError(f"{where}: it lacks {key!r}; leave that state out with dataset.state_keys")
            theirs, ours = part.store.features[key].shape, target.store.features[key].shape
            if theirs != ours:
                raise DataError(f"{where}: its {key!r} has {theirs[0]} dimensions, not {ours[0]}")
        # Each part is brought to the target's scale by its own statistics.
        harmless = ("action scale", "unit of", *(["control rate"] if mixed.any_rate else []))
        sides = (
            Side(name="", features=w.store.features, convention=w.store.convention) for w in (part, target)
        )
        found = [d for d in differences(*sides) if not d.what.startswith(harmless) and self._reads(d.what)]
        if found:
            lines = [
                f"  {d.what}: {d.first}, not {d.second}\n    fix, in its entry of dataset.mixture: "
                + d.fix.replace("dataset.adapt.", "adapt.")
                + (", or any_rate=true" if d.what == "control rate" else "")
                for d in found
            ]
            raise ConventionError(f"{where}, because its numbers mean something else:\n" + "\n".join(lines))
        tables = (part.store.instruction_table, target.store.instruction_table)
        encoders = {None if table is None else table.encoder for table in tables}
        if len(encoders) > 1:
            raise DataError(f"{where}: their instructions were embedded by {encoders}; embed all alike")

    def _reads(self, what: str) -> bool:
        """Whether a difference matters: not if it is in a feature that is not read."""
        return not what.startswith("observation.") or what in self.target.state_keys


def merge_instructions(stores: Sequence[InstructionTable]) -> InstructionTable:
    """Return one table of all instructions, each once.

    Raises:
        DataError: if they were made by different encoders.
    """
    if len({table.encoder for table in stores}) != 1:
        raise DataError(
            f"instructions were embedded by {sorted({t.encoder for t in stores})}; embed all alike"
        )
    known: dict[str, Tensor] = {}
    for table in stores:
        known |= dict(zip(table.instructions, table.embeddings, strict=True))
    return InstructionTable(
        encoder=stores[0].encoder, instructions=tuple(known), embeddings=torch.stack(list(known.values()))
    )


def _match(part: Windows, target: Windows, key: str, mode: NormalizationMode) -> tuple[Tensor, Tensor] | None:
    """Factor and offset that take a part's raw values to the target's, or None for the target itself."""
    if part is target or mode == "identity":
        return None
    # Angles are not normalised (they become cosine and sine), so both maps leave them alone.
    ours, theirs = (
        Normalizer(replace(w.store.features[key], angles=()), mode).fit(w.store.statistics[key], key)
        for w in (target, part)
    )
    factor = ours.scale / theirs.scale
    offset = ours.offset - theirs.offset * factor
    for angle in target.store.features[key].angles:
        factor[angle], offset[angle] = 1.0, 0.0
    return factor, offset


def _put(part: Batch, into: Batch, rows: Tensor) -> None:
    """Put the windows of a part into rows of a batch."""
    tensors = iter(tensors_of(part))
    into.map(lambda x: x.index_copy_(0, rows, next(tensors)))


def _affine(x: Tensor, change: tuple[Tensor, Tensor] | None) -> Tensor:
    return x if change is None else x * change[0] + change[1]


def _fit(frames: Tensor | None, shape: tuple[int, ...]) -> Tensor:
    """Bring frames ``(B, H, height, width, 3)`` to another size; black ones stand for an absent camera."""
    if frames is None:
        return torch.zeros(shape, dtype=torch.uint8)
    return resized(frames.flatten(0, 1), *shape[2:4]).reshape(shape)
