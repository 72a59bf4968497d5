"""The programs as a user runs them: serve, drive from another process, pull the plug."""

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mode_datasets import Provenance, StoreWriter
from mode_envs import env_task, features
from mode_policy.apps.cli import compose, to_plain
from mode_policy.apps.control import run
from mode_policy.apps.control_loop import ControlConfig, fit
from mode_policy.apps.monitor import main as monitor
from mode_policy.apps.serve import ServeConfig
from mode_policy.checkpoint import save_checkpoint
from mode_policy.config import build
from mode_policy.convention import Convention
from mode_policy.deploy.policy_service import PolicyService, load_service
from mode_policy.deploy.telemetry import Telemetry
from mode_policy.errors import ConfigError, DataError, InferenceError, ModePolicyError
from mode_policy.normalization import compute_statistics
from mode_policy.policy import MoDEPolicy
from mode_policy.types import ACTION, STATE, Episode, InstructionTable
from tests import toy
from tests.conftest import ROOT
from tests.deploy.conftest import DiaryRobot, Running, wait_for

#: A busy machine is no fault.
PATIENT = ("loop.watchdog=20", "safety.stale_after=20")


@pytest.fixture(scope="module")
def pusht(tmp_path_factory) -> Path:
    """A policy of Push-T that has learnt nothing."""
    task = env_task("pusht")
    described = features(task.env_id)
    rng = np.random.default_rng(0)
    arrays = {k: rng.uniform(0, 512, (50, *f.shape)).astype(np.float32) for k, f in described.items()}
    table = InstructionTable(
        encoder="minilm-l6-v2", instructions=(task.task.instruction,), embeddings=torch.ones(1, 8)
    )
    torch.manual_seed(0)
    policy = MoDEPolicy(
        toy.config(chunk=10, execute=6, history=2), described, compute_statistics(arrays), table
    )
    path = tmp_path_factory.mktemp("pusht") / "checkpoint"
    save_checkpoint(path, policy, policy.state_dict(), about={})
    return path


@pytest.fixture(scope="module")
def address(pusht):
    """Where it is served."""
    server = Running(load_service(pusht))
    yield server.address
    server.close()


def config(*overrides):
    return build(ControlConfig, to_plain(compose("control", list(overrides))))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


class Program:
    """A program in the background, whose output is kept."""

    def __init__(self, folder: Path, name: str, *command: str) -> None:
        self.log = folder / f"{name}.log"
        with self.log.open("w") as out:
            self.process = subprocess.Popen(
                [sys.executable, *command],
                cwd=ROOT,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=os.environ | {"COLUMNS": "200", "PYTHONUNBUFFERED": "1"},
            )

    @property
    def said(self) -> str:
        return self.log.read_text()

    def wait_for(self, words: str) -> None:
        wait_for(lambda: re.search(words, self.said) or self.process.poll() is not None)
        assert re.search(words, self.said), self.said


def test_serve_and_drive_from_another_process_and_pull_the_plug(tmp_path, pusht):
    port = free_port()
    command = ("serve.py", f"checkpoint={pusht}", f"port={port}", "threads=1")
    server = Program(tmp_path, "first", *command)
    server.wait_for("serving ")
    loop = Program(
        tmp_path,
        "loop",
        *("-m", "mode_policy.apps.control", f"server=ws://127.0.0.1:{port}", "robot=pusht"),
        *(f"log={tmp_path}/log", "robot.max_steps=100000", *PATIENT),
    )
    loop.wait_for("loop  ")
    wait_for(lambda: "1 sessions" in server.said or server.process.poll() is None)
    server.process.kill()
    server.process.wait()
    loop.wait_for("inference lost: ")
    again = Program(tmp_path, "second", *command)
    loop.wait_for("all is well again")
    assert "policy     ws://" in loop.said
    loop.process.send_signal(signal.SIGINT)
    assert loop.process.wait(60) == 130
    assert "episode 0  interrupted" in loop.said
    assert re.search(r"late \d+", loop.said)
    (log,) = (tmp_path / "log").glob("*.parquet")
    assert f"log        {log}" in loop.said
    again.process.send_signal(signal.SIGTERM)
    assert again.process.wait(60) == 0
    assert re.search(r"served +\d+ requests of 1 sessions", again.said)


def test_a_server_of_another_project_is_no_policy_to_build_a_loop_around(serve):
    class Foreign(PolicyService):
        def __init__(self, policy):
            super().__init__(policy)
            self.metadata = {"action_horizon": 10}

    server = serve(Foreign(toy.policy()))
    with pytest.raises(InferenceError, match="does not describe its policy's features"):
        run(config(f"server={server.address}", "robot=pusht"))


def test_it_says_what_it_waits_for(monkeypatch, capsys):
    monkeypatch.setattr("mode_policy.apps.control.PATIENCE", 0.5)
    with pytest.raises(InferenceError, match=r"no inference within 0\.5 s"):
        run(config(f"server=ws://127.0.0.1:{free_port()}", "robot=pusht"))
    assert re.search(r"waiting    no server at ws://.*trying for 0\.5 s", capsys.readouterr().out)


