"""Tasks by name, and the named suites that benchmarks are made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium

from mode_envs.instructions import METAWORLD_INSTRUCTIONS, METAWORLD_MT10
from mode_envs.libero_tasks import LIBERO_SUITES
from mode_envs.registration import entry
from mode_policy.errors import ConfigError, did_you_mean
from mode_policy.types import Task


@dataclass(frozen=True, kw_only=True)
class EnvTask:
    """A task that can be simulated.

    Attributes:
        env_id: Gymnasium id of its environment.
        task: Name and instruction.
        max_steps: Control steps after which an episode is truncated.
    """

    env_id: str
    task: Task
    max_steps: int


def env_task(name: str) -> EnvTask:
    """Return a task by its name (``"reach-v3"``) or gymnasium id (``"mode/metaworld-reach-v3"``).

    Raises:
        ConfigError: if there is no such task.
    """
    found = entry(name)
    task = Task(name=found.task, instruction=found.instruction)
    return EnvTask(env_id=found.env_id, task=task, max_steps=found.max_steps)


def _tasks(*names: str) -> tuple[EnvTask, ...]:
    return tuple(env_task(name) for name in names)


SUITES: Mapping[str, Callable[[], tuple[EnvTask, ...]]] = {
    "libero_10": lambda: _tasks(*LIBERO_SUITES["10"].tasks),
    "libero90": lambda: _tasks(*LIBERO_SUITES["90"].tasks),
    "libero_goal": lambda: _tasks(*LIBERO_SUITES["goal"].tasks),
    "libero_object": lambda: _tasks(*LIBERO_SUITES["object"].tasks),
    "libero_spatial": lambda: _tasks(*LIBERO_SUITES["spatial"].tasks),
    "metaworld_mt10": lambda: _tasks(*METAWORLD_MT10),
    "metaworld_mt50": lambda: _tasks(*METAWORLD_INSTRUCTIONS),
    "pusht": lambda: _tasks("pusht"),
}
"""Suite name → its tasks, in the benchmark's own order."""


def suite(name: str) -> tuple[EnvTask, ...]:
    """Return the tasks of a suite.

    Raises:
        ConfigError: if there is no such suite.
    """
    if name not in SUITES:
        raise ConfigError(f"unknown suite {name!r}.{did_you_mean(name, SUITES)}")
    return SUITES[name]()


def make(task: EnvTask | str, **options: Any) -> gymnasium.Env:
    """Make the environment of a task; ``options`` go to its class, e.g. ``obs_mode="both"``.

    Raises:
        ConfigError: if there is no such task.
        SimulatorError: if its simulator is not installed.
    """
    task = env_task(task) if isinstance(task, str) else task
    return gymnasium.make(task.env_id, max_episode_steps=task.max_steps, **options)
