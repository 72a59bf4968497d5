"""``mode-evaluate`` and ``evaluate.py``: a checkpoint, rolled out."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mode_envs import SUITES, EnvTask, env_task, suite
from mode_envs.registration import ENTRIES
from mode_policy.apps.cli import console, program
from mode_policy.apps.config import EvaluateConfig, TaskConfig
from mode_policy.apps.dataset import env_tasks
from mode_policy.apps.protocol import episodes_of
from mode_policy.apps.rollouts import announce, evaluate_policy
from mode_policy.checkpoint import load_policy, read_description
from mode_policy.config import SamplerConfig, build, to_dict
from mode_policy.errors import ConfigError, DataError, did_you_mean
from mode_policy.evaluation.shards import parse_shard
from mode_policy.training.checkpoints import newest_checkpoint
from mode_policy.training.metrics import read_metrics
from mode_policy.types import InstructionTable


@program("evaluate")
def main(data: dict[str, Any]) -> None:
    """Load a checkpoint, roll it out, report."""
    config = build(EvaluateConfig, data)
    checkpoint = find_checkpoint(Path(config.checkpoint).expanduser())
    about = read_description(checkpoint)["about"]
    groups = chosen_tasks(config, about)
    tasks = [task for group in groups.values() for task in group]
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device=cuda, but torch finds no GPU; use device=cpu or auto")
    device = "cuda" if config.device != "cpu" and torch.cuda.is_available() else "cpu"
    policy = load_policy(checkpoint, weights=config.weights, device=device)
    check_instructions(policy.instructions, groups, about)
    changes = {k: v for k, v in config.sampler.items() if v is not None}
    sampler = build(SamplerConfig, to_dict(policy.config.sampler) | changes, "sampler")
    policy.config = replace(policy.config, sampler=sampler)
    if config.execute is not None and config.execute > policy.config.chunk:
        raise ConfigError(
            f"execute={config.execute}, but the policy predicts chunks of {policy.config.chunk}"
        )
    run = checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else None
    folder = Path(config.output).expanduser() if config.output else _folder(run, about, config)
    name = _name(about, config)
    rollouts = len(episodes_of(tasks, config))
    part = "" if config.shard is None else f", of which this is shard {config.shard}"
    console.print(f"evaluating {checkpoint} on {len(tasks)} tasks, {rollouts} rollouts{part}")
    evaluation, folder = evaluate_policy(
        policy,
        tasks,
        config,
        folder,
        demonstrated=about.get("demonstration_seeds", []),
        execute=config.execute,
        suites={name or "others": [t.task.name for t in group] for name, group in groups.items()}
        if len(groups) > 1
        else None,
        shard=None if config.shard is None else parse_shard(config.shard),
        settings={"task": name, "checkpoint": str(checkpoint)},
        configuration=data,
        metrics=read_metrics(run / "metrics.jsonl") if run is not None else (),
    )
    announce(evaluation, folder, checkpoint)
    if config.shard is not None:
        console.print(f"when every shard is there: mode-merge {folder.parent}")


def find_checkpoint(path: Path) -> Path:
    """Return a checkpoint's folder, given it or the folder of its run."""
    return newest_checkpoint(path) or path


def check_instructions(
    known: InstructionTable | None, groups: Mapping[str, Sequence[EnvTask]], about: Mapping[str, Any]
) -> None:
    """Look for the tasks' instructions in an imported policy, which knows those that it was imported with.

    Raises:
        DataError: with the command that imports it with these, too.
    """
    if known is None or "imported_from" not in about:
        return
    for name, tasks in groups.items():
        missing = sorted({t.task.instruction for t in tasks} - set(known.instructions))
        if not missing:
            continue
        how = f"--task {name}" if name else " ".join(f"--instruction {shlex.quote(x)}" for x in missing)
        raise DataError(
            f"the policy was imported without {len(missing)} instructions of these tasks, such as "
            f"{missing[0]!r}. Import it with them: mode-import {shlex.quote(str(about['imported_from']))} "
            f"NEW_FOLDER {how}"
        )


def _folder(run: Path | None, about: dict[str, Any], config: EvaluateConfig) -> Path:
    """Where results go by default: the run's folder, or for a checkpoint on its own the working directory."""
    name = _name(about, config).replace("/", "_").replace(", ", "_")
    return (run or Path.cwd()) / f"evaluation_{name}"


def _name(about: dict[str, Any], config: EvaluateConfig) -> str:
    task = config.task or about.get("task", {}).get("name", "tasks")
    return task if isinstance(task, str) else ", ".join(task)


def chosen_tasks(config: EvaluateConfig, about: dict[str, Any]) -> dict[str, tuple[EnvTask, ...]]:
    """Return the tasks to evaluate by suite: those asked for, or those that the policy was trained on.

    Tasks that are asked for by their own names come under an empty name.

    Raises:
        ConfigError: if a name is unknown, is given twice, or nothing says which.
    """
    if config.task is None:
        if "task" not in about:
            raise ConfigError("the checkpoint does not say what it was trained on; give task=…")
        trained = build(TaskConfig, about["task"])
        if trained.suite is None:
            raise ConfigError(f"{trained.name!r} has no environments; name some with task=…")
        return {trained.suite: env_tasks(trained)}
    names = (config.task,) if isinstance(config.task, str) else config.task
    if not names or len(set(names)) < len(names):
        raise ConfigError(f"task={list(names)}: name each task once, and at least one")
    known = {*ENTRIES, *(e.env_id for e in ENTRIES.values())}
    found: dict[str, tuple[EnvTask, ...]] = {}
    for name in names:
        if name in SUITES:
            found[name] = suite(name)
        elif name in known:
            found[""] = (*found.get("", ()), env_task(name))
        else:
            raise ConfigError(
                f"unknown task or suite {name!r}.{did_you_mean(name, [*ENTRIES, *SUITES])} "
                f"Suites: {', '.join(sorted(SUITES))}."
            )
    tasks = [task.task.name for group in found.values() for task in group]
    if twice := sorted({name for name in tasks if tasks.count(name) > 1}):
        raise ConfigError(f"task={list(names)} has {twice[0]!r} twice; name each task once")
    return found
