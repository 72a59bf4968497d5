"""Getting demonstrations: find, collect, embed instructions; then windows for training."""

from __future__ import annotations

import functools
import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from mode_datasets import (
    BatchSampler,
    DemonstrationStore,
    Provenance,
    ReplayBufferLayout,
    StoreWriter,
    Windows,
    WindowSpec,
    open_store,
    split_episodes,
)
from mode_envs import SUITES, EnvTask, features, make, suite
from mode_envs.collect import collect
from mode_policy.apps.cli import console
from mode_policy.apps.config import DatasetConfig, TaskConfig, TrainConfig
from mode_policy.apps.progress import bar
from mode_policy.convention import Convention
from mode_policy.encoders.language import embed_instructions
from mode_policy.errors import ConfigError, DataError, did_you_mean
from mode_policy.training.processes import Processes
from mode_policy.types import IMAGE_PREFIX, Batch, Feature, feature_kind


def env_tasks(task: TaskConfig) -> tuple[EnvTask, ...]:
    """Return the simulated tasks of a task configuration.

    Raises:
        ConfigError: if the suite or one of the chosen tasks is unknown.
    """
    tasks = known_suite(task.suite)
    if task.tasks is None:
        return tasks
    if not task.tasks or len(set(task.tasks)) < len(task.tasks):
        raise ConfigError(f"task.tasks={list(task.tasks)}: name each task once, and at least one")
    known = {t.task.name: t for t in tasks}
    for name in task.tasks:
        if name not in known:
            raise ConfigError(f"task {name!r} is not in {task.suite!r}.{did_you_mean(name, known)}")
    return tuple(known[name] for name in task.tasks)


def known_suite(name: str) -> tuple[EnvTask, ...]:
    """Return the tasks of a suite.

    Raises:
        ConfigError: if there is no such suite, or not yet.
    """
    if name.startswith("libero") and name not in SUITES:
        raise ConfigError(
            f"{name!r} needs LIBERO's environments (the extra `libero`), which this version lacks: its "
            f"configuration can be read but not run. What runs: {', '.join(sorted(SUITES))}"
        )
    return suite(name)


def get_store(config: DatasetConfig, task: TaskConfig, language: str | None) -> DemonstrationStore:
    """Open the demonstrations, collecting them first where the configuration says so.

    Raises:
        DataError: if they are absent or damaged, or were embedded by another text encoder.
    """
    path = Path(config.path).expanduser()
    if config.source == "collect":
        if path.exists():
            _check_recipe(path, config, task)
        else:
            collect_store(path, config, task, language)
    store = open_store(path, store_layout(config, task)) if path.exists() else _absent(path, config)
    if language is not None and store.instruction_table is None:
        store = store.with_instructions(embed_instructions([t.instruction for t in store.tasks], language))
    console.print(
        f"dataset    {path}: {store.num_episodes} demonstrations of {len(store.tasks)} tasks, "
        f"{store.num_steps} steps"
    )
    return store


def _absent(path: Path, config: DatasetConfig) -> DemonstrationStore:
    where = f" Download and unpack {config.url}, then" if config.url else " To use a copy you have,"
    raise DataError(
        f"no demonstrations at {path}.{where} give dataset.path=<its folder>, or set MODE_DATA_DIR to the "
        f"folder that holds {path.name}"
    )


def store_layout(config: DatasetConfig, task: TaskConfig) -> ReplayBufferLayout | None:
    """Return how to read a store of another layout, or None for one of ours.

    Raises:
        ConfigError: if the recipe does not say the control rate, or describes a feature badly.
    """
    if config.layout == "native":
        return None
    if config.fps is None:
        raise ConfigError("dataset.layout=replay_buffer needs the control rate of the data, dataset.fps=…")
    return ReplayBufferLayout(
        keys=config.keys,
        features={key: _feature(key, given) for key, given in config.features.items()},
        convention=Convention(fps=config.fps),
        task=env_tasks(task)[0].task,
        provenance=Provenance(source=config.url or config.path, licence=config.licence or "unknown"),
    )


def _feature(key: str, given: Mapping[str, Any]) -> Feature:
    """Build a feature from its description in the configuration.

    Raises:
        ConfigError: naming what the description lacks, has too much or has wrong.
    """
    where, known = f"dataset.features.{key}", [f.name for f in fields(Feature)]
    if unknown := [name for name in given if name not in known]:
        raise ConfigError(f"{where}: unknown key {unknown[0]!r}.{did_you_mean(unknown[0], known)}")
    shape = given.get("shape")
    if not isinstance(shape, list) or not shape or not all(isinstance(n, int) and n > 0 for n in shape):
        raise ConfigError(
            f"{where} needs the shape of one time step, e.g. shape: [7] or shape: [96, 96, 3] (got {shape!r})"
        )
    try:
        return Feature.from_json(given)
    except TypeError as error:
        raise ConfigError(f"{where} cannot be read ({error}): {dict(given)}") from None


