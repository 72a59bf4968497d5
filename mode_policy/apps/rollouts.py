"""Evaluating a policy in simulation: rollouts, table, records, videos, report."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mode_envs import EnvTask, convention, features, rendering_available
from mode_envs.collect import episode_seed
from mode_envs.lanes import Video as Filming
from mode_envs.registration import entry
from mode_envs.rollout import EpisodeResult, EpisodeSpec, rollout
from mode_policy.apps.cli import console
from mode_policy.apps.config import EvaluationConfig
from mode_policy.apps.dataset import control_rate
from mode_policy.apps.progress import bar
from mode_policy.checkpoint import versions
from mode_policy.convention import Side, check_same
from mode_policy.diffusion.schedules import grid
from mode_policy.errors import DataError, ModePolicyError
from mode_policy.evaluation import (
    EpisodeRecord,
    Evaluation,
    ExpertUsage,
    coverage_score,
    episode_videos,
    mark_outcome,
    write_report,
    write_video,
)
from mode_policy.evaluation.runner import PolicyRunner
from mode_policy.policy import MoDEPolicy
from mode_policy.types import IMAGE_PREFIX, Features, feature_kind


def evaluate_policy(
    policy: MoDEPolicy,
    tasks: Sequence[EnvTask],
    config: EvaluationConfig,
    folder: Path,
    *,
    execute: int | None = None,
    demonstrated: Collection[int] = (),
    settings: Mapping[str, Any],
    configuration: Mapping[str, Any] | None = None,
    metrics: Sequence[Mapping[str, Any]] = (),
    training_summary: Mapping[str, Any] | None = None,
) -> Evaluation:
    """Roll out, then write ``evaluation.json``, ``videos/`` and ``report.html`` to ``folder``.

    Scores are on disk before the first video is encoded: nothing that follows can lose them.

    Args:
        policy: with its statistics and instructions.
        tasks: to evaluate.
        config: how many rollouts, which seeds.
        folder: for the results.
        execute: actions of a chunk that are executed; the policy's own by default.
        demonstrated: seeds of the demonstrations, which no rollout may start from.
        settings: recorded with the results.
        configuration: shown folded in the report.
        metrics: of the training, for the report.
        training_summary: of the training, for the report.

    Raises:
        DataError: if the policy does not fit the environments, or a rollout would start where a
        demonstration did.
    """
    check_fit(policy, tasks, config, demonstrated)
    folder.mkdir(parents=True, exist_ok=True)
    seeds = rollout_seeds(config)
    specs = [EpisodeSpec(task=task, seed=seed) for task in tasks for seed in seeds]
    record = _filmed(tasks, config)
    results = _run(policy, specs, config, execute or policy.config.execute, record)
    settings = {
        "command": shlex.join(["uv", "run", Path(sys.argv[0]).name, *sys.argv[1:]]),
        "versions": versions(),
        "seed": config.seed,
        "episodes_per_task": config.episodes,
        "lanes": config.lanes,
        "threads": torch.get_num_threads(),
        "weights": config.weights,
        "execute": execute or policy.config.execute,
        "sampler": policy.config.sampler.name,
        "denoising_steps": policy.config.sampler.steps,
        "noise_levels": sampling_grid(policy),
        **settings,
    }
    records = [_record(result) for result in results]
    names = [task.task for task in tasks]
    Evaluation.from_records(records, names, settings).write(folder / "evaluation.json")
    records = _write_videos(records, results, tasks, folder)
    evaluation = Evaluation.from_records(records, names, settings)
    evaluation.write(folder / "evaluation.json")
    write_report(
        folder / "report.html",
        title=f"MoDE on {settings.get('task', 'tasks')}",
        evaluation=evaluation,
        metrics=metrics,
        expert_usage=usage(policy),
        settings=configuration,
        videos=episode_videos(evaluation, folder),
        training_summary=training_summary,
    )
    return evaluation


def rollout_seeds(config: EvaluationConfig) -> list[int]:
    """Return the seeds from which each task's rollouts start."""
    return [episode_seed(config.seed, i) for i in range(config.episodes)]


def check_fit(
    policy: MoDEPolicy, tasks: Sequence[EnvTask], config: EvaluationConfig, demonstrated: Collection[int]
) -> None:
    """Compare a policy with the environments before anything long begins.

    Raises:
        DataError: if a feature has another shape, an instruction is unknown to the checkpoint, or a rollout
            would start where a demonstration did.
    """
    if seen := sorted(set(rollout_seeds(config)) & set(demonstrated)):
        raise DataError(
            f"{len(seen)} rollouts would start from initial states of the demonstrations (seed {seen[0]}); "
            f"choose another seed than {config.seed} for the evaluation"
        )
    own = Side(name="the policy", features=policy.features, convention=policy.convention)
    for env_id in dict.fromkeys(task.env_id for task in tasks):
        given = features(env_id, **observation_options(env_id, policy.features))
        for key, feature in policy.features.items():
            if key not in given:
                raise DataError(f"{env_id} gives {sorted(given)}, but the policy needs {key!r}")
            if feature_kind(key) == "image" and given[key].shape != feature.shape:
                raise DataError(
                    f"{key!r} has shape {given[key].shape} in {env_id} and {feature.shape} in the policy; "
                    "render at that size"
                )
        check_same(own, Side(name=env_id, features=given, convention=convention(env_id)))
    if policy.instructions is not None:
        policy.instructions.index([t.task.instruction for t in tasks])


