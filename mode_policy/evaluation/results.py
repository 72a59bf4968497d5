"""What an evaluation found: all episodes, summaries per task and overall, and the file they live in."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Column, Table

from mode_policy.errors import did_you_mean
from mode_policy.evaluation.records import EpisodeRecord, ResultsError, TaskResult
from mode_policy.files import replacing
from mode_policy.types import Task

FORMAT = 1
OVERALL = "overall"


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A policy's evaluation. Build it with `from_records`, `from_json` or `read`.

    Attributes:
        tasks: One result per task, in the order given.
        suites: Names of the tasks of each suite, if they come from several.
        overall: All episodes pooled.
        episodes: The records, by task, start and repeat, whatever order they finished in.
        settings: How it was made, JSON-ready: checkpoint, seeds, sampler, steps, execute, versions, command.
    """

    tasks: tuple[TaskResult, ...]
    suites: dict[str, tuple[str, ...]]
    overall: TaskResult
    episodes: tuple[EpisodeRecord, ...]
    settings: dict[str, Any]

    @classmethod
    def from_records(
        cls,
        records: Iterable[EpisodeRecord],
        tasks: Sequence[Task],
        settings: Mapping[str, Any],
        suites: Mapping[str, Sequence[str]] | None = None,
    ) -> Evaluation:
        """Summarise ``records``; a task without any appears with 0 episodes.

        Args:
            records: Of all episodes.
            tasks: In the order of the results.
            settings: JSON-ready.
            suites: Names of the tasks of each suite, where a result for each is wanted.

        Raises:
            ResultsError: for a record of an unknown task, an episode that appears twice, or settings that
                JSON cannot hold (paths and other objects are kept as text).
        """
        of_task: dict[str, dict[tuple[int, int, int], EpisodeRecord]] = {task.name: {} for task in tasks}
        for record in records:
            if record.task not in of_task:
                raise ResultsError(
                    f"a record names task {record.task!r}.{did_you_mean(record.task, of_task)}"
                )
            state = -1 if record.initial_state is None else record.initial_state
            key = (state, record.seed, record.repeat)
            if key in of_task[record.task]:
                raise ResultsError(
                    f"episode {record.task!r}, {record.label} appears twice; evaluate with distinct seeds"
                )
            of_task[record.task][key] = record
        ordered = {name: [found[key] for key in sorted(found)] for name, found in of_task.items()}
        episodes = [record for group in ordered.values() for record in group]
        try:
            plain = json.loads(json.dumps(dict(settings), allow_nan=False, default=str))
        except (ValueError, TypeError) as error:
            raise ResultsError(f"settings cannot be written as JSON: {error}") from error
        return cls(
            tasks=tuple(TaskResult.from_records(t.name, t.instruction, ordered[t.name]) for t in tasks),
            suites={suite: tuple(names) for suite, names in (suites or {}).items()},
            overall=TaskResult.from_records(OVERALL, "", episodes),
            episodes=tuple(episodes),
            settings=plain,
        )

    @property
    def suite_results(self) -> list[TaskResult]:
        """One result per suite."""
        return [
            TaskResult.from_records(suite, "", [e for e in self.episodes if e.task in names])
            for suite, names in self.suites.items()
        ]

    def outcome(self) -> dict[str, Any]:
        """Return the part that two runs with the same policy, seeds and settings must share exactly."""
        return {
            "tasks": [task.to_json() for task in self.tasks],
            "suites": [
                {"tasks": list(names), **result.to_json()}
                for names, result in zip(self.suites.values(), self.suite_results, strict=True)
            ],
            "overall": self.overall.to_json(),
            "episodes": [episode.outcome() for episode in self.episodes],
        }

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready mapping: `outcome`, ``settings``, and in ``run`` what a repeat may change."""
        return {
            "format": FORMAT,
            **self.outcome(),
            "settings": self.settings,
            "run": [episode.run() for episode in self.episodes],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Evaluation:
        """Build an evaluation from `to_json`'s mapping; summaries are computed anew from the episodes.

        Raises:
            ResultsError: if the mapping is of another format or lacks something.
        """
        if not isinstance(data, Mapping) or data.get("format") != FORMAT:
            found = data.get("format") if isinstance(data, Mapping) else type(data).__name__
            raise ResultsError(f"results of format {found!r}, but this version reads format {FORMAT}")
        try:
            pairs = zip(data["episodes"], data["run"], strict=True)
            records = [EpisodeRecord.from_json(episode, run) for episode, run in pairs]
            suites = {suite["name"]: suite["tasks"] for suite in data.get("suites", ())}
            tasks = [Task(name=task["name"], instruction=task["instruction"]) for task in data["tasks"]]
            settings = dict(data["settings"])
        except KeyError as error:
            raise ResultsError(f"results lack {error.args[0]!r}; evaluate again to make them") from error
        except (TypeError, ValueError, AttributeError) as error:
            raise ResultsError(f"results are malformed ({error}); evaluate again to make them") from error
        return cls.from_records(records, tasks, settings, suites)

    def write(self, path: Path | str) -> Path:
        """Write `to_json` to ``path`` (usually ``evaluation.json``), sorted and whole or not at all."""
        text = json.dumps(self.to_json(), indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
        with replacing(path) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")
        return Path(path)

    @classmethod
    def read(cls, path: Path | str) -> Evaluation:
        """Read what `write` wrote.

        Raises:
            ResultsError: naming the file, if it is missing, is not JSON or is not an evaluation.
        """
        try:
            return cls.from_json(json.loads(Path(path).read_text(encoding="utf-8")))
        except FileNotFoundError as error:
            raise ResultsError(f"no results at {path}; run an evaluation that writes there first") from error
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ResultsError(f"{path} is not valid JSON ({error}); evaluate again to replace it") from error
        except ResultsError as error:
            raise ResultsError(f"{path}: {error}") from error

    def headline(self) -> str:
        """Return e.g. ``success: 0.95 [0.91, 0.97] (200 episodes)``: pooled rate and 95 % Wilson interval."""
        low, high = self.overall.interval
        return (
            f"success: {self.overall.success:.2f} [{low:.2f}, {high:.2f}] ({self.overall.episodes} episodes)"
        )

    def table(self) -> Table:
        """Return a console table: a row per task, a column per metric, and the overall row."""
        metrics = list(self.overall.metrics)
        table = Table(
            Column("task", overflow="fold"),  # LIBERO's names differ at their ends
            caption="[…] 95 % intervals; steps of successful episodes",
            caption_justify="left",
        )
        for column in ("success", "interval", "episodes", "mean steps", *metrics):
            table.add_column(escape(column), justify="right")
        for result in self.tasks:
            name, *rest = result.row(metrics)
            table.add_row(escape(name), *rest)
        for result in (*self.suite_results, self.overall):
            table.add_section()
            name, *rest = result.row(metrics)
            table.add_row(escape(name), *rest, style="bold")
        return table