def _recipe(config: DatasetConfig, tasks: Sequence[EnvTask]) -> str:
    """What determines a collection; kept in the store to know whether it can be used again."""
    names = ",".join(t.task.name for t in tasks)
    made = f"episodes={config.episodes} noise={config.noise:g} seed={config.seed}"
    return f"scripted experts: {made} tasks={names}"


def _check_recipe(path: Path, config: DatasetConfig, task: TaskConfig) -> None:
    """Hold a store that is already there to what would be collected; it is never replaced.

    Raises:
        DataError: if it was made otherwise.
    """
    found, wanted = open_store(path).provenance.source, _recipe(config, env_tasks(task))
    if found != wanted:
        raise DataError(
            f"{path} holds other demonstrations than asked for (there: {found}; wanted: {wanted}). Train on "
            "what is there with dataset.source=path, collect elsewhere with dataset.path=…, or delete it"
        )


def collect_store(path: Path, config: DatasetConfig, task: TaskConfig, language: str | None) -> None:
    """Collect demonstrations of scripted experts into a new store."""
    tasks = env_tasks(task)
    table = None if language is None else embed_instructions([t.task.instruction for t in tasks], language)
    provenance = Provenance(
        source=_recipe(config, tasks),
        licence="MIT",
        command=" ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    )
    described = features(tasks[0].env_id)
    with (
        StoreWriter(path, described, Convention(fps=control_rate(tasks[0])), provenance) as writer,
        bar("collecting", "demonstrations") as progress,
    ):
        collection = collect(
            tasks, config.episodes, seed=config.seed, workers=os.cpu_count(), noise=config.noise
        )
        row = progress.add_task("collecting", total=config.episodes * len(tasks), note="")
        for episode in collection:
            writer.append(episode)
            report = collection.report
            progress.update(
                row,
                advance=1,
                note=f"{episode.task.name}: experts succeed {report.successes / report.attempts:.0%}",
            )
        if table is not None:
            writer.set_instructions(table)
    lowest = min(collection.report.tasks.items(), key=lambda item: item[1].success_rate)
    console.print(
        f"collected  {collection.report.successes} demonstrations in {collection.report.attempts} attempts, "
        f"{collection.report.seconds:.0f} s (lowest rate: {lowest[0]} {lowest[1].success_rate:.0%})"
    )


@functools.cache
def control_rate(task: EnvTask) -> float:
    """Return the control rate of a task's environment in Hz."""
    env = make(task)
    try:
        return float(env.metadata["render_fps"])
    finally:
        env.close()


@dataclass(frozen=True)
class TrainingData:
    """Windows in the order in which training sees them, and held-out batches."""

    windows: Windows
    sampler: BatchSampler
    validation: list[Batch]

    def batch(self, step: int) -> Batch:
        """Return the batch of a step, a pure function of its number."""
        return self.windows.batch(self.sampler.indices(step))


def training_data(store: DemonstrationStore, config: TrainConfig, processes: Processes) -> TrainingData:
    """Split by episode and cut windows; of each training batch, this process gets its share."""
    policy, trainer = config.policy, config.trainer
    train, held_out = split_episodes(store, config.dataset.validation_fraction, trainer.seed)
    spec = WindowSpec(history=policy.history, chunk=policy.chunk)
    keys = chosen_states(store, config.dataset.state_keys)
    cameras = chosen_cameras(store, policy.cameras)
    windows = Windows(
        store,
        spec,
        train,
        state_keys=keys,
        image_keys=cameras,
        cache_images=_image_bytes(store, cameras) * processes.count < _memory() // 4,
    )
    validation: list[Batch] = []
    if len(held_out) and trainer.validation_batches:
        held = Windows(store, spec, held_out, state_keys=keys, image_keys=cameras)
        order, size = np.random.default_rng(trainer.seed).permutation(len(held)), trainer.batch_size
        starts = range(0, min(len(held), size * trainer.validation_batches), size)
        validation = [held.batch(order[i : i + size]) for i in starts]
    sampler = BatchSampler(len(windows), processes.share, trainer.seed, processes.rank, processes.count)
    return TrainingData(windows, sampler, validation)


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
    return sum(store.num_steps * math.prod(store.features[key].shape) for key in keys)


def _memory() -> int:
    """Physical memory of the machine in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
