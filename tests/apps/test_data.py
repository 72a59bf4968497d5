"""``mode-data`` as a user runs it: what it prints, what it writes, how it exits."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mode_datasets import open_store
from mode_policy.apps.data import main
from mode_policy.checkpoint import save_checkpoint
from mode_policy.convention import Convention
from mode_policy.types import ACTION, STATE
from tests import toy
from tests.datasets.check.conftest import CONVENTION, FEATURES, demonstrations, write_demonstrations
from tests.datasets.conftest import VECTORS, make_episodes, rewrite, write

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run ``mode-data``; return exit code, what it printed, and its errors."""
    monkeypatch.setenv("COLUMNS", "160")

    def call(*arguments: object) -> tuple[int, str, str]:
        code = 0
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as stopped:
            code = int(stopped.code or 0)
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return call


@pytest.fixture(scope="module")
def robot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clean store with two cameras; not to be changed."""
    return write_demonstrations(tmp_path_factory.mktemp("stores") / "robot.zarr", demonstrations(4))


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """A store whose third episode holds a NaN."""
    path = write_demonstrations(
        tmp_path / "damaged.zarr", demonstrations(), {k: FEATURES[k] for k in (STATE, ACTION)}
    )
    start = open_store(path).episode_starts[2]
    rewrite(path, f"data/{STATE}", lambda x: np.where(np.arange(len(x))[:, None] == start, np.nan, x))
    return path


def test_help_names_every_command(run: Run) -> None:
    code, out, _ = run("--help")
    assert code == 0
    commands = (
        "collect", "list", "info", "convert", "download", "check", "view", "compare", "merge", "append",
        "split", "filter", "stats", "migrate",
    )  # fmt: skip
    for command in commands:
        assert f"    {command} " in out
        code, described, _ = run(command, "--help")
        assert code == 0
        assert "examples:\n  mode-data" in described


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["chek", "x.zarr"], "unknown command 'chek'. Did you mean 'check'"),
        (["check", "none.zarr"], "no demonstration store at none.zarr"),
        (["check", "none.zarr", "--camera", "top=img"], "name it with --task"),
        (["check", "none.zarr", "--task", "push_t"], "unknown task 'push_t'. Did you mean 'pusht'"),
        (["check", "none.zarr", "--task", "pusht", "--camera", "top"], "say NAME=ARRAY"),
        (["merge", "none.zarr", "out.zarr"], "no demonstration store at none.zarr"),
        (["migrate", "none.zarr", "delta"], "settings look like action_kind=delta"),
    ],
)
def test_bad_input_is_answered(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: Sequence[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = run(*arguments)
    assert code == 2
    assert message in err.replace("\n", " ")
    assert list(tmp_path.iterdir()) == []


def test_a_clean_store_passes(run: Run, robot: Path, tmp_path: Path) -> None:
    code, out, _ = run("check", robot, "--strict", "--html", tmp_path / "report.html")
    assert code == 0
    assert "4 episodes of 2 tasks" in out
    assert "the state follows the action at once" in out
    assert (tmp_path / "report.html").read_text().startswith("<!doctype html>")


def test_errors_and_warnings_decide_the_exit_code(run: Run, tmp_path: Path, damaged: Path) -> None:
    assert run("check", damaged)[0] == 1
    path = tmp_path / "short.zarr"
    write(path, make_episodes([30, 30, 30, 30, 2], VECTORS), VECTORS)
    code, out, _ = run("check", path)
    assert (code, "short_episode" in out) == (0, True)
    assert run("check", path, "--strict")[0] == 2
    assert run("check", path, "--strict", "--ignore", "short_episode")[0] == 0
    code, _, err = run("check", path, "--ignore", "short_episodes")
    assert code == 2
    assert "Did you mean 'short_episode'" in err


def test_bad_episodes_of_a_report_are_left_out(run: Run, tmp_path: Path, damaged: Path) -> None:
    code, out, _ = run("check", damaged, "--json")
    assert code == 1
    report = tmp_path / "check.json"
    report.write_text(out)
    assert json.loads(out)["findings"][0]["episodes"] == [2]
    rewrite(damaged, f"data/{STATE}", np.nan_to_num)
    run("stats", damaged, "--write")
    code, out, _ = run("filter", damaged, tmp_path / "good.zarr", "--drop", report)
    assert code == 0
    assert "11 of 12 episodes" in out
    assert open_store(tmp_path / "good.zarr").num_episodes == 11
    code, _, err = run("filter", damaged, tmp_path / "better.zarr", "--drop", tmp_path / "none.json")
    assert code == 2
    assert "make it with: mode-data check" in err


def test_split_and_merge_give_the_store_back(run: Run, tmp_path: Path, robot: Path) -> None:
    train, test, both = (tmp_path / name for name in ("train.zarr", "test.zarr", "both.zarr"))
    assert run("split", robot, train, test, "--fraction", 0.5)[0] == 0
    assert open_store(train).num_episodes == open_store(test).num_episodes == 2
    assert run("merge", train, test, both)[0] == 0
    store = open_store(both)
    assert sorted(store.episode_seeds) == [0, 1, 2, 3]
    assert store.provenance.command.startswith("mode-data")
    assert run("append", train, test)[1].strip().endswith(f"appended   2 episodes to {train}")
    assert "2 were there already" in run("append", train, test)[1]
    code, _, err = run("split", robot, tmp_path / "a.zarr", tmp_path / "b.zarr", "--fraction", 0)
    assert code == 2
    assert "would be empty" in err
    assert not (tmp_path / "a.zarr").exists()


def test_filter(run: Run, tmp_path: Path, robot: Path) -> None:
    out = tmp_path / "out.zarr"
    code, text, _ = run(
        "filter", robot, out, "--only-tasks", "push", "--episodes", "0-1,2", "--min-length", 10, "--features",
        "observation.state", "--where", "max(action[x]) < 5", "--profile", "archive",
    )  # fmt: skip
    assert code == 0
    assert "2 of 4 episodes" in text
    assert set(open_store(out).features) == {STATE, ACTION}
    code, _, err = run("filter", robot, out, "--only-tasks", "pull", "--overwrite")
    assert (code, "Did you mean 'push'" in err) == (2, True)
    code, _, err = run("filter", robot, tmp_path / "none.zarr", "--min-length", 1000)
    assert (code, "no episode is left" in err) == (2, True)


def test_statistics(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "demo.zarr"
    write(path, make_episodes([5, 6], VECTORS), VECTORS)
    assert run("stats", path)[0] == 0
    rewrite(path, f"data/{STATE}", lambda x: x + 1)
    code, out, _ = run("stats", path)
    assert code == 1
    assert "--write" in out
    assert run("stats", path, "--write")[0] == 0
    assert run("stats", path)[0] == 0
    open_store(path)


def test_migrate(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "demo.zarr"
    write(path, make_episodes([5, 6], VECTORS), VECTORS)
    code, out, _ = run("migrate", path, "action_kind=delta", "gripper=none")
    assert code == 0
    assert '"action_kind": "delta"' in out
    assert open_store(path).convention == Convention(fps=20.0, action_kind="delta", gripper="none")
    assert "is up to date" in run("migrate", path)[1]
    code, _, err = run("migrate", path, "action_kind=deltas")
    assert (code, "'deltas' is none of" in err) == (2, True)


def test_what_differs_is_shown_with_what_sets_it_right(run: Run, tmp_path: Path, robot: Path) -> None:
    other = write_demonstrations(
        tmp_path / "other.zarr",
        demonstrations(2),
        {key: FEATURES[key] for key in (STATE, ACTION)},
        Convention(fps=10.0, gripper="plus_opens"),
    )
    code, out, _ = run("compare", robot, other)
    assert code == 1
    assert "dataset.adapt.gripper=plus_opens" in out
    assert "dataset.adapt.stride=2" in out
    assert "spare" in out, "cameras that the other does not have do no harm"
    code, out, _ = run("compare", other, robot)
    assert code == 1
    assert "absent" in out
    assert run("compare", robot, robot)[0] == 0


def test_ranges_that_are_far_apart_are_shown(run: Run, tmp_path: Path) -> None:
    metres, millimetres = demonstrations(3), demonstrations(3)
    for episode in millimetres:
        episode.arrays[STATE][:, :2] *= 1000
    paths = [
        write_demonstrations(tmp_path / name, episodes, {k: FEATURES[k] for k in (STATE, ACTION)}, CONVENTION)
        for name, episodes in (("m.zarr", metres), ("mm.zarr", millimetres))
    ]
    code, out, _ = run("compare", *paths)
    assert code == 0
    assert [line.split()[1:3] for line in out.splitlines() if line.strip().startswith("range")] == [
        ["observation.state:", "x"],
        ["observation.state:", "y"],
    ]


def test_a_store_is_compared_with_a_policy(run: Run, tmp_path: Path, robot: Path) -> None:
    policy = toy.policy()
    save_checkpoint(tmp_path / "checkpoint", policy, policy.state_dict(), about={})
    code, out, _ = run("compare", robot, tmp_path / "checkpoint")
    assert code == 1
    assert "these are different robots" in out


def test_a_store_is_compared_with_an_environment(run: Run, robot: Path) -> None:
    code, out, _ = run("compare", robot, "mode/pusht-v0")
    assert code == 1
    assert "20 Hz" in out
    assert "dataset.adapt.stride=2" in out
    code, _, err = run("compare", robot, "mode/push-v0")
    assert (code, "unknown task 'mode/push-v0'" in err) == (2, True)


def test_an_episode_is_drawn_and_filmed(run: Run, tmp_path: Path, robot: Path) -> None:
    sheet, video = tmp_path / "episode.png", tmp_path / "episode.gif"
    code, out, _ = run("view", robot, 1, "--sheet", sheet, "--video", video)
    assert code == 0
    assert f"written    {sheet}" in out
    with Image.open(sheet) as picture:
        assert picture.size[0] > 1000
    with Image.open(video) as movie:
        assert movie.n_frames == open_store(robot).episode_lengths[1]  # type: ignore[attr-defined]
        assert movie.size == (32 + 24, 24), "both cameras, of one height"


def test_episodes_without_cameras_can_be_drawn(run: Run, tmp_path: Path, damaged: Path) -> None:
    assert run("view", damaged, 2, "--sheet", tmp_path / "bad.png")[0] == 0
    code, _, err = run("view", damaged, 2, "--video", tmp_path / "bad.mp4")
    assert (code, "has no camera" in err) == (2, True)
    code, _, err = run("view", damaged, 12, "--sheet", tmp_path / "none.png")
    assert (code, "episode 12 of" in err) == (2, True)
    assert not (tmp_path / "none.png").exists()


@pytest.mark.skipif(importlib.util.find_spec("rerun") is not None, reason="Rerun is installed")
def test_without_rerun_other_ways_are_shown(run: Run, robot: Path) -> None:
    code, _, err = run("view", robot, 0)
    assert code == 2
    assert "mode-policy[view]" in err
    assert "--sheet" in err


def test_a_recording_for_rerun(run: Run, tmp_path: Path, robot: Path) -> None:
    pytest.importorskip("rerun", reason="pip install 'mode-policy[view]'")
    assert run("view", robot, 0, "--save", tmp_path / "episode.rrd")[0] == 0
    content = (tmp_path / "episode.rrd").read_bytes()
    assert content[:4] == b"RRF2"
    assert len(content) > 10_000
