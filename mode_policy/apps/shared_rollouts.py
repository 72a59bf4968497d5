"""Rollouts by the processes that trained: each makes its share; the main one makes them one evaluation."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mode_envs import EnvTask
from mode_policy.apps.config import EvaluationConfig
from mode_policy.apps.protocol import episodes_of
from mode_policy.apps.rollouts import evaluate_policy, write_results
from mode_policy.evaluation import EpisodeRecord, Evaluation, ResultsError
from mode_policy.evaluation.shards import FILE, shard_folder
from mode_policy.policy import MoDEPolicy
from mode_policy.training.processes import Processes


def evaluate_together(
    processes: Processes,
    policy: MoDEPolicy,
    tasks: Sequence[EnvTask],
    config: EvaluationConfig,
    folder: Path,
    *,
    demonstrated: Collection[int],
    settings: Mapping[str, Any],
    configuration: Mapping[str, Any],
    metrics: Sequence[Mapping[str, Any]],
    training_summary: Mapping[str, Any],
) -> Evaluation | None:
    """Roll out in every process; return the evaluation in the main one, None in the others.

    All of them must call it, and see the same ``folder``. What is in it afterwards is what a single process
    leaves: the same episodes from the same starts with the same noise. Each process asks the policy for its
    own episodes, so an outcome may differ as far as the arithmetic depends on the size of a batch.

    Args:
        processes: that trained together.
        policy, tasks, folder, demonstrated: as in `evaluate_policy`.
        config: of the rollouts; ``lanes`` are those of each process, and a machine's cores are shared.
        settings, configuration, metrics, training_summary: as in `evaluate_policy`.

    Raises:
        DataError, SimulatorError: as `evaluate_policy` does.
        ResultsError: if the processes do not hold the same policy.
    """
    if processes.count == 1:
        evaluation, _ = evaluate_policy(
            policy,
            tasks,
            config,
            folder,
            demonstrated=demonstrated,
            settings=settings,
            configuration=configuration,
            metrics=metrics,
            training_summary=training_summary,
        )
        return evaluation
    count = min(processes.count, len(episodes_of(tasks, config)))
    place = folder / "rollouts"  # of the shards, until they are one
    if processes.rank < count:
        evaluate_policy(
            policy,
            tasks,
            replace(config, workers=_own_workers(config)),
            place,
            demonstrated=demonstrated,
            shard=(processes.rank, count),
            settings=settings,
            configuration=configuration,
        )
    processes.wait()
    if not processes.main:
        return None
    shards = [place / shard_folder(number, count) for number in range(count)]
    parts = {path: Evaluation.read(path / FILE) for path in shards}
    if len({part.settings["identity"] for part in parts.values()}) > 1:
        raise ResultsError(f"the processes evaluated different policies or episodes: see {place}")
    records = _with_videos(
        [(path, e) for path in shards for e in parts[path].episodes], config.videos, folder
    )
    kept = {name: value for name, value in parts[shards[0]].settings.items() if name != "shard"}
    names = [task.task for task in tasks]
    evaluation = Evaluation.from_records(records, names, kept | {"processes": count})
    write_results(policy, evaluation, folder, configuration, metrics, training_summary)
    shutil.rmtree(place)
    return evaluation


def _own_workers(config: EvaluationConfig) -> int:
    """Simulator processes of this process: its share of the machine's cores, unless the user says."""
    if config.workers is not None:
        return config.workers
    return max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def _with_videos(
    found: Sequence[tuple[Path, EpisodeRecord]], count: int, folder: Path
) -> list[EpisodeRecord]:
    """Take ``count`` videos of each task, failures first, to ``folder``; return the episodes."""
    records, taken = [], dict.fromkeys((record.task for _, record in found), 0)
    for path, record in sorted(found, key=lambda pair: pair[1].success):
        if record.video is not None and taken[record.task] < count:
            (folder / record.video).parent.mkdir(exist_ok=True)
            (path / record.video).replace(folder / record.video)
            taken[record.task] += 1
            records.append(record)
        else:
            records.append(replace(record, video=None))
    return records
