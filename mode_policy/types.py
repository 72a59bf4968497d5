"""The boundary types: what flows between datasets, environments, policies and robots.

One legend holds everywhere. A demonstration store, an environment and a policy all name their data by the
same feature keys (LeRobot's), so nothing is renamed on the way from recording to control::

    observation.state              (..., D)        float32, raw units (metres, pixels, radians)
    observation.environment_state  (..., D)        float32, raw units
    observation.images.<camera>    (..., H, W, 3)  uint8, upright, RGB
    action                         (..., A)        float32, raw units

Leading axes: ``T`` time steps in an episode; ``B, H`` batch and history in an `Observation`;
``B, C`` batch and chunk in actions. Normalisation happens inside the policy and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from mode_policy.errors import DataError

STATE = "observation.state"
ENVIRONMENT_STATE = "observation.environment_state"
IMAGE_PREFIX = "observation.images."
ACTION = "action"

FeatureKind = Literal["state", "image", "action"]


def feature_kind(key: str) -> FeatureKind:
    """Classify a feature key; raise `DataError` if it follows no rule of the legend."""
    if key == ACTION:
        return "action"
    if key.startswith(IMAGE_PREFIX):
        return "image"
    if key.startswith("observation."):
        return "state"
    raise DataError(
        f"feature {key!r} is neither {ACTION!r}, 'observation.images.<camera>' nor 'observation.<name>'; "
        "map it to one of these in the task's `dataset.keys`"
    )


@dataclass(frozen=True, kw_only=True)
class Feature:
    """One array of a robot's data, as the store, the environment and the policy describe it.

    Attributes:
        shape: Shape of one time step, e.g. ``(39,)`` or ``(96, 96, 3)``.
        dtype: NumPy name of the stored type.
        names: A name for each dimension of a vector, or empty.
        unit: Free text, e.g. ``"m"`` or ``"px"``.
        angles: Dimensions of a state vector that are angles in radians. The policy sees their cosine and
            sine, so that a wrap from 2π to 0 is not a jump.
    """

    shape: tuple[int, ...]
    dtype: str = "float32"
    names: tuple[str, ...] = ()
    unit: str = ""
    angles: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if any(not 0 <= i < self.shape[-1] for i in self.angles):
            raise DataError(f"angle dimensions {self.angles} lie outside a vector of {self.shape[-1]}")

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready mapping; `from_json` inverts it."""
        return {
            "shape": list(self.shape),
            "dtype": self.dtype,
            "names": list(self.names),
            "unit": self.unit,
            "angles": list(self.angles),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Feature:
        """Build a feature from `to_json`'s mapping."""
        return cls(
            shape=tuple(data["shape"]),
            dtype=data.get("dtype", "float32"),
            names=tuple(data.get("names") or ()),
            unit=data.get("unit", ""),
            angles=tuple(data.get("angles") or ()),
        )


Features = dict[str, Feature]


@dataclass(frozen=True, kw_only=True)
class Task:
    """A task of a dataset or a benchmark.

    Attributes:
        name: Unique short name, e.g. ``"reach-v3"``.
        instruction: What to do, in natural language.
    """

    name: str
    instruction: str


@dataclass(frozen=True, kw_only=True)
class Episode:
    """One demonstration, as experts and converters hand it to a store.

    Attributes:
        arrays: Feature key → array with a leading time axis; all of the same length.
        task: The task that was demonstrated.
        seed: Seed of the environment's reset, or -1 where none is known.
    """

    arrays: Mapping[str, np.ndarray]
    task: Task
    seed: int = -1

    def __len__(self) -> int:
        return len(self.arrays[ACTION])


@dataclass(frozen=True, kw_only=True)
class Observation:
    """What a policy sees. ``B`` batch, ``H`` history length (oldest first), ``E`` width of the embedding.

    Attributes:
        states: Feature key → float32 ``(B, H, D)`` in raw units.
        images: Feature key → uint8 ``(B, H, height, width, 3)``.
        instruction: float32 ``(B, E)``: the embedded instruction of each sample, or None without language.
    """

    states: Mapping[str, Tensor] = field(default_factory=dict)
    images: Mapping[str, Tensor] = field(default_factory=dict)
    instruction: Tensor | None = None

    @property
    def batch_size(self) -> int:
        """Number of samples B."""
        return next(iter([*self.states.values(), *self.images.values()])).shape[0]

    def map(self, change: Callable[[Tensor], Tensor]) -> Observation:
        """Return a copy with ``change`` applied to each tensor."""
        return Observation(
            states={k: change(v) for k, v in self.states.items()},
            images={k: change(v) for k, v in self.images.items()},
            instruction=None if self.instruction is None else change(self.instruction),
        )

    def to(self, device: torch.device | str) -> Observation:
        """Return a copy whose tensors are on ``device``."""
        return self.map(lambda x: x.to(device, non_blocking=True))


@dataclass(frozen=True, kw_only=True)
class Batch:
    """A training batch. ``B`` batch, ``C`` chunk, ``A`` action dimension.

    Attributes:
        observation: What the policy sees before the chunk's first action.
        actions: float32 ``(B, C, A)``, raw units.
        action_is_pad: bool ``(B, C)``: True past the end of an episode, where the last action is repeated
            and the loss must not look.
    """

    observation: Observation
    actions: Tensor
    action_is_pad: Tensor

    def map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """Return a copy with ``change`` applied to each tensor."""
        return Batch(
            observation=self.observation.map(change),
            actions=change(self.actions),
            action_is_pad=change(self.action_is_pad),
        )

    def to(self, device: torch.device | str) -> Batch:
        """Return a copy whose tensors are on ``device``."""
        return self.map(lambda x: x.to(device, non_blocking=True))

    def split(self, parts: int) -> list[Batch]:
        """Return ``parts`` batches of equally many rows, in their order; B must be a multiple."""
        rows = len(self.actions) // parts
        return [self.map(lambda x, i=i: x[i * rows : (i + 1) * rows]) for i in range(parts)]  # type: ignore[misc]

    def pin_memory(self) -> Batch:
        """Return a copy in memory that a GPU reads from directly."""
        return self.map(Tensor.pin_memory)


@dataclass(frozen=True, kw_only=True)
class InstructionTable:
    """Known instructions and their embeddings, computed once and carried by datasets and checkpoints.

    Attributes:
        encoder: Name of the text encoder that made them, e.g. ``"minilm-l6-v2"``.
        instructions: The texts.
        embeddings: float32 ``(len(instructions), E)``.
    """

    encoder: str
    instructions: tuple[str, ...]
    embeddings: Tensor

    def __post_init__(self) -> None:
        if self.embeddings.ndim != 2 or len(self.instructions) != len(self.embeddings):
            raise DataError(
                f"{len(self.instructions)} instructions but embeddings of shape "
                f"{tuple(self.embeddings.shape)}"
            )

    def index(self, instructions: Sequence[str]) -> Tensor:
        """Return the row of each instruction, int64 ``(len(instructions),)``.

        Raises:
            UnknownInstructionError: if one of them is not in the table.
        """
        rows = {text: i for i, text in enumerate(self.instructions)}
        missing = sorted({text for text in instructions if text not in rows})
        if missing:
            raise UnknownInstructionError(missing, self.instructions)
        return torch.tensor([rows[text] for text in instructions], dtype=torch.int64)

    def embed(self, instructions: Sequence[str]) -> Tensor:
        """Return the embeddings of known instructions, float32 ``(len(instructions), E)``."""
        return self.embeddings[self.index(instructions)]


class UnknownInstructionError(DataError):
    """An instruction that was not embedded when the dataset or checkpoint was made."""

    def __init__(self, missing: Sequence[str], known: Sequence[str]) -> None:
        from mode_policy.errors import did_you_mean

        self.missing = tuple(missing)
        super().__init__(
            f"unknown instruction {missing[0]!r}.{did_you_mean(missing[0], known)} "
            "To use a new one, add it with `InstructionTable` and the encoder that the checkpoint names."
        )
