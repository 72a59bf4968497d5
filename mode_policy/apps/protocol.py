"""Which episodes an evaluation consists of, and which of them a machine runs.

Where a benchmark publishes initial states (LIBERO), a task's rollouts start from the first of them, as
published scores do; elsewhere each starts from a seed of its own. Either way every policy has the same
starts, so two evaluations can be compared start by start. Each start is rolled out ``repeats`` times, with
other noise for the policy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mode_envs import EnvTask
from mode_envs.collect import episode_seed
from mode_envs.registration import entry
from mode_envs.rollout import EpisodeSpec
from mode_policy.apps.config import EvaluationConfig
from mode_policy.errors import ConfigError

PUBLISHED_REPEATS = 3
"""Seeds of published LIBERO scores (MoDE's paper, section 5: 20 rollouts a task, 3 seeds)."""


def episodes_of(tasks: Sequence[EnvTask], config: EvaluationConfig) -> list[EpisodeSpec]:
    """Return all episodes of an evaluation, by task, start and repeat.

    Raises:
        ConfigError: if more starts are asked for than a benchmark publishes.
    """
    return [
        EpisodeSpec(task=task, repeat=repeat, **start)
        for task in tasks
        for start in _starts(task, config)
        for repeat in range(repeats_of(task, config))
    ]


def repeats_of(task: EnvTask, config: EvaluationConfig) -> int:
    """Return how often each start of a task is rolled out."""
    if config.repeats is not None:
        return config.repeats
    return PUBLISHED_REPEATS if entry(task.env_id).initial_states else 1


def _starts(task: EnvTask, config: EvaluationConfig) -> list[dict[str, int]]:
    known = entry(task.env_id).initial_states
    if not known:
        return [{"seed": seed} for seed in rollout_seeds(config)]
    if config.episodes > known:
        raise ConfigError(
            f"{task.task.name!r} has {known} published initial states, fewer than "
            f"episodes={config.episodes}; for more rollouts raise repeats, the draws of the policy's noise"
        )
    return [{"seed": config.seed, "initial_state": number} for number in range(config.episodes)]


def rollout_seeds(config: EvaluationConfig) -> list[int]:
    """Return the seeds from which rollouts start, of tasks without published initial states."""
    return [episode_seed(config.seed, i) for i in range(config.episodes)]


def described(tasks: Sequence[EnvTask], config: EvaluationConfig) -> dict[str, Any]:
    """Return the protocol in words and numbers, for the record."""
    starts = {
        f"published initial states 0 to {config.episodes - 1}"
        if entry(task.env_id).initial_states
        else f"{config.episodes} seeds of the environment's reset"
        for task in tasks
    }
    repeats = sorted({repeats_of(task, config) for task in tasks})
    return {"starts": sorted(starts), "repeats": repeats[0] if len(repeats) == 1 else repeats}


def part(episodes: Sequence[EpisodeSpec], shard: tuple[int, int]) -> list[EpisodeSpec]:
    """Return a shard's episodes: neighbours, so that a machine builds few scenes."""
    number, count = shard
    return list(episodes[len(episodes) * number // count : len(episodes) * (number + 1) // count])
