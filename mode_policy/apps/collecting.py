"""Stores of demonstrations by scripted experts."""

from __future__ import annotations

import hashlib
import os
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from mode_datasets import Provenance, StoreWriter, open_store
from mode_envs import EnvTask, convention, features, rendering_available
from mode_envs.collect import CollectReport, collect
from mode_envs.registration import entry
from mode_policy.apps.cli import console
from mode_policy.apps.config import DatasetConfig, TaskConfig
from mode_policy.apps.progress import bar
from mode_policy.encoders.language import embed_instructions
from mode_policy.errors import ConfigError, DataError, SimulatorError
from mode_policy.types import InstructionTable

RECORDINGS = "recordings"
"""Folder beside the stores, see `mode_envs.recordings`."""


def store_name(config: DatasetConfig, task: TaskConfig, suite: Sequence[EnvTask]) -> str:
    """Return the name of the store that a collection goes to: another recipe, another name."""
    subset = ""
    if task.tasks is not None and len(task.tasks) < len(suite):
        digest = hashlib.sha256("\n".join(task.tasks).encode()).hexdigest()[:6]
        subset = f"-{len(task.tasks)}of{len(suite)}_{digest}"
    pictures = f"-{'-'.join(config.cameras)}-{config.size}px" if config.cameras else ""
    no_ops = f"-noop{config.no_ops_below:g}" if config.no_ops_below else ""
    return f"{task.name}{subset}-{config.episodes}-noise{config.noise}-seed{config.seed}{no_ops}{pictures}"


def recipe_of(config: DatasetConfig, tasks: Sequence[EnvTask]) -> str:
    """Return what determines a collection; kept in the store to know whether it can be used again."""
    names = ",".join(t.task.name for t in tasks)
    made = f"episodes={config.episodes} noise={config.noise:g} seed={config.seed}"
    pictures = f" cameras={','.join(config.cameras)} size={config.size}" if config.cameras else ""
    no_ops = f" no_ops_below={config.no_ops_below:g}" if config.no_ops_below else ""
    return f"scripted experts: {made}{no_ops}{pictures} tasks={names}"


def check_recipe(path: Path, config: DatasetConfig, tasks: Sequence[EnvTask]) -> None:
    """Hold a store that is already there to what would be collected; it is never replaced.

    Raises:
        DataError: if it was made otherwise, or lacks demonstrations and that is not allowed.
    """
    store = open_store(path)
    found, wanted = store.provenance.source, recipe_of(config, tasks)
    if found != wanted:
        raise DataError(
            f"{path} holds other demonstrations than asked for (there: {found}; wanted: {wanted}). Train on "
            "what is there with dataset.source=path, collect elsewhere with dataset.path=…, or delete it"
        )
    shown = Counter(store.tasks[row].name for row in store.episode_tasks)
    lacking = [t.task.name for t in tasks if shown[t.task.name] < config.episodes]
    if lacking and not config.allow_incomplete:
        raise DataError(
            f"{path} has fewer than {config.episodes} demonstrations of {len(lacking)} tasks, as their "
            f"experts failed too often ({lacking[0]!r} is the first, with {shown[lacking[0]]}). To use it, "
            "add dataset.allow_incomplete=true; else leave those tasks out with task.tasks=[…]"
        )


def check_experts(tasks: Sequence[EnvTask]) -> None:
    """Refuse to collect where an expert is missing.

    Raises:
        ConfigError: saying how many tasks have one, and how to choose those.
    """
    able = [t.task.name for t in tasks if entry(t.env_id).has_expert]
    unable = [t.task.name for t in tasks if not entry(t.env_id).has_expert]
    if not unable:
        return
    if not able:
        raise ConfigError(f"{unable[0]!r} has no scripted expert" if len(tasks) == 1 else _none(unable))
    shown = ", ".join(able[:3]) + (", …" if len(able) > 3 else "")
    raise ConfigError(
        f"{len(unable)} of {len(tasks)} tasks have no scripted expert ({unable[0]!r} is the first); choose "
        f"among the others with task.tasks=[{shown}]"
    )


def _none(unable: Sequence[str]) -> str:
    return f"none of the {len(unable)} tasks has scripted experts ({unable[0]!r} is the first)"


