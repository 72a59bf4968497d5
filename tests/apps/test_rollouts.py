"""What an evaluation leaves on disk, and how it goes on after an interruption."""

import json
from dataclasses import replace

import numpy as np
import pytest

from mode_envs import env_task, features
from mode_policy.apps import merge, rollouts, videos
from mode_policy.apps.config import EvaluateConfig, EvaluationConfig
from mode_policy.apps.protocol import episodes_of, part
from mode_policy.apps.rollouts import evaluate_policy
from mode_policy.config import PolicyConfig, build
from mode_policy.errors import ConfigError
from mode_policy.evaluation import Evaluation, ResultsError
from mode_policy.normalization import compute_statistics
from mode_policy.policy import MoDEPolicy

pytest.importorskip("gym_pusht")
pytest.importorskip("metaworld")

PUSHT = replace(env_task("pusht"), max_steps=4)
# Push-T's contacts are not computed alike, to the last bit, in every process.
REACH = replace(env_task("reach-v3"), max_steps=4)
BUTTER = env_task("pick_up_the_butter_and_place_it_in_the_basket")


def ignorant(task, low, high):
    """A policy that has learnt nothing."""
    described = features(task)
    rng = np.random.default_rng(0)
    arrays = {k: rng.uniform(low, high, (50, *f.shape)).astype(np.float32) for k, f in described.items()}
    config = {"denoiser": {"dim": 16, "num_layers": 1, "num_heads": 2}, "language": None}
    return MoDEPolicy(build(PolicyConfig, config), described, compute_statistics(arrays))


@pytest.fixture(scope="module")
def policy():
    return ignorant("pusht", 0, 500)


@pytest.fixture(scope="module")
def reacher():
    return ignorant("reach-v3", -1, 1)


def evaluate(policy, folder, shard=None, task=PUSHT, **changes):
    settings = {"episodes": 2, "lanes": 2, "workers": 0, "videos": 0, "video_size": 32} | changes
    config = EvaluationConfig(**settings)
    evaluation, _ = evaluate_policy(policy, [task], config, folder, shard=shard, settings={"task": "test"})
    return evaluation


def test_scores_videos_and_report_are_written(policy, tmp_path):
    pytest.importorskip("imageio_ffmpeg", reason="ffmpeg is not installed (mode-policy[video])")
    evaluation = evaluate(policy, tmp_path, videos=1)
    assert Evaluation.read(tmp_path / "evaluation.json") == evaluation
    (video,) = [e.video for e in evaluation.episodes if e.video]
    assert video.endswith("_failure.mp4")
    assert (tmp_path / video).stat().st_size > 0
    assert "data:video/mp4" in (tmp_path / "report.html").read_text()
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"evaluation.json", "report.html", "videos"}
    for name in ("command", "versions", "commit", "device", "protocol", "noise_levels", "identity"):
        assert evaluation.settings[name], name


def test_videos_that_cannot_be_written_cost_nothing_else(policy, tmp_path, capsys):
    (tmp_path / "videos").write_text("a file where the folder of the videos would be")
    evaluation = evaluate(policy, tmp_path, videos=1)
    assert Evaluation.read(tmp_path / "evaluation.json") == evaluation
    assert "No videos were recorded" in (tmp_path / "report.html").read_text()
    assert "videos     none: cannot write" in capsys.readouterr().out


