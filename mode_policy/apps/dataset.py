"""Getting demonstrations: find, fetch or collect them, and read them as the configuration says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from mode_datasets import DemonstrationStore, Provenance, ReplayBufferLayout, open_store
from mode_datasets.adapt import AdaptConfig, adapt
from mode_datasets.mixture import merge_instructions
from mode_envs import EnvTask, convention, features, suite
from mode_policy.apps.cli import console
from mode_policy.apps.collecting import check_recipe, collect_store, store_name
from mode_policy.apps.config import DatasetConfig, TaskConfig
from mode_policy.apps.fetching import fetch_store
from mode_policy.convention import Convention, Side, check_same
from mode_policy.encoders.language import embed_instructions
from mode_policy.errors import ConfigError, DataError, did_you_mean
from mode_policy.types import Feature, InstructionTable, Task


def env_tasks(task: TaskConfig) -> tuple[EnvTask, ...]:
    """Return the simulated tasks of a task configuration; none where it has demonstrations alone.

    Raises:
        ConfigError: if the suite or one of the chosen tasks is unknown.
    """
    if task.suite is None:
        return ()
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


def get_store(
    config: DatasetConfig, task: TaskConfig, language: str | None, known: InstructionTable | None = None
) -> DemonstrationStore:
    """Open the demonstrations, making or fetching them first where the configuration says so.

    ``language`` is the text encoder for instructions that are neither embedded there nor ``known``.

    Raises:
        DataError: if they are absent and cannot be had, or are damaged, or if another text encoder embedded
            them.
    """
    where = store_path(config, task)
    path = Path(where).expanduser()
    if "://" in where:
        pass
    elif config.source == "scripted":
        if path.exists():
            check_recipe(path, config, env_tasks(task))
        else:
            collect_store(path, config, env_tasks(task), language, known)
    elif not path.exists():
        if config.source == "path":
            raise _absent(path, config)
        fetch_store(path, config, env_tasks(task))
    # Tasks whose experts failed have no demonstrations, and are evaluated all the same.
    also = [t.task.instruction for t in env_tasks(task)] if config.allow_incomplete else []
    return _prepared(where, store_layout(config, task), config.adapt, language, known, also)


def store_path(config: DatasetConfig, task: TaskConfig) -> str:
    """Return the folder or address of the store: the one that is given, or one named after what is in it."""
    if config.path is not None:
        return config.path
    if config.source == "published":
        return str(Path(config.folder) / f"{config.published}.zarr")
    if task.suite is None:
        raise ConfigError("scripted experts demonstrate the tasks of a suite: give task.suite=…")
    return str(Path(config.folder) / f"{store_name(config, task, suite(task.suite))}.zarr")


def _prepared(
    path: str,
    layout: ReplayBufferLayout | None,
    how: AdaptConfig,
    language: str | None,
    known: InstructionTable | None,
    also: Sequence[str] = (),
) -> DemonstrationStore:
    """Open a store, read it as the configuration says, embed its instructions if need be, and say so."""
    store = adapt(open_store(path if "://" in path else Path(path).expanduser(), layout), how)
    if language is not None and store.instruction_table is None:
        texts = [*(t.instruction for t in store.tasks), *also]
        store = store.with_instructions(embed_instructions(texts, language, known=known))
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
        task=_demonstrated(task),
        provenance=Provenance(
            source=config.url or store_path(config, task), licence=config.licence or "unknown"
        ),
    )


def _demonstrated(task: TaskConfig) -> Task:
    """Return the task of a store of another layout."""
    if tasks := env_tasks(task):
        return tasks[0].task
    if task.instruction is None:
        raise ConfigError("say what the demonstrations show: task.instruction='…'")
    return Task(name=task.name, instruction=task.instruction)


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


def control_rate(task: EnvTask) -> float:
    """Return the control rate of a task's environment in Hz."""
    rate = convention(task.env_id).fps
    assert rate is not None  # every environment states it
    return rate


def get_mixture(
    config: DatasetConfig, language: str | None, known: InstructionTable | None = None
) -> list[DemonstrationStore]:
    """Open the stores that are mixed in.

    Raises:
        DataError: if one is absent or damaged, or was embedded by another text encoder.
    """
    return [_prepared(part.path, None, part.adapt, language, known) for part in config.mixture]


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
