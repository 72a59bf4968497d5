"""Demonstrations without pictures, kept as files: an interrupted collection goes on from them.

::

    <root>/<task>/noise0.2-0.5-seed0-settle5/000012.npz    the task's attempt 12, which succeeded

A file has what `mode_envs.demonstrate` records, the snapshots included, so pictures of any size and camera
can be made of it without simulating again. Failed attempts leave none.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from mode_envs.demonstrate import Arrays, Attempt
from mode_envs.registration import entry
from mode_policy.files import replacing


class Recordings:
    """Recorded demonstrations below a folder.

    Args:
        root: The folder; it is made when something is written.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, attempt: Attempt, seed: int, number: int) -> Path:
        """Return where the outcome of a task's attempt is kept.

        Args:
            attempt: What is demonstrated, and how.
            seed: The collection's, of which the attempt's own follows.
            number: Of the attempt within its task.
        """
        noise = f"noise{attempt.noise:g}-{attempt.noise_probability:g}"
        how = f"{noise}-seed{seed}-settle{attempt.settle_steps}"
        if attempt.no_ops_below:
            how += f"-noop{attempt.no_ops_below:g}"
        return self.root / entry(attempt.env_id).task / how / f"{number:06d}.npz"

    @staticmethod
    def read(path: Path) -> Arrays | None:
        """Return a recording, or None if there is none that can be read."""
        try:
            with np.load(path, allow_pickle=False) as file:
                return {name: file[name] for name in file.files}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile):
            return None

    @staticmethod
    def write(path: Path, arrays: Arrays) -> None:
        """Keep a recording; it is there whole or not at all."""
        with replacing(path) as partial:
            np.savez_compressed(partial, **arrays)  # type: ignore[arg-type]  # an array under each name
