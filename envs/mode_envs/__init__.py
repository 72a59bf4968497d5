"""Simulated tasks behind one contract: gymnasium environments, scripted experts, collection, rollouts.

Importing the package registers the gymnasium ids and nothing more; simulators are imported when an
environment is made. Demonstrations come from `mode_envs.collect.collect`, evaluations from
`mode_envs.rollout.rollout`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from mode_envs.instructions import METAWORLD_INSTRUCTIONS
from mode_envs.registration import register

if TYPE_CHECKING:
    from mode_envs.experts import Expert, make_expert
    from mode_envs.features import convention, features
    from mode_envs.renderer import rendering_available
    from mode_envs.suites import SUITES, EnvTask, env_task, make, suite

# Loaded at first use: worker processes import this package too, and need neither this nor torch.
_LAZY = {
    "EnvTask": "suites",
    "Expert": "experts",
    "SUITES": "suites",
    "convention": "features",
    "env_task": "suites",
    "features": "features",
    "make": "suites",
    "make_expert": "experts",
    "rendering_available": "renderer",
    "suite": "suites",
}

__all__ = [
    "METAWORLD_INSTRUCTIONS",
    "SUITES",
    "EnvTask",
    "Expert",
    "convention",
    "env_task",
    "features",
    "make",
    "make_expert",
    "register",
    "rendering_available",
    "suite",
]

register()


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{_LAZY[name]}")
    # All of its names at once: the import has put the module `features` where the function shall be.
    globals().update({other: getattr(module, other) for other, home in _LAZY.items() if home == _LAZY[name]})
    return globals()[name]