def test_scores_are_on_disk_before_videos(policy, tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(videos, "draw", interrupted)
        with pytest.raises(KeyboardInterrupt):
            evaluate(policy, tmp_path, videos=1)
    assert len(Evaluation.read(tmp_path / "evaluation.json").episodes) == 2
    monkeypatch.setattr(rollouts, "rollout", interrupted)  # all episodes are there: only the videos are made
    evaluate(policy, tmp_path, videos=1)
    assert list((tmp_path / "videos").glob("*.mp4"))


def stop_after(monkeypatch, count):
    """Let the machine fail once so many episodes are on disk."""
    run = rollouts.rollout

    def stopping(*arguments, on_episode, **rest):
        seen = []

        def note(index, result):
            on_episode(index, result)
            seen.append(index)
            if len(seen) == count:
                raise KeyboardInterrupt

        return run(*arguments, on_episode=note, **rest)

    monkeypatch.setattr(rollouts, "rollout", stopping)


def test_an_interrupted_evaluation_continues(reacher, tmp_path, monkeypatch, capsys):
    whole = evaluate(reacher, tmp_path / "whole", task=REACH, episodes=5, lanes=1)
    with monkeypatch.context() as patched:
        stop_after(patched, 2)
        with pytest.raises(KeyboardInterrupt):
            evaluate(reacher, tmp_path / "parts", task=REACH, episodes=5, lanes=1)
    (journal,) = (tmp_path / "parts").glob(".unfinished-*.jsonl")
    with journal.open("ab") as file:
        file.write(b'{"outcome": {"task": "pus')  # killed in the middle of a line
    capsys.readouterr()
    again = evaluate(reacher, tmp_path / "parts", task=REACH, episodes=5, lanes=1)
    assert "2 of 5 rollouts are there" in capsys.readouterr().out
    assert again.outcome() == whole.outcome()
    assert not list((tmp_path / "parts").glob(".unfinished-*"))


def test_other_settings_do_not_continue_it(policy, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patched:
        stop_after(patched, 2)
        with pytest.raises(KeyboardInterrupt):
            evaluate(policy, tmp_path, episodes=3)
    capsys.readouterr()
    evaluate(policy, tmp_path, episodes=3, seed=5)
    assert "rollouts are there" not in capsys.readouterr().out
    evaluate(policy, tmp_path, episodes=3)
    assert "2 of 3 rollouts are there" in capsys.readouterr().out


def test_shards_make_one_evaluation(reacher, tmp_path, capsys):
    whole = evaluate(reacher, tmp_path / "whole", task=REACH, episodes=5, repeats=2, lanes=1)
    folder = tmp_path / "sharded"
    for number in (0, 2):
        evaluate(reacher, folder, shard=(number, 3), task=REACH, episodes=5, repeats=2, lanes=1)
    with pytest.raises(ResultsError, match=r"lacks shard_1_of_3; run evaluate\.py with shard=1/3"):
        merge.merge_folder(folder)
    evaluate(reacher, folder, shard=(1, 3), task=REACH, episodes=5, repeats=2, lanes=1)
    merged = merge.merge_folder(folder)
    assert merged.outcome() == whole.outcome()
    assert Evaluation.read(folder / "evaluation.json") == merged
    assert (folder / "report.html").is_file()
    assert set(merged.settings["commands"]) == {f"shard_{i}_of_3" for i in range(3)}
    path = folder / "shard_1_of_3" / "evaluation.json"
    other = json.loads(path.read_text())
    other["settings"]["identity"] = "another"
    path.write_text(json.dumps(other))
    with pytest.raises(ResultsError, match="of different evaluations"):
        merge.merge_folder(folder)


def test_repeats_draw_other_noise(reacher, tmp_path):
    evaluation = evaluate(reacher, tmp_path, task=REACH, episodes=2, repeats=2)
    assert [e.label for e in evaluation.episodes[:2]] != [e.label for e in evaluation.episodes[2:]]
    assert [e.repeat for e in evaluation.episodes] == [0, 1, 0, 1]
    first, second = evaluation.episodes[:2]
    assert first.seed == second.seed
    assert first.return_ != second.return_


def test_the_protocol_of_liberos_benchmark():
    """Twenty rollouts from each of three draws of noise, from its first initial states."""
    specs = episodes_of([BUTTER], EvaluationConfig())
    assert [(s.initial_state, s.repeat) for s in specs] == [(i, r) for i in range(20) for r in range(3)]
    assert {s.seed for s in specs} == {100000}
    with pytest.raises(ConfigError, match="has 50 published initial states, fewer than episodes=51"):
        episodes_of([BUTTER], EvaluationConfig(episodes=51))
    assert [s.initial_state for s in episodes_of([PUSHT], EvaluationConfig(episodes=2))] == [None, None]


@pytest.mark.parametrize("count", [1, 3, 7])
def test_shards_part_the_episodes(count):
    specs = episodes_of([BUTTER], EvaluationConfig(episodes=3))
    assert [s for i in range(count) for s in part(specs, (i, count))] == specs


@pytest.mark.parametrize("shard", ["4/4", "1", "-1/4", "a/b", "1/"])
def test_bad_shards_are_refused(tmp_path, shard):
    with pytest.raises(ConfigError, match=r"write shard=0/4 to shard=3/4"):
        build(EvaluateConfig, {"checkpoint": str(tmp_path), "shard": shard})
