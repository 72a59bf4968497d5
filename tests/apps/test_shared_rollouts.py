"""The processes that train also share the rollouts: real ones, started by torchrun, that talk over gloo."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest

from mode_policy.apps import shared_rollouts
from mode_policy.apps.config import EvaluationConfig
from mode_policy.evaluation import EpisodeRecord, Evaluation
from tests.apps import shared_evaluation
from tests.conftest import ROOT

pytest.importorskip("metaworld")


@pytest.mark.slow
def test_two_processes_make_the_evaluation_of_one(tmp_path):
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"),
            *("-m", "tests.apps.shared_evaluation", str(tmp_path / "two")),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    shared_evaluation.main(str(tmp_path / "one"))
    for name, episodes in shared_evaluation.EPISODES.items():
        alone, shared = (
            Evaluation.read(tmp_path / count / name / "evaluation.json") for count in ("one", "two")
        )
        assert shared.outcome() == alone.outcome()
        assert len(shared.episodes) == episodes
        assert shared.settings["processes"] == min(2, episodes)
        assert shared.settings["identity"] == alone.settings["identity"]
        files = [sorted(p.name for p in (tmp_path / count / name).iterdir()) for count in ("one", "two")]
        assert files[0] == files[1] == ["evaluation.json", "report.html"]


def test_videos_of_all_processes_become_those_of_one(tmp_path):
    """As many of each task as were asked for, failures first, wherever they were made."""
    found = []
    for number, successes in enumerate([(True, False), (False, True)]):
        place = tmp_path / f"shard_{number}_of_2"
        (place / "videos").mkdir(parents=True)
        for i, success in enumerate(successes):
            video = f"videos/reach_{number}_{i}.mp4"
            (place / video).write_text(video)
            found.append((place, record(seed=2 * number + i, success=success, video=video)))
    records = shared_rollouts._with_videos(found, 3, tmp_path)
    assert sorted(e.seed for e in records) == [0, 1, 2, 3]
    kept = {e.seed: e.video for e in records if e.video}
    assert set(kept) == {1, 2, 0}, "both failures, and the first success"
    assert all((tmp_path / video).read_text() == video for video in kept.values())


def record(**changes):
    plain = EpisodeRecord(task="reach-v3", seed=0, success=False, steps=4, return_=0.0)
    return replace(plain, **changes)


def test_cores_are_shared_by_the_processes_of_a_machine(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    assert shared_rollouts._own_workers(EvaluationConfig()) == 2
    assert shared_rollouts._own_workers(EvaluationConfig(workers=5)) == 5
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "16")
    assert shared_rollouts._own_workers(EvaluationConfig()) == 1
