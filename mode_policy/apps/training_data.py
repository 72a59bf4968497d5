"""Windows for training: which part of the demonstrations a run sees, in which order, and how it is loaded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mode_datasets import BatchSampler, DemonstrationStore, Windows, WindowSpec, split_episodes
from mode_datasets.loader import BatchLoader
from mode_datasets.mixture import Mixture, MixturePart
from mode_datasets.sampler import WeightedSampler
from mode_policy.apps.config import TrainConfig
from mode_policy.errors import ConfigError, did_you_mean
from mode_policy.training.processes import Processes
from mode_policy.types import IMAGE_PREFIX, Batch, feature_kind


@dataclass(frozen=True)
class TrainingData:
    """Windows in the order in which training sees them, and held-out batches.

    Attributes:
        windows: All that training draws from.
        batch: Maps the number of a step to its batch.
        validation: Held-out batches of the first store.
    """

    windows: Windows | Mixture
    batch: BatchLoader
    validation: list[Batch]


def training_data(
    stores: Sequence[DemonstrationStore], config: TrainConfig, processes: Processes
) -> TrainingData:
    """Split by episode and cut windows; of each training batch, this process gets its share.

    Args:
        stores: The task's own, then those of the mixture.
        config: Of the run.
        processes: That train together.
    """
    store, (policy, trainer) = stores[0], (config.policy, config.trainer)
    spec = WindowSpec(history=policy.history, chunk=policy.chunk)
    keys = chosen_states(store, config.dataset.state_keys)
    cameras = chosen_cameras(store, policy.cameras)
    train, held_out = split_episodes(store, config.dataset.validation_fraction, trainer.seed)
    budget = config.dataset.cache_gb * 1e9 / processes.count
    cached = sum(_image_bytes(s, cameras) for s in stores) <= budget

    def cut(part: DemonstrationStore, episodes: np.ndarray | None) -> Windows:
        present = [key for key in cameras if key in part.features]
        return Windows(part, spec, episodes, state_keys=keys, image_keys=present, cache_images=cached)

    own = cut(store, train)
    windows: Windows | Mixture = own
    if len(stores) > 1:
        others = [
            MixturePart(cut(s, None), part.weight, part.any_rate)
            for s, part in zip(stores[1:], config.dataset.mixture, strict=True)
        ]
        windows = Mixture(
            [MixturePart(own, config.dataset.weight), *others],
            normalize_state=policy.normalize_state,
            normalize_action=policy.normalize_action,
        )
    validation: list[Batch] = []
    if len(held_out) and trainer.validation_batches:
        held = Windows(store, spec, held_out, state_keys=keys, image_keys=cameras)
        order, size = np.random.default_rng(trainer.seed).permutation(len(held)), trainer.batch_size
        starts = range(0, min(len(held), size * trainer.validation_batches), size)
        validation = [held.batch(order[i : i + size]) for i in starts]
    batch = BatchLoader(
        windows,
        _sampler(windows, config, processes),
        workers=config.dataset.workers,
        pin_memory=torch.cuda.is_available() and trainer.device != "cpu",
    )
    return TrainingData(windows, batch, validation)


def _sampler(
    windows: Windows | Mixture, config: TrainConfig, processes: Processes
) -> BatchSampler | WeightedSampler:
    """Every window once an epoch, or by weights where stores or tasks have some.

    Raises:
        ConfigError: if a weight is given to a task that there is not, or all tasks of a store have none.
    """
    place = (processes.share, config.trainer.seed, processes.rank, processes.count)
    data = config.dataset
    if isinstance(windows, Windows) and not (data.balance_tasks or data.task_weights):
        return BatchSampler(len(windows), *place)
    parts = (
        [(windows, 1.0)] if isinstance(windows, Windows) else [(p.windows, p.weight) for p in windows.parts]
    )
    tasks = {task.name for part, _ in parts for task in part.store.tasks}
    if unknown := sorted(set(data.task_weights) - tasks):
        raise ConfigError(f"dataset.task_weights: no task {unknown[0]!r}.{did_you_mean(unknown[0], tasks)}")
    groups: list[np.ndarray] = []
    weights: list[float] = []
    start = 0
    for part, weight in parts:
        rows = np.unique(part.tasks)
        of_tasks = [start + np.flatnonzero(part.tasks == row) for row in rows]
        shares = np.array([1 if data.balance_tasks else len(group) for group in of_tasks], np.float64)
        shares *= [data.task_weights.get(part.store.tasks[row].name, 1.0) for row in rows]
        if not shares.any():
            raise ConfigError(f"dataset.task_weights leaves nothing of {part.store.location}")
        groups += of_tasks
        weights += (weight * shares / shares.sum()).tolist()
        start += len(part)
    return WeightedSampler(groups, weights, *place)


def chosen_states(store: DemonstrationStore, state_keys: Sequence[str] | None) -> tuple[str, ...]:
    """Return the state features that the policy reads: those chosen, or all."""
    known = [k for k in store.features if feature_kind(k) == "state"]
    if state_keys is None:
        return tuple(known)
    unknown = [k for k in state_keys if k not in known]
    if unknown:
        raise ConfigError(f"dataset.state_keys names {unknown}; the dataset has {known}")
    return tuple(state_keys)


def chosen_cameras(store: DemonstrationStore, cameras: Sequence[str]) -> tuple[str, ...]:
    """Return the keys of the images that the policy reads.

    Raises:
        ConfigError: if the dataset lacks a camera.
    """
    known = [k.removeprefix(IMAGE_PREFIX) for k in store.features if feature_kind(k) == "image"]
    if unknown := [name for name in cameras if name not in known]:
        raise ConfigError(f"policy.cameras names {unknown}; the dataset's cameras are {known}")
    return tuple(IMAGE_PREFIX + name for name in cameras)


def _image_bytes(store: DemonstrationStore, keys: Sequence[str]) -> int:
    present = [key for key in keys if key in store.features]
    return sum(store.num_steps * math.prod(store.features[key].shape) for key in present)
