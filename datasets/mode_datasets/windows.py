"""Windows: what a policy sees at one time step, and the action chunk that the expert then played.

::

    step of the episode      0   1   2   3   4   5        history = 2, chunk = 4, window at step 4:
    observations                     ╰───┴─►│            steps 3, 4
    actions                                 ╰───┴─► 5 5  steps 4, 5, then the last one repeated as padding
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mode_datasets import schema
from mode_datasets.shared import SharedArray
from mode_datasets.store import DemonstrationStore
from mode_policy.errors import DataError, did_you_mean
from mode_policy.types import ACTION, Batch, Observation


@dataclass(frozen=True, kw_only=True)
class WindowSpec:
    """Extent of a window.

    Attributes:
        history: Number of observations H, the current one included; at least 1.
        chunk: Number of actions C from the current step on; at least 1. Only actions are looked up ahead of
            the current step, never images.
        stride: Steps between the starts of neighbouring windows of an episode; at least 1.
    """

    history: int = 1
    chunk: int = 10
    stride: int = 1

    def __post_init__(self) -> None:
        if self.history < 1 or self.chunk < 1 or self.stride < 1:
            raise DataError(
                f"history {self.history}, chunk {self.chunk} and stride {self.stride} must all be at least 1"
            )


#: Arrays of a `Windows`: for each window, its step in the store, and first and last step, number and task of
#: its episode.
_INDEX = ("_step", "_first", "_last", "_episode", "_task")


class Windows:
    """One window per time step of the chosen episodes (or every ``stride`` of them), delivered in batches.

    Before an episode's first step, its first observation is repeated; past its last step, its last action is,
    and ``action_is_pad`` is True there. Vectors and embeddings are held in memory.

    Args:
        store: The demonstrations. Embedded instructions are delivered if it carries an instruction table.
        spec: Extent of a window.
        episodes: Indices of the chosen episodes, in any order, or None for all. Windows are numbered episode
            after episode in this order.
        state_keys: States to deliver, or None for all.
        image_keys: Images to deliver.
        cache_images: Load those images into memory (T·H·W·3 bytes per camera) rather than reading them batch
            by batch, which is a hundred times slower.

    Raises:
        DataError: if an episode or a feature does not exist, an episode is chosen twice, or nothing is left
            to observe; `UnknownInstructionError` if the table lacks the instruction of a task.
    """

    def __init__(
        self,
        store: DemonstrationStore,
        spec: WindowSpec,
        episodes: np.ndarray | None = None,
        *,
        state_keys: Sequence[str] | None = None,
        image_keys: Sequence[str] = (),
        cache_images: bool = False,
    ) -> None:
        self.store = store
        self.spec = spec
        self.episodes = _choose_episodes(store, episodes)
        known_states = [key for key in schema.vector_keys(store.features) if key != ACTION]
        self.state_keys = _choose(store, known_states if state_keys is None else state_keys, known_states)
        self.image_keys = _choose(store, image_keys, schema.image_keys(store.features))
        if not self.state_keys and not self.image_keys:
            raise DataError(
                f"a policy must observe something; name states or images of {sorted(store.features)}"
            )

        vectors = store.vectors()
        self._actions = torch.from_numpy(vectors[ACTION])
        self._states = {key: torch.from_numpy(vectors[key]) for key in self.state_keys}
        self._images = {key: _cached(store, key) for key in self.image_keys} if cache_images else {}
        self._embeddings = None
        if store.instruction_table is not None:
            self._embeddings = store.instruction_table.embed([task.instruction for task in store.tasks])

        steps = [np.arange(0, n, spec.stride) for n in store.episode_lengths[self.episodes]]
        self._episode = np.repeat(self.episodes, [len(s) for s in steps])
        self._first = store.episode_starts[self._episode]
        self._last = store.episode_ends[self._episode] - 1
        self._step = self._first + np.concatenate(steps)
        self._task = store.episode_tasks[self._episode]
        self._history = np.arange(1 - spec.history, 1)
        self._future = np.arange(spec.chunk)
        self._sent: dict[str, SharedArray] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Send what a process that is being started needs; large arrays as memory that it shares."""
        if not self._sent:
            for name, x in self._large():
                self._sent[name] = SharedArray(x.shape, x.dtype.str)
                self._sent[name].array[:] = x
        left_out = dict.fromkeys((*_INDEX, "_actions", "_states", "_embeddings"))
        return self.__dict__ | left_out | {"store": dataclasses.replace(self.store, _vectors={})}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        arrays = {name: shared.array for name, shared in self._sent.items()}
        for name in _INDEX:
            setattr(self, name, arrays.pop(name))
        tensors = {name: torch.from_numpy(x) for name, x in arrays.items()}
        self._embeddings, self._actions = tensors.pop("", None), tensors.pop(ACTION)
        self._states = tensors

    def _large(self) -> Iterator[tuple[str, np.ndarray]]:
        yield from ((name, getattr(self, name)) for name in _INDEX)
        yield ACTION, self._actions.numpy()
        yield from ((key, x.numpy()) for key, x in self._states.items())
        if self._embeddings is not None:
            yield "", self._embeddings.numpy()

    def __len__(self) -> int:
        return len(self._step)

    @property
    def tasks(self) -> np.ndarray:
        """Row of the store's task table of each window, int64 ``(len(self),)``."""
        return self._task

    @property
    def fork_safe(self) -> bool:
        """Whether a process that was forked can go on reading."""
        return self.store.location.fork_safe

    def locate(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the episode of each window, and its step in that episode; both int64 ``(B,)``."""
        return self._episode[indices], (self._step - self._first)[indices]

    def batch(self, indices: np.ndarray, out: Batch | None = None) -> Batch:
        """Return the windows at ``indices``, int ``(B,)`` in ``[0, len(self))``.

        States are ``(B, H, D)``, images ``(B, H, height, width, 3)``, actions ``(B, C, A)``.

        Args:
            indices: Which.
            out: A batch of these shapes to fill; a new one by default.

        Raises:
            DataError: if an image's chunk file cannot be decoded.
        """
        step_B1 = self._step[indices][:, None]
        last_B1 = self._last[indices][:, None]
        past_BH = np.maximum(step_B1 + self._history, self._first[indices][:, None])
        future_BC = step_B1 + self._future
        out = out if out is not None else self.empty(len(indices))
        for key, x in self._states.items():
            _gather(x, past_BH, out.observation.states[key])
        for key in self.image_keys:
            frames = out.observation.images[key]
            if key in self._images:
                _gather(torch.from_numpy(self._images[key].array), past_BH, frames)
            else:
                self.store.frames(key, past_BH.ravel(), frames.flatten(0, 1).numpy())
        if self._embeddings is not None:
            assert out.observation.instruction is not None
            _gather(self._embeddings, self._task[indices], out.observation.instruction)
        _gather(self._actions, np.minimum(future_BC, last_B1), out.actions)
        np.greater(future_BC, last_B1, out=out.action_is_pad.numpy())
        return out

    def empty(self, size: int) -> Batch:
        """Return a batch that is to be filled."""
        history = (size, self.spec.history)
        features = self.store.features
        return Batch(
            observation=Observation(
                states={key: torch.empty(*history, x.shape[1]) for key, x in self._states.items()},
                images={
                    key: torch.empty(*history, *features[key].shape, dtype=torch.uint8)
                    for key in self.image_keys
                },
                instruction=None
                if self._embeddings is None
                else torch.empty(size, self._embeddings.shape[1], dtype=self._embeddings.dtype),
            ),
            actions=torch.empty(size, self.spec.chunk, self._actions.shape[1]),
            action_is_pad=torch.empty(size, self.spec.chunk, dtype=torch.bool),
        )


def tensors_of(batch: Batch) -> list[Tensor]:
    """Return the tensors of a batch, in the order of `Batch.map`."""
    found: list[Tensor] = []

    def keep(x: Tensor) -> Tensor:
        found.append(x)
        return x

    batch.map(keep)
    return found


def _cached(store: DemonstrationStore, key: str) -> SharedArray:
    """Return all images of a camera, in memory that loader processes share."""
    images = SharedArray((store.num_steps, *store.features[key].shape))
    store.all_frames(key, images.array)
    return images


def _gather(x: Tensor, rows: np.ndarray, out: Tensor) -> None:
    """Put ``x[rows]`` into ``out``; `torch.index_select` is several times faster than indexing."""
    torch.index_select(x, 0, torch.from_numpy(rows.reshape(-1)), out=out.flatten(0, rows.ndim - 1))


def _choose_episodes(store: DemonstrationStore, episodes: np.ndarray | None) -> np.ndarray:
    if episodes is None:
        return np.arange(store.num_episodes)
    episodes = np.asarray(episodes, dtype=np.int64)
    bad = episodes[(episodes < 0) | (episodes >= store.num_episodes)]
    if len(bad):
        raise DataError(f"episode {bad[0]} of {store.location} does not exist; it has {store.num_episodes}")
    if len(episodes) == 0 or len(np.unique(episodes)) < len(episodes):
        raise DataError(f"{len(episodes)} episodes were chosen; choose at least one, and each only once")
    return episodes


def _choose(store: DemonstrationStore, keys: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    for key in keys:
        if key not in known:
            raise DataError(
                f"{store.location} cannot deliver {key!r} here.{did_you_mean(key, known) if known else ''}"
            )
    return tuple(keys)
