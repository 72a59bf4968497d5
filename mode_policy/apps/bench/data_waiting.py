"""For how much of its time training waits for data: the default trainings, on real batches."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch

from mode_datasets import DemonstrationStore, schema
from mode_policy.apps.bench.record import Row
from mode_policy.apps.cli import compose, to_plain
from mode_policy.apps.config import TrainConfig
from mode_policy.apps.dataset import get_store, known_instructions
from mode_policy.apps.training_data import chosen_states, training_data
from mode_policy.config import build
from mode_policy.policy import MoDEPolicy
from mode_policy.training.processes import Processes
from mode_policy.training.trainer import Trainer
from mode_policy.types import ACTION, IMAGE_PREFIX, Batch, Features


def share_waiting(
    store: DemonstrationStore, folder: Path, seconds: float, say: Callable[[str], None]
) -> list[Row]:
    """Train on a store with cameras: from its states as ``train.py`` does by default, and from its images.

    Args:
        store: The demonstrations.
        folder: Where the runs may write.
        seconds: For each training.
        say: Is told what is going on.

    Returns:
        Rows with windows a second and ``waiting_percent``, the share of the time in which training waits.
    """
    keys = schema.image_keys(store.features)
    names = ",".join(f'"{key.removeprefix(IMAGE_PREFIX)}"' for key in keys)
    images = ["task=demonstrations", f"policy.cameras=[{names}]"]
    trainings = {
        "training from states, tiny": ["task=metaworld_mt10", "dataset.source=path"],
        "training from images, small": [*images, "dataset.cache_gb=0"],
        "training from images, small, in memory": [*images, "dataset.cache_gb=1000", "dataset.workers=0"],
    }
    if not chosen_states(store, None):
        del trainings["training from states, tiny"]
    rows = []
    for number, (name, overrides) in enumerate(trainings.items()):
        say(name)
        limits = [f"trainer.minutes={seconds / 60}", "trainer.tensorboard=false", "evaluation.episodes=0"]
        data = to_plain(
            compose("train", [*overrides, *limits, f'dataset.path="{store.location}"', "run_dir=unused"])
        )
        config = build(TrainConfig, data)
        row: Row = {"reader": name, "workers": config.dataset.workers}
        rows.append(row | _trained(config, folder / f"training_{number}"))
    return rows


class _Stopwatch:
    """Hands batches on, and notes the seconds that each took to come."""

    def __init__(self, batch: Callable[[int], Batch]) -> None:
        self.batch = batch
        self.waits: list[float] = []

    def __call__(self, step: int) -> Batch:
        asked = time.perf_counter()
        batch = self.batch(step)
        self.waits.append(time.perf_counter() - asked)
        return batch


def _trained(config: TrainConfig, folder: Path) -> Row:
    processes = Processes(config.trainer)
    store = get_store(config.dataset, config.task, config.policy.language)
    data = training_data([store], config, processes)
    cameras = [IMAGE_PREFIX + name for name in config.policy.cameras]
    keys = [*chosen_states(store, None), *cameras, ACTION]
    features: Features = {key: store.features[key] for key in keys}
    torch.manual_seed(0)
    known = known_instructions([store])
    policy = MoDEPolicy(config.policy, features, store.statistics, known, store.convention)
    watch = _Stopwatch(data.batch)
    try:
        summary = Trainer(policy, config.trainer, watch, [], folder, processes=processes).run()
    finally:
        data.batch.close()
    first, *later = watch.waits  # the first starts the loader's processes
    passed = summary.seconds - first
    return {
        "windows_per_s": round(len(watch.waits) * config.trainer.batch_size / passed),
        "waiting_percent": round(100 * sum(later) / passed, 2),
    }
