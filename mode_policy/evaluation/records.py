"""What is known of one episode, and of the episodes of one task."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mode_policy.errors import ModePolicyError
from mode_policy.evaluation.intervals import Interval, bootstrap_mean, wilson


class ResultsError(ModePolicyError):
    """Episode records or a results file that cannot be used."""


def coverage_score(coverage: float) -> float:
    """Return Diffusion Policy's Push-T score of an episode's best coverage: clip(coverage / 0.95, 0, 1).

    Source: Chi et al., "Diffusion Policy" (arXiv 2303.04137), whose environment counts a coverage of 0.95 as
    solved. The best score of an episode is the score of its best coverage, since the map is monotone.
    """
    return min(max(coverage / 0.95, 0.0), 1.0)


@dataclass(frozen=True, kw_only=True)
class EpisodeRecord:
    """One evaluated episode. Task, start (initial state, or seed) and repeat name it.

    Attributes:
        task: Name of the task.
        seed: Seed of the environment's reset, and of the policy's noise.
        initial_state: Number of the benchmark's initial state that it started from; None if the seed decided.
        repeat: Tells apart episodes with the same start, in which the policy drew other noise.
        success: Whether the task was solved at any step.
        steps: Environment steps until success or the end.
        return_: Sum of rewards (``"return"`` in JSON).
        metrics: Further finite numbers, e.g. ``{"coverage": best coverage, "score": its score}`` in [0, 1].
        seconds: Wall-clock time.
        restarts: How often the simulator had to be started again to finish the episode.
        video: Path of its video, relative to the results file, or None.

    Raises:
        ResultsError: if a number is not finite.
    """

    task: str
    seed: int
    success: bool
    steps: int
    return_: float
    initial_state: int | None = None
    repeat: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    restarts: int = 0
    video: str | None = None

    def __post_init__(self) -> None:
        for name, value in {"return": self.return_, "seconds": self.seconds, **self.metrics}.items():
            if not math.isfinite(value):
                raise ResultsError(
                    f"episode {self.task!r}, {self.label}: {name} is {value}; "
                    "look for non-finite actions or rewards in this episode"
                )

    @property
    def start(self) -> tuple[str, int]:
        """What the episode started from: episodes of two policies are compared if they share it."""
        return ("seed", self.seed) if self.initial_state is None else ("initial state", self.initial_state)

    @property
    def label(self) -> str:
        """The episode within its task, e.g. ``"seed 7"`` or ``"initial state 3, repeat 1"``."""
        kind, number = self.start
        return f"{kind} {number}" + (f", repeat {self.repeat}" if self.repeat else "")

    def outcome(self) -> dict[str, Any]:
        """Return what depends on the policy and the seed alone, JSON-ready."""
        return {
            "task": self.task,
            "seed": int(self.seed),  # simulators hand over NumPy scalars, which JSON refuses
            "initial_state": None if self.initial_state is None else int(self.initial_state),
            "repeat": int(self.repeat),
            "success": bool(self.success),
            "steps": int(self.steps),
            "return": float(self.return_),
            "metrics": {name: float(value) for name, value in self.metrics.items()},
        }

    def run(self) -> dict[str, Any]:
        """Return what a repeat of the episode may change, JSON-ready."""
        return {"seconds": float(self.seconds), "restarts": int(self.restarts), "video": self.video}

    @classmethod
    def from_json(cls, outcome: Mapping[str, Any], run: Mapping[str, Any]) -> EpisodeRecord:
        """Build a record from `outcome` and `run`; records of earlier versions lack initial state and repeat.

        Raises:
            KeyError, TypeError, ValueError: if something is missing or malformed.
        """
        state = outcome.get("initial_state")
        return cls(
            task=str(outcome["task"]),
            seed=int(outcome["seed"]),
            initial_state=None if state is None else int(state),
            repeat=int(outcome.get("repeat", 0)),
            success=bool(outcome["success"]),
            steps=int(outcome["steps"]),
            return_=float(outcome["return"]),
            metrics={name: float(value) for name, value in outcome["metrics"].items()},
            seconds=float(run["seconds"]),
            restarts=int(run["restarts"]),
            video=run["video"],
        )


@dataclass(frozen=True, kw_only=True)
class TaskResult:
    """Episodes of one task, or of all, in numbers.

    Attributes:
        name: The task's name, or ``"overall"``.
        instruction: The task's instruction, or empty.
        episodes: How many were run.
        successes: How many succeeded.
        mean_steps: Mean steps of the successful episodes, or None without any.
        mean_return: Mean sum of rewards, or None without episodes.
        metrics: Mean of each metric over the episodes that report it.
        metric_intervals: 95 % bootstrap interval of each of these means.
    """

    name: str
    instruction: str
    episodes: int
    successes: int
    mean_steps: float | None
    mean_return: float | None
    metrics: dict[str, float]
    metric_intervals: dict[str, Interval]

    @property
    def success(self) -> float:
        """Success rate in [0, 1]; NaN without episodes."""
        return self.successes / self.episodes if self.episodes else math.nan

    @property
    def interval(self) -> Interval:
        """95 % Wilson interval of the success rate."""
        return wilson(self.successes, self.episodes)

    @classmethod
    def from_records(cls, name: str, instruction: str, records: Sequence[EpisodeRecord]) -> TaskResult:
        """Summarise the episodes of one task."""
        solved = [record.steps for record in records if record.success]
        values: dict[str, list[float]] = {}
        for record in records:
            for metric, value in record.metrics.items():
                values.setdefault(metric, []).append(value)
        return cls(
            name=name,
            instruction=instruction,
            episodes=len(records),
            successes=len(solved),
            mean_steps=_mean(solved) if solved else None,
            mean_return=_mean([record.return_ for record in records]) if records else None,
            metrics={metric: _mean(values[metric]) for metric in sorted(values)},
            metric_intervals={metric: bootstrap_mean(values[metric]) for metric in sorted(values)},
        )

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready mapping; an unknown success rate is null."""
        return {
            "name": self.name,
            "instruction": self.instruction,
            "episodes": self.episodes,
            "successes": self.successes,
            "success": self.success if self.episodes else None,
            "interval": list(self.interval),
            "mean_steps": self.mean_steps,
            "mean_return": self.mean_return,
            "metrics": self.metrics,
            "metric_intervals": {metric: list(ends) for metric, ends in self.metric_intervals.items()},
        }

    def row(self, metrics: Sequence[str]) -> list[str]:
        """Return a table row as text: name, success, interval, episodes, mean steps, then ``metrics``."""
        low, high = self.interval
        return [
            self.name,
            f"{self.success:.2f}" if self.episodes else "–",
            f"[{low:.2f}, {high:.2f}]",
            str(self.episodes),
            "–" if self.mean_steps is None else f"{self.mean_steps:.1f}",
            *(f"{self.metrics[metric]:.3f}" if metric in self.metrics else "–" for metric in metrics),
        ]


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
