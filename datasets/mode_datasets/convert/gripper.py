"""From actions that change a gripper to actions that say where it is to be."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from mode_policy.convention import Gripper
from mode_policy.errors import ConfigError
from mode_policy.types import ACTION, Episode

#: Changes below this are noise.
THRESHOLD = 0.1

#: Where an open gripper is.
_OPEN = {"plus_closes": -1.0, "plus_opens": 1.0}


def check_convention(gripper: Gripper) -> None:
    """Refuse conventions under which 0 is a position.

    Raises:
        ConfigError: if it is not one of −1 and +1.
    """
    if gripper not in _OPEN:
        raise ConfigError(
            f"--gripper-changes needs --gripper plus_closes or plus_opens, and it is {gripper}: say which "
            "way +1 moves it"
        )


def hold_gripper(episode: Episode, gripper: Gripper) -> Episode:
    """Return an episode whose last action dimension is −1 or +1 at each step, instead of the changes to them.

    Before its first change, the gripper is where that change takes it from; without any, it is open.

    Args:
        episode: Its last action dimension is the change: +1, −1 or about 0.
        gripper: What +1 means.
    """
    actions = episode.arrays[ACTION].copy()
    change = np.where(np.abs(actions[:, -1]) > THRESHOLD, np.sign(actions[:, -1]), 0.0)
    changes = np.flatnonzero(change)
    before = -change[changes[0]] if len(changes) else _OPEN[gripper]
    # The last change up to each step; 0 is the state before all of them.
    latest = np.searchsorted(changes, np.arange(len(change)), side="right")
    actions[:, -1] = np.concatenate([[before], change[changes]])[latest]
    return replace(episode, arrays={**episode.arrays, ACTION: actions})
