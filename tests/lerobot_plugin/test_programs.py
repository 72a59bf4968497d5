"""LeRobot's own programs with ``mode``: training, resuming, evaluation."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from lerobot_policy_mode.modeling_mode import ModePolicy
from mode_policy.errors import DataError

from .conftest import SMALL, edit_json, fresh, save, write_dataset

pytestmark = pytest.mark.usefixtures("_own_accelerator")
LAST = "checkpoints/last/pretrained_model"


@pytest.fixture
def train(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Run ``lerobot-train`` in this process."""
    from lerobot.scripts.lerobot_train import main

    def run(*arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", ["lerobot-train", *arguments])
        main()

    return run


def arguments(dataset: Path, output: Path, *more: str) -> list[str]:
    return [
        "--policy.type=mode",
        *(f"--policy.{flag}" for flag in (*SMALL, "language=null")),
        "--dataset.repo_id=local/tiny",
        f"--dataset.root={dataset}",
        f"--output_dir={output}",
        "--batch_size=4",
        "--num_workers=0",
        "--log_freq=1",
        "--env_eval_freq=0",
        *more,
    ]


def test_training_and_resuming(
    dataset: Path, tmp_path: Path, train: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    train(*arguments(dataset, run, "--steps=2", "--save_freq=1"))
    said = capsys.readouterr().err
    assert all(f" {name}:" in said for name in ("denoising_loss", "router_entropy", "expert_3"))
    first = load_file(run / LAST / "model.safetensors")
    assert int(first["ema_updates"]) == 2
    train(f"--config_path={run / LAST / 'train_config.json'}", "--resume=true", "--steps=3")
    state = run / "checkpoints" / "last" / "training_state"
    assert json.loads((state / "training_step.json").read_text())["step"] == 3
    assert json.loads((state / "scheduler_state.json").read_text())["last_epoch"] == 3
    again = load_file(run / LAST / "model.safetensors")
    assert int(again["ema_updates"]) == 3
    assert any(not value.equal(again[name]) for name, value in first.items())
    # What was saved is a policy that acts.
    assert not ModePolicy.from_pretrained(run / LAST).training


def test_finetuning_with_held_out_data(
    dataset: Path, tmp_path: Path, train: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    save(fresh(dataset), tmp_path / "saved")
    more = ("--steps=1", "--dataset.eval_split=0.4", "--eval_steps=1")
    flags = [flag for flag in arguments(dataset, tmp_path / "run", *more) if not flag.startswith("--policy.")]
    train(f"--policy.path={tmp_path / 'saved'}", "--policy.restart_average=true", *flags)
    assert "eval_loss=" in capsys.readouterr().err
    state = load_file(tmp_path / "run" / LAST / "model.safetensors")
    assert int(state["ema_updates"]) == 1


def test_missing_statistics_end_it_before_the_first_step(
    own_dataset: Path, tmp_path: Path, train: Callable[..., None]
) -> None:
    edit_json(own_dataset / "meta" / "stats.json", lambda stats: stats.pop("action"))
    with pytest.raises(DataError, match="no statistics of 'action'"):
        train(*arguments(own_dataset, tmp_path / "run", "--steps=1"))


def evaluate(monkeypatch: pytest.MonkeyPatch, policy: Path, output: Path, *more: str) -> dict:
    """Run ``lerobot-eval`` in this process; return what it found."""
    from lerobot.scripts.lerobot_eval import eval_main
    from lerobot.utils.import_utils import register_third_party_plugins

    fixed = (
        "--policy.device=cpu",
        "--eval.n_episodes=1",
        "--eval.batch_size=1",
        "--eval.use_async_envs=false",
    )
    monkeypatch.setattr(
        sys, "argv", ["lerobot-eval", f"--policy.path={policy}", f"--output_dir={output}", *fixed, *more]
    )
    register_third_party_plugins()
    eval_main()
    found: dict = json.loads((output / "eval_info.json").read_text())
    return found


def test_evaluation_in_pusht(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gym_pusht")
    states = {"observation.state": 2, "observation.environment_state": 16}
    root = write_dataset(tmp_path / "data", lengths=(4, 4), image=None, states=states)
    save(fresh(root, "n_obs_steps=2"), tmp_path / "policy")
    flags = ("--env.type=pusht", "--env.obs_type=environment_state_agent_pos", "--env.episode_length=5")
    found = evaluate(monkeypatch, tmp_path / "policy", tmp_path / "out", *flags)
    assert found["overall"]["n_episodes"] == 1
    assert Path(found["overall"]["video_paths"][0]).stat().st_size > 0


def test_an_environment_that_does_not_fit_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gym_pusht")
    save(fresh(write_dataset(tmp_path / "data", lengths=(4, 4), image=(40, 48))), tmp_path / "policy")
    with pytest.raises(DataError, match=r"needs 'observation.environment_state', and the batch has \['obs"):
        evaluate(
            monkeypatch, tmp_path / "policy", tmp_path / "out", "--env.type=pusht", "--env.episode_length=5"
        )


def evaluate_apart(environment: dict[str, str], policy: Path, output: Path, *more: str) -> dict:
    """Run ``lerobot-eval`` in a process of its own, which chooses its OpenGL."""
    fixed = (
        "--policy.device=cpu",
        "--eval.n_episodes=1",
        "--eval.batch_size=1",
        "--eval.use_async_envs=false",
    )
    flags = [f"--policy.path={policy}", f"--output_dir={output}", *fixed, *more]
    done = subprocess.run(
        [sys.executable, "-m", "lerobot.scripts.lerobot_eval", *flags],
        env=environment,
        cwd=output.parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict = json.loads((output / "eval_info.json").read_text())
    return found


@pytest.mark.slow
def test_evaluation_in_pusht_from_pictures(tmp_path: Path, offline_environment: dict[str, str]) -> None:
    pytest.importorskip("gym_pusht")
    # The environment names no task, and the policy knows one.
    root = write_dataset(tmp_path / "data", (4,), image=(96, 96), states={"observation.state": 2})
    policy = save(fresh(root, "language=minilm-l6-v2"), tmp_path / "policy")
    flags = ("--env.type=pusht", "--env.episode_length=5")
    found = evaluate_apart(offline_environment, policy, tmp_path / "out", *flags)
    assert found["overall"]["n_episodes"] == 1


@pytest.mark.slow
def test_evaluation_in_metaworld(
    tmp_path: Path, offline_environment: dict[str, str], opengl: dict[str, str]
) -> None:
    pytest.importorskip("metaworld")
    states = {"observation.state": 4}
    root = write_dataset(tmp_path / "data", (3, 3), image=(480, 480), states=states, action=4)
    policy = save(fresh(root, "n_action_steps=4"), tmp_path / "policy")
    flags = ("--env.type=metaworld", "--env.task=reach-v3")
    found = evaluate_apart(offline_environment | opengl, policy, tmp_path / "out", *flags)
    assert found["overall"]["n_episodes"] == 1


@pytest.mark.slow
def test_evaluation_in_libero(
    tmp_path: Path, offline_environment: dict[str, str], opengl: dict[str, str], libero: dict[str, str]
) -> None:
    cameras = ("observation.images.image", "observation.images.image2")
    states = {"observation.state": 8}
    root = write_dataset(tmp_path / "data", (3, 3), image=(96, 96), cameras=cameras, states=states, action=7)
    policy = save(fresh(root, "n_action_steps=4"), tmp_path / "policy")
    flags = ("--env.type=libero", "--env.task=libero_object", "--env.task_ids=[0]", "--env.episode_length=8")
    size = ("--env.observation_height=96", "--env.observation_width=96")
    found = evaluate_apart(offline_environment | opengl | libero, policy, tmp_path / "out", *flags, *size)
    assert found["overall"]["n_episodes"] == 1


@pytest.mark.slow
def test_two_processes_train_together(
    dataset: Path, tmp_path: Path, offline_environment: dict[str, str]
) -> None:
    launch = ("-m", "accelerate.commands.launch", "--cpu", "--num_processes=2", "--num_machines=1")
    more = ("--mixed_precision=no", "--dynamo_backend=no", "-m", "lerobot.scripts.lerobot_train")
    done = subprocess.run(
        [sys.executable, *launch, *more, *arguments(dataset, tmp_path / "run", "--steps=2")],
        env=offline_environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Effective batch size: 4 x 2 = 8" in done.stderr
    assert int(load_file(tmp_path / "run" / LAST / "model.safetensors")["ema_updates"]) == 2