def collect_store(
    path: Path,
    config: DatasetConfig,
    tasks: Sequence[EnvTask],
    language: str | None,
    known: InstructionTable | None = None,
) -> None:
    """Collect demonstrations into a new store; where that takes long, an interrupted one is continued.

    Raises:
        ConfigError: if a task has no expert, or no such camera.
        SimulatorError: if the simulator is missing, cannot draw what is asked for, or keeps crashing; at the
            end, if experts failed too often and incomplete collections are not allowed.
        DataError: if the store cannot be written.
    """
    check_experts(tasks)
    if config.cameras and any(entry(t.env_id).opengl for t in tasks):
        available, reason = rendering_available()
        if not available:
            raise SimulatorError(f"pictures of {', '.join(config.cameras)} cannot be drawn: {reason}")
    texts = [t.task.instruction for t in tasks]
    table = None if language is None else embed_instructions(texts, language, known=known)
    env_id = tasks[0].env_id
    pictures: dict[str, Any] = {}
    if config.cameras:
        pictures = {"obs_mode": "both", "image_size": (config.size, config.size), "cameras": config.cameras}
    provenance = Provenance(
        source=recipe_of(config, tasks),
        licence="MIT",
        command=" ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    )
    recordings = Path(config.folder).expanduser() / RECORDINGS if _slow(config, tasks) else None
    wanted = config.episodes * len(tasks)
    with (
        StoreWriter(
            path,
            features(env_id, **pictures),
            convention(env_id),
            provenance,
            resume=recordings is not None,
            commit_every=None if recordings is None else 1,
        ) as writer,
        bar("collecting", "demonstrations") as progress,
    ):
        if writer.num_episodes:
            console.print(f"continuing {path}: {writer.num_episodes} of {wanted} demonstrations are there")
        row = progress.add_task("collecting", total=wanted, note="")
        told: set[str] = set()
        faults: set[tuple[str, str]] = set()

        def show(report: CollectReport) -> None:
            solved = f"success {report.successes / max(report.attempts, 1):.0%}"
            note = f"{report.successes} to draw, {solved}" if config.cameras else solved
            progress.update(row, completed=report.complete, total=wanted - report.missing, note=note)
            tell_faults(report, faults)
            for name in set(report.given_up) - told:
                told.add(name)
                of = report.tasks[name]
                console.print(f"given up   {name}: {of.successes} of {of.attempts} attempts succeeded")

        collection = collect(
            tasks,
            config.episodes,
            seed=config.seed,
            workers=os.cpu_count(),
            noise=config.noise,
            no_ops_below=config.no_ops_below,
            cameras=config.cameras,
            size=(config.size, config.size) if config.cameras else None,
            recordings=recordings,
            skip=writer.task_episodes,
            allow_incomplete=True,
            on_progress=show,
            notify=lambda sentence: console.print(f"waiting    {sentence}"),
        )
        with closing(collection):
            for episode in collection:
                writer.append(episode)
        if collection.report.given_up and not (config.allow_incomplete and writer.num_episodes):
            raise SimulatorError(_lacking(collection.report, kept=recordings is not None))
        if table is not None:
            writer.set_instructions(table)
    report = collection.report
    lowest = min(report.tasks.items(), key=lambda item: item[1].success_rate)
    console.print(
        f"collected  {report.successes} demonstrations in {report.attempts} attempts, "
        f"{report.seconds:.0f} s (lowest rate: {lowest[0]} {lowest[1].success_rate:.0%})"
    )
    if report.given_up:
        console.print(f"incomplete {report.shortfall()}")
    if recordings is not None:
        console.print(f"recordings {recordings}: pictures of other sizes and cameras are drawn from them")


def tell_faults(report: CollectReport, told: set[tuple[str, str]]) -> None:
    """Print what experts raised, with the traceback; the same of the same task only once.

    Args:
        report: of the collection so far.
        told: tasks and exceptions that were printed; those that are now join them.
    """
    for name, task in report.tasks.items():
        for number, fault in task.faults.items():
            if (name, fault.error) not in told:
                told.add((name, fault.error))
                console.print(
                    f"failed     {name}: attempt {number}, as its expert raised an exception; others go on\n"
                    f"{fault.traceback.rstrip()}"
                )


def _lacking(report: CollectReport, *, kept: bool) -> str:
    """Say which tasks lack demonstrations, and what can be done."""
    if not report.successes:
        return f"{report.shortfall()}. Lower noise, or choose other tasks with task.tasks=[…]"
    keep = "; what was recorded is used again" if kept else ""
    return (
        f"{report.shortfall()}{keep}. To go on with what there is, give the same command with "
        "dataset.allow_incomplete=true (mode-data collect: allow_incomplete=true); or leave those tasks out "
        "with task.tasks=[…], or lower noise"
    )


def _slow(config: DatasetConfig, tasks: Sequence[EnvTask]) -> bool:
    """Whether a collection takes so long that it pays to keep what was simulated."""
    return bool(config.cameras) or any("suite" in entry(t.env_id).kwargs for t in tasks)