def test_a_port_that_is_taken(pusht):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = subprocess.run(
            [sys.executable, "serve.py", f"checkpoint={pusht}", f"port={port}", "threads=1"],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
    assert done.returncode == 2
    assert re.search(rf"cannot listen at 127\.0\.0\.1:{port}", done.stderr)
    assert "Traceback" not in done.stderr


def test_a_checkpoint_beside_the_loop(pusht, capsys):
    summaries = run(
        config(f"checkpoint={pusht}", "robot=pusht", "robot.max_steps=15", "episodes=2", *PATIENT)
    )
    assert [s.outcome for s in summaries] == ["done", "done"]
    assert all(s.chunks >= 1 and s.info["success"] is False for s in summaries)
    assert "episode 1  done, no success" in capsys.readouterr().out


def test_a_recorded_episode_is_replayed(address, tmp_path, capsys):
    task, path = env_task("pusht"), tmp_path / "store.zarr"
    origin = Provenance(source="test", licence="MIT")
    with StoreWriter(path, features(task.env_id), Convention(fps=10.0), origin) as writer:
        arrays = {STATE: np.full((12, 5), 200, np.float32), ACTION: np.full((12, 2), 200, np.float32)}
        writer.append(Episode(arrays=arrays, task=task.task))
    summaries = run(config(f"server={address}", "robot=replay", f"robot.path={path}"))
    assert summaries[0].outcome == "done"
    assert summaries[0].ticks + summaries[0].skipped == pytest.approx(12, abs=1)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "give either server=ws://… or checkpoint=…"),
        (["server=ws://x", "checkpoint=x"], "give either server"),
        (["server=ws://x", "strategy.name=rct"], "strategy.name: .*'rtc'"),
        (["server=ws://x", "late.behaviour=safe_pose"], "needs the pose"),
        (["server=ws://x", "safety.jerk=3"], "needs one of acceleration"),
        (["server=ws://x", "loop.wait=0.9"], "loop.wait"),
        (["server=ws://x", "safty.low=1"], "unknown override 'safty.low'. Did you mean 'safety.low'"),
        (["server=ws://x", "robot=push"], "unknown robot 'push'. Did you mean 'pusht'"),
        (["checkpoint=x"], "there is nothing at x"),
        (["server=http://x"], "http://x is no address of a server; give ws://host:port"),
        (["server=wss://x", "certificate=none.pem"], "certificate none.pem cannot be used"),
        (["server=ws://x", "token_file=none"], "token_file=none cannot be read"),
        (["server=ws://x", "safety.stale_after=.inf"], "safety.stale_after"),
    ],
)
def test_what_cannot_be_driven(overrides, message):
    with pytest.raises(ConfigError, match=message):
        run(config(*overrides))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["robot=metaworld"], r"observation.state.* \(39,\) on the robot and \(5,\) in the policy"),
        (["robot.task=push"], "unknown task 'push'. Did you mean 'pusht'"),
        (["prompt=dance"], "unknown instruction 'dance'"),
        (["strategy.execute=99"], "execute=99, but the policy predicts chunks of 10"),
        (["robot=lerobot", "robot.lerobot.type=none"], "is no robot of LeRobot"),
        (["action.gripper=[7]"], "names dimension 7"),
        (["action.measured=[0,9]"], "points outside of the robot's state, which has 5 numbers"),
    ],
)
def test_robots_that_do_not_fit_the_policy(address, overrides, message):
    def told() -> None:
        summaries = run(config(f"server={address}", "seconds=5", *overrides))
        raise DataError(summaries[0].error)

    with pytest.raises(ModePolicyError, match=message):
        told()


def test_time_outs_have_to_last_longer_than_a_tick(service):
    robot = DiaryRobot()
    robot.rate = 1.0

    def fitted(*overrides):
        return fit(config("server=ws://x", *overrides), service.metadata, robot, "go left")

    with pytest.raises(ConfigError, match=r"observations come every 1 s, .*safety\.stale_after=2"):
        fitted()
    with pytest.raises(ConfigError, match=r"a tick lasts 1 s, .*loop\.watchdog=2"):
        fitted("safety.stale_after=2")
    assert fitted("safety.stale_after=2", "loop.watchdog=2").rate == 1
    robot.rate = 200.0
    assert fitted("loop.rate=1", "safety.stale_after=2", "loop.watchdog=null").rate == 1


def test_serving_is_checked_before_anything_is_loaded(tmp_path):
    def serve(*overrides):
        return build(ServeConfig, to_plain(compose("serve", list(overrides))))

    with pytest.raises(ConfigError, match="there is nothing at"):
        serve(f"checkpoint={tmp_path}/none")
    with pytest.raises(ConfigError, match="is reached from other machines"):
        serve(f"checkpoint={tmp_path}", "host=0.0.0.0")
    with pytest.raises(ConfigError, match="checkpoint has no value"):
        serve()
    done = subprocess.run(
        [sys.executable, "serve.py", f"checkpoint={tmp_path}"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "is no checkpoint" in done.stderr


def test_the_monitor_says_where_it_is_and_what_is_wrong(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(SystemExit) as stopped:
        monitor(["--port", str(taken.getsockname()[1])])
    assert stopped.value.code == 2
    assert "choose another with --port" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        monitor(["--port", "0", "--telemetry", "none"])
    assert "none holds no telemetry" in capsys.readouterr().err


def test_stopping_from_the_command_line(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("mode_policy.deploy.runtime.folder", lambda: tmp_path)
    with pytest.raises(SystemExit):
        monitor(["--stop"])
    assert "nothing to stop" in capsys.readouterr().err
    first, second = (Telemetry.create(rate=10.0, actions=["x"], title=title) for title in ("left", "right"))
    monitor(["--stop", "--telemetry", str(first.path)])
    assert (first.stop_requested, second.stop_requested) == (True, False)
    broken = tmp_path / f"mode-control-{os.getpid()}-x.telemetry"
    broken.write_bytes(b"nonsense")
    with pytest.raises(SystemExit):
        monitor(["--stop"])
    said = capsys.readouterr()
    assert second.stop_requested, "whatever else is there"
    assert "stopping   right" in said.out
    assert "holds no telemetry" in said.err
    second.finish()
    first.finish()
    with pytest.raises(SystemExit):
        monitor(["--stop", "--telemetry", str(first.path)])
    assert "holds no telemetry" in capsys.readouterr().err
