"""Evaluating a policy in simulation: rollouts, table, records, videos, report."""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mode_envs import EnvTask
from mode_envs.rollout import EpisodeResult, EpisodeSpec, rollout
from mode_policy.apps.bench.record import commit, device
from mode_policy.apps.cli import console
from mode_policy.apps.config import EvaluationConfig
from mode_policy.apps.fit import check_fit, observation_options
from mode_policy.apps.progress import bar
from mode_policy.apps.protocol import described, episodes_of, part
from mode_policy.apps.videos import Films, can_film, stride, write_videos
from mode_policy.checkpoint import versions
from mode_policy.config import to_dict
from mode_policy.diffusion.schedules import grid
from mode_policy.evaluation import (
    EpisodeRecord,
    Evaluation,
    ExpertUsage,
    coverage_score,
    episode_videos,
    write_report,
)
from mode_policy.evaluation.journal import Journal, digest
from mode_policy.evaluation.runner import PolicyRunner
from mode_policy.evaluation.shards import shard_folder
from mode_policy.policy import MoDEPolicy


def evaluate_policy(
    policy: MoDEPolicy,
    tasks: Sequence[EnvTask],
    config: EvaluationConfig,
    folder: Path,
    *,
    execute: int | None = None,
    demonstrated: Collection[int] = (),
    suites: Mapping[str, Sequence[str]] | None = None,
    shard: tuple[int, int] | None = None,
    settings: Mapping[str, Any],
    configuration: Mapping[str, Any] | None = None,
    metrics: Sequence[Mapping[str, Any]] = (),
    training_summary: Mapping[str, Any] | None = None,
) -> tuple[Evaluation, Path]:
    """Roll out, then write ``evaluation.json``, ``videos/`` and ``report.html`` to ``folder``.

    Each episode is on disk as soon as it has ended: called again with the same arguments after an
    interruption, this goes on with those that are left. Scores are on disk before the first video is drawn:
    nothing that follows can lose them.

    Args:
        policy: with its statistics and instructions.
        tasks: to evaluate.
        config: how many rollouts, which seeds.
        folder: for the results.
        execute: actions of a chunk that are executed; the policy's own by default.
        demonstrated: seeds of the demonstrations, which no rollout may start from.
        suites: names of the tasks of each suite, where a result for each is wanted.
        shard: number and count of machines, where this one makes a part of the rollouts only.
        settings: recorded with the results.
        configuration: recorded with the results, and shown folded in the report.
        metrics: of the training, for the report.
        training_summary: of the training, for the report.

    Returns:
        The results, and the folder in which they are: within ``folder`` if they are a shard's.

    Raises:
        DataError: if the policy does not fit the environments, or a rollout would start where a
            demonstration did.
        SimulatorError: if the environments cannot be had on this machine.
    """
    check_fit(policy, tasks, config, demonstrated)
    specs = episodes_of(tasks, config)
    execute = execute or policy.config.execute
    identity = _identity(policy, specs, config, execute)
    settings = {**_settings(policy, tasks, config, execute), "identity": digest(identity), **settings}
    if configuration is not None:
        settings["configuration"] = configuration
    if shard is not None:
        number, count = shard
        specs, folder = part(specs, shard), folder / shard_folder(number, count)
        identity["shard"] = settings["shard"] = f"{number}/{count}"
        tasks = [task for task in tasks if any(spec.task is task for spec in specs)]
    folder.mkdir(parents=True, exist_ok=True)
    names = [task.task for task in tasks]
    with Journal(folder, identity) as journal:
        films = Films(journal.films, config.videos) if config.videos and can_film(tasks) else None
        _run(policy, specs, config, execute, journal, films)
        records = list(journal.records.values())
        Evaluation.from_records(records, names, settings, suites).write(folder / "evaluation.json")
        if films is not None:
            records = write_videos(
                records,
                films,
                tasks,
                folder,
                count=config.videos,
                size=config.video_size,
                workers=config.workers,
            )
        evaluation = Evaluation.from_records(records, names, settings, suites)
        write_results(policy, evaluation, folder, configuration, metrics, training_summary)
        journal.remove()
    return evaluation, folder


def write_results(
    policy: MoDEPolicy,
    evaluation: Evaluation,
    folder: Path,
    configuration: Mapping[str, Any] | None,
    metrics: Sequence[Mapping[str, Any]],
    training_summary: Mapping[str, Any] | None,
) -> None:
    """Write ``evaluation.json`` and ``report.html``; the arguments are those of `evaluate_policy`."""
    evaluation.write(folder / "evaluation.json")
    write_report(
        folder / "report.html",
        title=f"MoDE on {evaluation.settings.get('task', 'tasks')}",
        evaluation=evaluation,
        metrics=metrics,
        expert_usage=usage(policy),
        settings=configuration,
        videos=episode_videos(evaluation, folder),
        training_summary=training_summary,
    )


