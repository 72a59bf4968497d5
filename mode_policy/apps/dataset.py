"""Getting demonstrations: find, collect, embed instructions; then windows for training."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from mode_datasets import (
    DemonstrationStore,
    Provenance,
    ReplayBufferLayout,
    StoreWriter,
    open_store,
)
from mode_datasets.adapt import AdaptConfig, adapt
from mode_datasets.mixture import merge_instructions
from mode_envs import EnvTask, convention, features, suite
from mode_envs.collect import collect
from mode_policy.apps.cli import console
from mode_policy.apps.config import DatasetConfig, TaskConfig
from mode_policy.apps.progress import bar
from mode_policy.convention import Convention, Side, check_same
from mode_policy.encoders.language import embed_instructions
from mode_policy.errors import ConfigError, DataError, did_you_mean
from mode_policy.types import Feature, InstructionTable


def env_tasks(task: TaskConfig) -> tuple[EnvTask, ...]:
    """Return the simulated tasks of a task configuration.

    Raises:
        ConfigError: if the suite or one of the chosen tasks is unknown.
    """
    tasks = suite(task.suite)
    if task.tasks is None:
        return tasks
    if not task.tasks or len(set(task.tasks)) < len(task.tasks):
        raise ConfigError(f"task.tasks={list(task.tasks)}: name each task once, and at least one")
    known = {t.task.name: t for t in tasks}
    for name in task.tasks:
        if name not in known:
            raise ConfigError(f"task {name!r} is not in {task.suite!r}.{did_you_mean(name, known)}")
    return tuple(known[name] for name in task.tasks)


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
    elif "://" not in config.path and not path.exists():
        raise _absent(path, config)
    return _prepared(config.path, store_layout(config, task), config.adapt, language)


def _prepared(
    path: str, layout: ReplayBufferLayout | None, how: AdaptConfig, language: str | None
) -> DemonstrationStore:
    """Open a store, read it as the configuration says, embed its instructions if need be, and say so."""
    store = adapt(open_store(path if "://" in path else Path(path).expanduser(), layout), how)
    if language is not None and store.instruction_table is None:
        store = store.with_instructions(embed_instructions([t.instruction for t in store.tasks], language))
    console.print(
        f"dataset    {store.location}: {store.num_episodes} demonstrations of {len(store.tasks)} tasks, "
        f"{store.num_steps} steps"
    )
    for note in store.notes:
        console.print(f"           {note}")
    return store


def _absent(path: Path, config: DatasetConfig) -> DataError:
    where = f" Download and unpack {config.url}, then" if config.url else " To use a copy you have,"
    return DataError(
        f"no demonstrations at {path}.{where} give dataset.path=<its folder>, or set MODE_DATA_DIR to the "
        f"folder that holds {path.name}"
    )


def store_layout(config: DatasetConfig, task: TaskConfig) -> ReplayBufferLayout | None:
    """Return how to read a store of another layout, or None for one of ours.

    Raises:
        ConfigError: if the recipe describes a feature badly.
        DataError: if it describes a convention badly, or not the control rate.
    """
    if config.layout == "native":
        return None
    known = [f.name for f in fields(Convention)]
    if unknown := [name for name in config.convention if name not in known]:
        raise ConfigError(f"dataset.convention: unknown key {unknown[0]!r}.{did_you_mean(unknown[0], known)}")
    if not config.convention.get("fps"):
        raise ConfigError(
            "dataset.layout=replay_buffer needs the control rate of the data: dataset.convention.fps=…"
        )
    return ReplayBufferLayout(
        keys=config.keys,
        features={key: _feature(key, given) for key, given in config.features.items()},
        convention=Convention(**config.convention),
        image_orientation=config.image_orientation,
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
    env_id = tasks[0].env_id
    with (
        StoreWriter(path, features(env_id), convention(env_id), provenance) as writer,
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


def control_rate(task: EnvTask) -> float:
    """Return the control rate of a task's environment in Hz."""
    rate = convention(task.env_id).fps
    assert rate is not None  # every environment states it
    return rate


def get_mixture(config: DatasetConfig, language: str | None) -> list[DemonstrationStore]:
    """Open the stores that are mixed in.

    Raises:
        DataError: if one is absent or damaged, or was embedded by another text encoder.
    """
    return [_prepared(part.path, None, part.adapt, language) for part in config.mixture]


def known_instructions(stores: Sequence[DemonstrationStore]) -> InstructionTable | None:
    """Return the instructions of all stores in one table, or None if they carry none."""
    tables = [store.instruction_table for store in stores if store.instruction_table is not None]
    return merge_instructions(tables) if len(tables) > 1 else next(iter(tables), None)


def check_conventions(store: DemonstrationStore, tasks: Sequence[EnvTask]) -> None:
    """Hold demonstrations to the environments that their policy will act in.

    Raises:
        ConventionError: listing what they mean differently, and the setting that adapts the data.
    """
    data = Side(name="the dataset", features=store.features, convention=store.convention)
    for env_id in dict.fromkeys(task.env_id for task in tasks):
        check_same(data, environment(env_id))


def environment(env_id: str) -> Side:
    """Return what an environment's numbers mean; of its images, those that it is asked for."""
    return Side(name=env_id, features=features(env_id), convention=convention(env_id))
