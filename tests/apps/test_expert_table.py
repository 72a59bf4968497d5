"""``mode-data expert-table``: its file of results and what it says."""

import pytest

from mode_envs.libero_tasks import LIBERO_SUITES
from mode_policy.apps import data
from mode_policy.apps.expert_table import append_result, markdown, read_results
from mode_policy.errors import DataError

MOTION = {"mean_speed": 0.13, "peak_speed": 0.25, "jerk": 5.5}
ROW = {"success": True, "steps": 120, "events": [], **MOTION}
FAILURE = {
    **MOTION,
    "success": False,
    "steps": 280,
    "events": ["the fingers missed milk_1", "milk_1 was lost on the way"],
}


def test_results_are_kept_as_they_come(tmp_path):
    path = tmp_path / "runs" / "results.jsonl"
    assert read_results(path) == {}
    append_result(path, ("object", "t", 0), ROW)
    append_result(path, ("object", "t", 1), FAILURE)
    assert read_results(path) == {("object", "t", 0): ROW, ("object", "t", 1): FAILURE}


def test_a_line_that_was_cut_off_is_run_again(tmp_path):
    path = tmp_path / "results.jsonl"
    append_result(path, ("object", "t", 0), ROW)
    with path.open("a") as file:
        file.write('{"suite": "object", "task": "t", "sta')
    assert list(read_results(path)) == [("object", "t", 0)]
    append_result(path, ("object", "t", 1), FAILURE)
    assert read_results(path) == {("object", "t", 0): ROW, ("object", "t", 1): FAILURE}


@pytest.mark.parametrize("line", ["nonsense", "{}", "3"])
def test_a_damaged_line_is_named(tmp_path, line):
    path = tmp_path / "results.jsonl"
    append_result(path, ("object", "t", 0), ROW)
    with path.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(DataError, match=r"line 2 of .* is no result"):
        read_results(path)


def test_a_table_says_how_many_and_why_not():
    text = markdown([(("object", "t", 0), ROW), (("object", "t", 1), FAILURE), (("goal", "u", 0), FAILURE)])
    assert "| object | `t` | 1/2 | 120 | milk_1 was lost on the way (1) |" in text
    assert "| goal | `u` | 0/1 | - | milk_1 was lost on the way (1) |" in text
    shown = "120 | 120 (120–120) | 0.13 (0.13–0.13) | 0.25 (0.25–0.25) | 5.5 (5.5–5.5)"
    assert f"| object | 1 | 0 | 1 of 2 | {shown} |" in text
    assert "| goal | 1 | 0 | 0 of 1 | - | - | - | - | - |" in text


def test_a_table_shows_how_episodes_spread():
    rows = [(("object", "t", i), ROW | {"steps": 100 + 10 * i}) for i in range(11)]
    assert "| 11 of 11 | 150 | 150 (105–195) |" in markdown(rows)


def test_an_episode_whose_process_dies_is_named_and_run_again(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("mode_envs.worker.sys.executable", "/bin/false")
    path = tmp_path / "results.jsonl"
    with pytest.raises(SystemExit):
        data.main(
            ["expert-table", "--suite", "goal", "--tasks", "7", "--states", "1", "--results", str(path)]
        )
    captured = capsys.readouterr()
    assert "simulator process" in captured.out
    assert "1 episodes could not be run; run the command again" in captured.out + captured.err
    assert read_results(path) == {}


def test_what_was_measured_is_not_measured_again(tmp_path, capsys):
    path, table = tmp_path / "results.jsonl", tmp_path / "table.md"
    task = LIBERO_SUITES["goal"].tasks[7]
    for state in range(2):
        append_result(path, ("goal", task, state), {**ROW, "success": state == 0})
    chosen = ["--suite", "goal", "--tasks", "7", "--states", "2"]
    data.main(["expert-table", *chosen, "--results", str(path), "--markdown", str(table)])
    assert "0 to run" in capsys.readouterr().out
    assert f"| goal | `{task}` | 1/2 | 120 |" in table.read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tasks", "turn_on_the_stov"], "unknown LIBERO task 'turn_on_the_stov'"),
        (["--states", "0"], "must be at least 1"),
    ],
)
def test_wrong_arguments_say_what_is_right(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        data.main(["expert-table", *arguments])
    assert stopped.value.code != 0
    captured = capsys.readouterr()
    assert message in captured.out + captured.err