def observation_options(env_id: str, needed: Features) -> dict[str, Any]:
    """Return the arguments with which an environment delivers what a policy reads.

    Raises:
        DataError: if its cameras have different sizes, which no environment renders.
    """
    images = {key: f.shape[:2] for key, f in needed.items() if feature_kind(key) == "image"}
    if not images:
        return {}
    if len(set(images.values())) > 1:
        raise DataError(f"the policy's cameras have different sizes ({images}); train on images of one size")
    names = tuple(key.removeprefix(IMAGE_PREFIX) for key in images)
    several = "suite" in entry(env_id).kwargs  # of LIBERO; the others have one camera at a time
    return {
        "obs_mode": "both" if any(feature_kind(key) == "state" for key in needed) else "pixels",
        "image_size": next(iter(images.values())),
    } | ({"cameras": names} if several else {"camera": names[0]})


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


def _filmed(tasks: Sequence[EnvTask], config: EvaluationConfig) -> list[int]:
    """Indices of the rollouts to film: the first few of each task, where pictures can be made."""
    if not config.videos:
        return []
    available, reason = rendering_available()
    if not available and any(entry(task.env_id).opengl for task in tasks):
        console.print(f"videos     none: {reason}")
        return []
    first = range(min(config.videos, config.episodes))
    return [t * config.episodes + i for t in range(len(tasks)) for i in first]


def _run(
    policy: MoDEPolicy, specs: list[EpisodeSpec], config: EvaluationConfig, execute: int, record: list[int]
) -> list[EpisodeResult]:
    successes = 0
    with bar("evaluating", "rollouts") as progress:
        row = progress.add_task("evaluating", total=len(specs), note="")

        def on_episode(_: int, result: EpisodeResult) -> None:
            nonlocal successes
            successes += result.success
            done = progress.tasks[0].completed + 1
            progress.update(row, advance=1, note=f"success {successes / done:.0%}")

        return rollout(
            PolicyRunner(policy),
            specs,
            execute=execute,
            lanes=config.lanes,
            workers=os.cpu_count() if config.workers is None else config.workers,
            options=observation_options(specs[0].task.env_id, policy.features),
            record=record,
            video=Filming(size=(config.video_size, config.video_size), stride=_stride(specs[0].task)),
            on_episode=on_episode,
        )


def _stride(task: EnvTask) -> int:
    """Steps between two pictures: about twenty pictures a second, for rendering takes longer than physics."""
    return max(1, round(control_rate(task) / 20))


def _record(result: EpisodeResult) -> EpisodeRecord:
    metrics = dict(result.metrics)
    if "coverage" in metrics:
        metrics["score"] = coverage_score(metrics["coverage"])
    return EpisodeRecord(
        task=result.task,
        seed=result.seed,
        success=result.success,
        steps=result.steps,
        return_=result.return_,
        metrics=metrics,
        seconds=result.seconds,
        restarts=result.restarts,
    )


def _write_videos(
    records: list[EpisodeRecord],
    results: Sequence[EpisodeResult],
    tasks: Sequence[EnvTask],
    folder: Path,
) -> list[EpisodeRecord]:
    """Write the filmed rollouts to ``folder/videos`` and name them in the records."""
    written = list(records)
    for i, result in enumerate(results):
        if result.frames is None:
            continue
        name = f"videos/{result.task}_{result.seed}_{'success' if result.success else 'failure'}.mp4"
        try:
            rate = control_rate(tasks[0]) / _stride(tasks[0])
            write_video(folder / name, mark_outcome(result.frames, result.success), fps=rate)
        except ModePolicyError as error:
            made = sum(record.video is not None for record in written)
            console.print(f"videos     {made or 'none'}: {error}")
            break
        written[i] = replace(records[i], video=name)
    return written


def announce(evaluation: Evaluation, folder: Path, checkpoint: Path) -> None:
    """Print the table, where everything is, and the headline last."""
    console.print(evaluation.table())
    console.print(f"checkpoint {checkpoint}")
    for name in ("metrics.jsonl", "evaluation.json", "report.html", "videos"):
        if (folder / name).exists():
            console.print(f"{name.split('.')[0]:10} {folder / name}")
    console.print(evaluation.headline())
