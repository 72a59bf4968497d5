from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from mode_policy.evaluation import (
    EpisodeRecord,
    Evaluation,
    ResultsError,
    bootstrap_mean,
    coverage_score,
    wilson,
)
from mode_policy.types import Task

Make = Callable[..., EpisodeRecord]
REACH = Task(name="reach", instruction="reach the goal")


def rendered(evaluation: Evaluation) -> str:
    console = Console(width=160, file=StringIO())
    console.print(evaluation.table())
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_headline(record: Make) -> None:
    records = [record(seed=seed, success=seed < 190) for seed in range(200)]
    assert (
        Evaluation.from_records(records, [REACH], {}).headline()
        == "success: 0.95 [0.91, 0.97] (200 episodes)"
    )


def test_headline_without_episodes() -> None:
    assert Evaluation.from_records([], [REACH], {}).headline() == "success: nan [0.00, 1.00] (0 episodes)"


def test_summaries(evaluation: Evaluation) -> None:
    task = evaluation.tasks[0]
    solved = [seed for seed in range(8) if seed % 4]
    assert (task.episodes, task.successes, task.success) == (8, 6, 0.75)
    assert task.interval == wilson(6, 8)
    assert task.mean_steps == 40 + np.mean(solved)
    assert task.metrics["coverage"] == pytest.approx(0.35)
    assert task.metric_intervals["coverage"] == bootstrap_mean([seed / 10 for seed in range(8)])
    assert (evaluation.overall.episodes, evaluation.overall.successes) == (16, 12)


def test_metrics_average_over_the_episodes_that_have_them(record: Make) -> None:
    records = [
        record(seed=0, metrics={"coverage": 0.5}),
        record(seed=1),
        record(seed=2, metrics={"coverage": 1.0}),
    ]
    assert Evaluation.from_records(records, [REACH], {}).overall.metrics == {"coverage": 0.75}


