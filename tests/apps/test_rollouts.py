"""What an evaluation leaves on disk."""

from dataclasses import replace

import numpy as np
import pytest

from mode_envs import env_task, features
from mode_policy.apps import rollouts
from mode_policy.apps.config import EvaluationConfig
from mode_policy.apps.rollouts import evaluate_policy
from mode_policy.config import PolicyConfig, build
from mode_policy.evaluation import Evaluation
from mode_policy.normalization import compute_statistics
from mode_policy.policy import MoDEPolicy

pytest.importorskip("gym_pusht")

PUSHT = replace(env_task("pusht"), max_steps=4)


@pytest.fixture(scope="module")
def policy():
    """One that has learnt nothing."""
    described = features("pusht")
    rng = np.random.default_rng(0)
    arrays = {k: rng.uniform(0, 500, (50, *f.shape)).astype(np.float32) for k, f in described.items()}
    config = {"denoiser": {"dim": 16, "num_layers": 1, "num_heads": 2}, "language": None}
    return MoDEPolicy(build(PolicyConfig, config), described, compute_statistics(arrays))


def evaluate(policy, folder):
    config = EvaluationConfig(episodes=2, lanes=2, workers=0, videos=1, video_size=32)
    return evaluate_policy(policy, [PUSHT], config, folder, settings={"task": "pusht"})


def test_scores_videos_and_report_are_written(policy, tmp_path):
    pytest.importorskip("imageio_ffmpeg", reason="ffmpeg is not installed (mode-policy[video])")
    evaluation = evaluate(policy, tmp_path)
    assert Evaluation.read(tmp_path / "evaluation.json") == evaluation
    (video,) = [e.video for e in evaluation.episodes if e.video]
    assert (tmp_path / video).stat().st_size > 0
    assert "data:video/mp4" in (tmp_path / "report.html").read_text()


def test_videos_that_cannot_be_written_cost_nothing_else(policy, tmp_path, capsys):
    (tmp_path / "videos").write_text("a file where the folder of the videos would be")
    evaluation = evaluate(policy, tmp_path)
    assert Evaluation.read(tmp_path / "evaluation.json") == evaluation
    assert "No videos were recorded" in (tmp_path / "report.html").read_text()
    assert "videos     none: could not encode" in capsys.readouterr().out


def test_scores_are_on_disk_before_videos(policy, tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(rollouts, "write_video", interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluate(policy, tmp_path)
    assert len(Evaluation.read(tmp_path / "evaluation.json").episodes) == 2