def sampling_grid(policy: MoDEPolicy) -> list[float]:
    """Return the noise levels of the policy's sampler, with the final 0."""
    s = policy.config.sampler
    return grid(s.schedule, s.steps, s.sigma_min, s.sigma_max)


@torch.no_grad()
def usage(policy: MoDEPolicy, levels: int = 64) -> ExpertUsage:
    """Return the routers' softmax over noise levels, averaged over goals where routers see them."""
    s = policy.config.sampler
    sigmas = torch.logspace(np.log10(s.sigma_min), np.log10(s.sigma_max), levels, device=policy.device)
    table = policy.instructions
    goals = torch.zeros(1, policy.goal_dim) if table is None else table.embeddings
    per_goal = []
    for goal in goals if policy.config.denoiser.router.goal else goals[:1]:
        routings = policy.denoiser.route(sigmas, goal.to(policy.device).expand(levels, -1))
        per_goal.append(torch.stack([r.probs_RN for r in routings], dim=1))
    probs_SLN = torch.stack(per_goal).mean(0)
    routed = policy.config.denoiser.experts.active - policy.config.denoiser.experts.shared
    return ExpertUsage(probs_SLN.cpu().numpy(), sigmas.cpu().numpy(), routed)


def _settings(
    policy: MoDEPolicy, tasks: Sequence[EnvTask], config: EvaluationConfig, execute: int
) -> dict[str, Any]:
    """Return what reproduces the result."""
    return {
        "command": shlex.join(["uv", "run", Path(sys.argv[0]).name, *sys.argv[1:]]),
        "versions": versions(),
        "commit": commit(Path(__file__).parent) if shutil.which("git") else "",
        "device": device(),
        "protocol": described(tasks, config),
        "seed": config.seed,
        "episodes_per_task": config.episodes,
        "lanes": config.lanes,
        "threads": torch.get_num_threads(),
        "weights": config.weights,
        "execute": execute,
        "sampler": policy.config.sampler.name,
        "denoising_steps": policy.config.sampler.steps,
        "noise_levels": sampling_grid(policy),
        "observations": observation_options(tasks[0].env_id, policy.features),
    }


def _identity(
    policy: MoDEPolicy, specs: Sequence[EpisodeSpec], config: EvaluationConfig, execute: int
) -> dict[str, Any]:
    """Return all that outcomes depend on."""
    weights = hashlib.sha256()
    for name, tensor in sorted(policy.state_dict().items()):
        weights.update(name.encode())
        weights.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return {
        "weights": weights.hexdigest(),
        "policy": to_dict(policy.config),
        "execute": execute,
        "lanes": config.lanes,
        "versions": versions(),
        "episodes": [(s.task.env_id, s.task.max_steps, s.seed, s.initial_state, s.repeat) for s in specs],
    }


def _run(
    policy: MoDEPolicy,
    specs: Sequence[EpisodeSpec],
    config: EvaluationConfig,
    execute: int,
    journal: Journal,
    films: Films | None,
) -> None:
    """Make the rollouts that the journal lacks."""
    left = [s for s in specs if (s.task.task.name, s.seed, s.initial_state, s.repeat) not in journal.records]
    if len(left) < len(specs):
        there = len(specs) - len(left)
        console.print(f"continuing {journal.path.parent}: {there} of {len(specs)} rollouts are there")
    if not left:
        return
    with bar("evaluating", "rollouts") as progress:
        row = progress.add_task("evaluating", total=len(specs), completed=len(specs) - len(left), note="")

        def on_episode(_: int, result: EpisodeResult) -> None:
            if films is not None:
                films.keep(result)
            journal.append(_record(result))
            successes = sum(record.success for record in journal.records.values())
            progress.update(row, advance=1, note=f"success {successes / len(journal.records):.0%}")

        rollout(
            PolicyRunner(policy),
            left,
            execute=execute,
            lanes=config.lanes,
            workers=os.cpu_count() if config.workers is None else config.workers,
            options=observation_options(left[0].task.env_id, policy.features),
            film=0 if films is None else stride(left[0].task),
            on_episode=on_episode,
            notify=lambda sentence: console.print(f"waiting    {sentence}"),
        )


def _record(result: EpisodeResult) -> EpisodeRecord:
    values = {
        name: getattr(result, name) for name in EpisodeRecord.__dataclass_fields__ if hasattr(result, name)
    }
    metrics = dict(result.metrics)
    if "coverage" in metrics:
        metrics["score"] = coverage_score(metrics["coverage"])
    return EpisodeRecord(**{**values, "metrics": metrics})


def announce(evaluation: Evaluation, folder: Path, checkpoint: Path) -> None:
    """Print the table, where everything is, and the headline last."""
    console.print(evaluation.table())
    console.print(f"checkpoint {checkpoint}")
    for name in ("metrics.jsonl", "evaluation.json", "report.html", "videos"):
        if (folder / name).exists():
            console.print(f"{name.split('.')[0]:10} {folder / name}")
    console.print(evaluation.headline())
