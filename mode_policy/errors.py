"""Errors that a user can act on, and the words that help them to."""

from __future__ import annotations

import difflib
import textwrap
from collections.abc import Iterable


class ModePolicyError(Exception):
    """Base of every error that names a bad input and the way out.

    Console programs print the message alone; a traceback would only hide it.
    """


class ConfigError(ModePolicyError):
    """A configuration value, task or override that cannot be used."""


class DataError(ModePolicyError):
    """A demonstration store that is missing, truncated or inconsistent."""


class ConventionError(DataError):
    """Two sides, such as a dataset and an environment, that do not mean the same by their numbers."""


class CheckpointError(ModePolicyError):
    """A checkpoint that is incomplete, corrupt or made for something else."""


class PlanError(ModePolicyError):
    """An inference plan that does not fit: stale weights, an unknown noise level, another batch."""


class ExportError(ModePolicyError):
    """An export that cannot be written, is damaged, or was made for something else."""


class SimulatorError(ModePolicyError):
    """An environment that cannot be built, or whose features do not fit the policy."""


class RobotError(ModePolicyError):
    """A robot that cannot be reached, or that does not answer."""


class InferenceError(ModePolicyError):
    """A policy, in another process or on a server, that refuses a request."""


class TrainingDivergedError(ModePolicyError):
    """The loss became non-finite or exploded; the offending batch has been saved."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `` Did you mean 'x'?`` with the closest of ``known``, and the list if it is short."""
    known = sorted(set(known))
    if not known:
        return ""
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(repr(c) for c in close)}?" if close else ""
    if len(known) <= 20 or not close:
        hint += f" Known: {textwrap.shorten(', '.join(known), 1000, placeholder=' …')}."
    return hint
