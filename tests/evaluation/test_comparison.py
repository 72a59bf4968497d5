"""Paired comparisons: the tests' laws, what is paired with what, and the program."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from math import comb
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mode_policy.apps.compare import find_results, main, short_names
from mode_policy.evaluation import EpisodeRecord, Evaluation, ResultsError
from mode_policy.evaluation.comparison import compare, holm, paired_bootstrap, sign_flip_test
from mode_policy.types import Task


def evaluation(
    outcomes: dict[str, Sequence[Sequence[int]]], settings: dict | None = None, **changes: int
) -> Evaluation:
    """Task → successes by initial state and repeat."""
    records = [
        EpisodeRecord(
            task=task,
            seed=changes.get("seed", 7),
            initial_state=state + changes.get("first", 0),
            repeat=repeat,
            success=bool(success),
            steps=10,
            return_=0.0,
        )
        for task, states in outcomes.items()
        for state, repeats in enumerate(states)
        for repeat, success in enumerate(repeats)
    ]
    return Evaluation.from_records(records, [Task(name=t, instruction=t) for t in outcomes], settings or {})


@given(st.integers(0, 12), st.integers(0, 12), st.integers(0, 5))
def test_with_single_rollouts_it_is_mcnemars_exact_test(b: int, c: int, ties: int) -> None:
    n = b + c
    expected = min(1.0, 2 * sum(comb(n, i) for i in range(min(b, c) + 1)) / 2**n)
    assert sign_flip_test([1] * b + [-1] * c + [0] * ties) == pytest.approx(expected, abs=1e-12)


@given(st.lists(st.integers(-3, 3), max_size=7))
def test_it_is_the_share_of_sign_patterns(differences: list[int]) -> None:
    patterns = itertools.product((-1, 1), repeat=len(differences))
    sums = [abs(sum(s * d for s, d in zip(signs, differences, strict=True))) for signs in patterns]
    expected = np.mean([value >= abs(sum(differences)) for value in sums])
    assert sign_flip_test(differences) == pytest.approx(expected, abs=1e-12)
    assert sign_flip_test([-d for d in differences]) == sign_flip_test(differences)


def test_repeats_of_a_start_are_no_further_evidence() -> None:
    once, thrice = ([[1]] * 4 + [[0]] * 2, [[1, 1, 1]] * 4 + [[0, 0, 0]] * 2)
    none = ([[0]] * 6, [[0, 0, 0]] * 6)
    few, _ = compare(evaluation({"a": none[0]}), evaluation({"a": once}))
    many, _ = compare(evaluation({"a": none[1]}), evaluation({"a": thrice}))
    assert few[-1].p_value == many[-1].p_value == pytest.approx(0.125)
    assert few[-1].interval == many[-1].interval
    assert (many[-1].starts, many[-1].rollouts) == (6, 18)


def test_a_comparison_by_task_and_overall() -> None:
    a = evaluation({"reach": [[1], [0], [1], [0]], "push": [[0], [0]]})
    b = evaluation({"reach": [[1], [1], [0], [1]], "push": [[1], [0]]})
    results, remarks = compare(a, b)
    assert remarks == []
    assert [r.name for r in results] == ["reach", "push", "overall"]
    reach, push, overall = results
    assert (reach.first, reach.second, reach.only_first, reach.only_second) == (0.5, 0.75, 1, 2)
    assert (push.first, push.second, push.starts) == (0.0, 0.5, 2)
    assert overall.difference == pytest.approx(5 / 6 * 4 / 5 - 2 / 6)
    assert overall.interval.low <= overall.difference <= overall.interval.high
    assert overall.p_value == sign_flip_test([1, 1, -1, 1])


def test_a_policy_against_itself() -> None:
    a = evaluation({"reach": [[1], [0], [1]]})
    results, _ = compare(a, a)
    assert (results[-1].difference, results[-1].p_value, results[-1].interval) == (0.0, 1.0, (0.0, 0.0))


def test_what_is_not_shared_is_left_out_and_said() -> None:
    a = evaluation({"reach": [[1, 1], [0, 1]], "push": [[1, 1]]})
    b = evaluation({"reach": [[1], [1], [0]]})
    results, remarks = compare(a, b)
    assert results[-1].starts == results[-1].rollouts == 2
    assert any("1 starts of the first are left out, such as push, initial state 0" in r for r in remarks)
    assert any("of the second are left out, such as reach, initial state 2" in r for r in remarks)
    assert "repeats that only one of them has are left out" in remarks
    with pytest.raises(ResultsError, match=r"no start in common: the first has reach, initial state 0"):
        compare(a, evaluation({"reach": [[1]]}, first=9))


def test_other_noise_is_compared_on_the_same_initial_states() -> None:
    results, _ = compare(evaluation({"reach": [[1], [0]]}), evaluation({"reach": [[1], [1]]}, seed=8))
    assert results[-1].starts == 2


def test_the_bootstrap_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered = []
    for trial in range(200):
        easy = rng.random(40)
        first, second = (rng.random(40) < easy), (rng.random(40) < np.clip(easy + 0.1, 0, 1))
        truth = np.mean(np.clip(easy + 0.1, 0, 1) - easy)
        low, high = paired_bootstrap({"a": second.astype(float) - first}, seed=trial, resamples=1000)
        covered.append(low <= truth <= high)
    assert 0.9 <= np.mean(covered) <= 0.99


def test_holm() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([0.2]) == [0.2]


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    good = [[1]] * 9 + [[0]]
    made = {
        "weak": evaluation({"reach": [[0]] * 9 + [[1]], "push": [[0]] * 10}, {"denoising_steps": 10}),
        "strong": evaluation({"reach": good, "push": good}, {"denoising_steps": 5}),
        "same": evaluation({"reach": [[0]] * 9 + [[1]], "push": [[0]] * 10}, {"denoising_steps": 10}),
    }
    for name, results in made.items():
        results.write(tmp_path / name / "evaluation.json")
    return [tmp_path / name for name in made]


def test_two_runs_on_the_terminal(runs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    main([str(runs[0]), str(runs[1] / "evaluation.json")])
    shown = capsys.readouterr().out
    assert "reach" in shown
    assert "overall" in shown
    assert "note       strong: denoising_steps: 10 and 5" in shown
    assert "strong against weak: +0.85" in shown
    assert shown.strip().endswith("strong is better")


def test_more_runs_are_compared_with_the_first(runs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    main([str(run) for run in runs])
    shown = capsys.readouterr().out
    assert "strong against weak: +0.85" in shown
    assert "same against weak: +0.00 [+0.00, +0.00], p = 1, 20 starts: no difference shown" in shown


def test_results_are_found(runs: list[Path], tmp_path: Path) -> None:
    run = tmp_path / "run"
    for task in ("goal", "object"):
        evaluation({"reach": [[1]]}).write(run / f"evaluation_{task}" / "evaluation.json")
    with pytest.raises(ResultsError, match=r"has several evaluations; name one of .*evaluation_goal"):
        find_results(run)
    assert find_results(run / "evaluation_goal") == run / "evaluation_goal" / "evaluation.json"
    with pytest.raises(ResultsError, match=r"has no evaluation\.json"):
        find_results(tmp_path / "nothing")
    assert short_names([r / "evaluation.json" for r in runs]) == ["weak", "strong", "same"]


def test_bad_input_is_answered_without_a_traceback(
    runs: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([str(runs[0])])
    assert stopped.value.code == 2
    assert "give two runs or more" in capsys.readouterr().err
