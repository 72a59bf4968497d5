"""Gymnasium ids of every environment, registered without importing a simulator."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import gymnasium

from mode_envs.instructions import METAWORLD_INSTRUCTIONS, PUSHT_INSTRUCTION
from mode_envs.libero_tasks import LIBERO_SUITES, instruction
from mode_policy.errors import ConfigError, SimulatorError, did_you_mean


@dataclass(frozen=True, kw_only=True)
class EnvEntry:
    """One environment as gymnasium registers it.

    Attributes:
        task: Unique name of the task, e.g. ``"reach-v3"``.
        env_id: Gymnasium id, e.g. ``"mode/metaworld-reach-v3"``.
        entry_point: ``"module:class"``, imported when the environment is made.
        max_steps: Control steps until gymnasium's TimeLimit truncates an episode.
        instruction: The task in natural language.
        has_expert: Whether `mode_envs.experts` can solve it.
        opengl: Whether its pictures need OpenGL.
        kwargs: Arguments of the class that select the task.
        initial_states: Number of initial states that the benchmark publishes for its evaluation, 0 for none.
        demonstration: Arguments that differ where it is demonstrated rather than evaluated.
    """

    task: str
    env_id: str
    entry_point: str
    max_steps: int
    instruction: str
    has_expert: bool = False
    opengl: bool = False
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    initial_states: int = 0
    demonstration: Mapping[str, Any] = field(default_factory=dict)


_PUSHT = EnvEntry(
    task="pusht",
    env_id="mode/pusht-v0",
    entry_point="mode_envs.pusht:PushTEnv",
    max_steps=300,
    instruction=PUSHT_INSTRUCTION,
)
_METAWORLD = tuple(
    EnvEntry(
        task=task,
        env_id=f"mode/metaworld-{task}",
        entry_point="mode_envs.metaworld:MetaWorldEnv",
        max_steps=500,
        instruction=text,
        has_expert=True,
        opengl=True,
        kwargs={"task": task},
    )
    for task, text in METAWORLD_INSTRUCTIONS.items()
)
_LIBERO = tuple(
    EnvEntry(
        task=task,
        env_id=f"mode/libero-{suite.key}-{task}",
        entry_point="mode_envs.libero:LiberoEnv",
        max_steps=suite.max_steps,
        instruction=instruction(task),
        has_expert=True,
        opengl=True,
        kwargs={"suite": suite.key, "task": task},
        initial_states=50,
        demonstration={"initial_states": "drawn"},
    )
    for suite in LIBERO_SUITES.values()
    for task in suite.tasks
)

ENTRIES: dict[str, EnvEntry] = {entry.task: entry for entry in (_PUSHT, *_METAWORLD, *_LIBERO)}
"""Task name → environment. Another simulator joins by adding its entries here."""


def entry(name: str) -> EnvEntry:
    """Return an environment by the name of its task or its gymnasium id.

    Raises:
        ConfigError: if there is no such task.
    """
    found = ENTRIES.get(name) or next((e for e in ENTRIES.values() if e.env_id == name), None)
    if found is None:
        raise ConfigError(f"unknown task {name!r}.{did_you_mean(name, ENTRIES)}")
    return found


def register() -> None:
    """Register every environment with gymnasium; calling it again does nothing."""
    for known in ENTRIES.values():
        if known.env_id not in gymnasium.registry:
            gymnasium.register(
                id=known.env_id,
                entry_point=known.entry_point,
                max_episode_steps=known.max_steps,
                # The checker re-validates every step; the test suite runs it once per environment instead.
                disable_env_checker=True,
                kwargs=dict(known.kwargs),
            )


def require(module: str, extra: str) -> ModuleType:
    """Import a simulator's module.

    Raises:
        SimulatorError: if it is not installed, with the line that installs it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise SimulatorError(
            f"this environment needs {error.name!r}, which is not installed; "
            f"run: pip install 'mode-policy[{extra}]'"
        ) from error