@given(st.permutations(range(6)))
def test_order_of_completion_does_not_matter(order: list[int]) -> None:
    records = [
        EpisodeRecord(task="ab"[i % 2], seed=i // 2, success=i > 2, steps=i, return_=0.1 * i)
        for i in range(6)
    ]
    tasks = [Task(name=name, instruction="") for name in "ba"]
    shuffled = Evaluation.from_records([records[i] for i in order], tasks, {})
    assert shuffled == Evaluation.from_records(records, tasks, {})
    assert [(e.task, e.seed) for e in shuffled.episodes] == [(t, s) for t in "ba" for s in range(3)]


NUMBERS = st.floats(allow_nan=False, allow_infinity=False)


@given(
    st.lists(
        st.tuples(st.booleans(), st.integers(0, 500), NUMBERS, st.dictionaries(st.text(), st.floats(0, 1)))
    ),
    st.dictionaries(st.text(), NUMBERS | st.text() | st.none()),
)
def test_json_round_trip(
    rows: list[tuple[bool, int, float, dict[str, float]]], settings: dict[str, Any]
) -> None:
    records = [
        EpisodeRecord(task="reach", seed=i, success=ok, steps=steps, return_=total / 1e3, metrics=metrics)
        for i, (ok, steps, total, metrics) in enumerate(rows)
    ]
    evaluation = Evaluation.from_records(records, [REACH], settings)
    text = json.dumps(evaluation.to_json(), allow_nan=False)
    assert Evaluation.from_json(json.loads(text)) == evaluation


def test_file_round_trip(evaluation: Evaluation, tmp_path: Path) -> None:
    path = evaluation.write(tmp_path / "new" / "evaluation.json")
    assert Evaluation.read(path) == evaluation
    assert [file.name for file in path.parent.iterdir()] == ["evaluation.json"]
    again = Evaluation.read(path).write(tmp_path / "again.json")
    assert again.read_bytes() == path.read_bytes()


def test_numpy_scalars_and_paths_are_written(tmp_path: Path) -> None:
    raw: dict[str, Any] = {
        "seed": np.int64(1),
        "success": np.bool_(True),
        "steps": np.int64(3),
        "return_": np.float32(0.1),
        "metrics": {"coverage": np.float32(0.5)},
    }
    record = EpisodeRecord(task="reach", **raw)
    evaluation = Evaluation.from_records([record], [REACH], {"checkpoint": tmp_path, "seeds": (1, 2)})
    back = Evaluation.read(evaluation.write(tmp_path / "evaluation.json"))
    assert back.outcome() == evaluation.outcome()
    assert back.settings == {"checkpoint": str(tmp_path), "seeds": [1, 2]}


def test_outcome_leaves_out_what_a_repeat_changes(evaluation: Evaluation) -> None:
    slower = [replace(e, seconds=9.0, restarts=1, video="a.mp4") for e in evaluation.episodes]
    tasks = [Task(name=t.name, instruction=t.instruction) for t in evaluation.tasks]
    again = Evaluation.from_records(slower, tasks, {})
    assert again.outcome() == evaluation.outcome()
    assert again != evaluation
    worse = [replace(evaluation.episodes[1], success=False), evaluation.episodes[0], *evaluation.episodes[2:]]
    assert Evaluation.from_records(worse, tasks, {}).outcome() != evaluation.outcome()


def test_failed_write_keeps_the_old_file(
    evaluation: Evaluation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = evaluation.write(tmp_path / "evaluation.json")
    before = path.read_bytes()

    def half(self: Path, text: str, **_: object) -> None:
        with self.open("w") as file:
            file.write(text[: len(text) // 2])
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_text", half)
    with pytest.raises(OSError, match="no space"):
        evaluation.write(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"format": 1, "tasks": [', "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[]", "format 'list'"),
        (b'{"format": 99}', "format 99"),
        (b'{"format": 1, "episodes": [], "run": [], "tasks": []}', "lack 'settings'"),
        (b'{"format": 1, "episodes": [{}], "run": [], "tasks": [], "settings": {}}', "malformed"),
        (b'{"format": 1, "episodes": 3, "run": [], "tasks": [], "settings": {}}', "malformed"),
    ],
)
def test_unreadable_results_name_the_file(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "evaluation.json"
    path.write_bytes(content)
    with pytest.raises(ResultsError, match=message) as caught:
        Evaluation.read(path)
    assert str(path) in str(caught.value)


def test_missing_results_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match=r"no results at .*nowhere\.json"):
        Evaluation.read(tmp_path / "nowhere.json")


def test_unknown_task_and_repeated_episode(record: Make) -> None:
    with pytest.raises(ResultsError, match=r"'raech'.*Did you mean 'reach'"):
        Evaluation.from_records([record("raech")], [REACH], {})
    with pytest.raises(ResultsError, match="'reach', seed 0 appears twice"):
        Evaluation.from_records([record(), record()], [REACH], {})


@pytest.mark.parametrize("changes", [{"return_": float("nan")}, {"metrics": {"coverage": float("inf")}}])
def test_non_finite_numbers_are_refused(record: Make, changes: dict[str, Any]) -> None:
    with pytest.raises(ResultsError, match=r"seed 0: (return is nan|coverage is inf)"):
        record(**changes)


def test_settings_that_json_cannot_hold() -> None:
    with pytest.raises(ResultsError, match="settings cannot be written as JSON"):
        Evaluation.from_records([], [REACH], {"sigma_max": float("inf")})


def test_table_has_tasks_metrics_and_overall(evaluation: Evaluation) -> None:
    text = rendered(evaluation)
    for part in ("task", "coverage", "reach", "<script>", "overall", "0.75", "[0.51, 0.90]", "0.350"):
        assert part in text


def test_table_without_episodes_or_successes(record: Make) -> None:
    push = Task(name="[red]push", instruction="")
    text = rendered(Evaluation.from_records([record(success=False)], [REACH, push], {}))
    assert "[red]push" in text
    assert "[0.00, 1.00]" in text
    assert "nan" not in text


@pytest.mark.parametrize(("coverage", "score"), [(-0.1, 0.0), (0.475, 0.5), (0.95, 1.0), (1.0, 1.0)])
def test_coverage_score(coverage: float, score: float) -> None:
    assert coverage_score(coverage) == pytest.approx(score)
