"""LeRobot's robots and servers: a simulated robot of ours, ``lerobot-rollout``, asynchronous inference."""

from __future__ import annotations

import logging
import os
import pickle
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from lerobot.robots.utils import make_robot_from_config
from lerobot.utils.errors import DeviceNotConnectedError

from lerobot_policy_mode import SimulatedRobotConfig
from lerobot_policy_mode.policy_server import loads
from mode_policy.errors import DataError

from .conftest import fresh, save, write_dataset

STATE = ("agent_x.pos", "agent_y.pos", "block_x.pos", "block_y.pos", "block_angle.pos")


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    """A policy for the simulated robot's Push-T, of one observation."""
    root = write_dataset(tmp_path / "data", lengths=(6, 6), image=None, states={"observation.state": 5})
    return save(fresh(root, "chunk_size=8", "sampler.steps=2"), tmp_path / "policy")


def test_the_simulated_robot_is_one_of_lerobots() -> None:
    pytest.importorskip("gym_pusht")
    robot = make_robot_from_config(SimulatedRobotConfig(seed=3))
    assert list(robot.observation_features) == list(STATE)
    assert list(robot.action_features) == ["agent_x.pos", "agent_y.pos"]
    with pytest.raises(DeviceNotConnectedError):
        robot.get_observation()
    robot.connect()
    try:
        first = robot.get_observation()
        assert list(first) == list(STATE)
        target = {name: first[name] + 30 for name in STATE[:2]}
        assert robot.send_action({**target, "block_x.pos": 0.0}) == target
        with pytest.raises(DataError, match=r"needs \['agent_y.pos'\] too"):
            robot.send_action({"agent_x.pos": 1.0})
        deadline = time.monotonic() + 60
        while (seen := robot.get_observation())["agent_x.pos"] <= first["agent_x.pos"]:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert seen["agent_x.pos"] > first["agent_x.pos"]
    finally:
        robot.disconnect()
    assert not robot.is_connected


def test_displacements_are_velocities_to_lerobot() -> None:
    robot = make_robot_from_config(SimulatedRobotConfig(task="reach-v3", images=True, image_size=(64, 48)))
    assert list(robot.action_features) == ["dx.vel", "dy.vel", "dz.vel", "gripper.vel"]
    assert robot.observation_features["corner2"] == (64, 48, 3)
    with pytest.raises(ValueError, match=r"unknown task 'reach'.*Did you mean"):
        make_robot_from_config(SimulatedRobotConfig(task="reach"))


class Evil:
    def __reduce__(self) -> tuple:
        return os.system, ("true",)


def test_messages_are_unpickled_and_nothing_else(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)  # LeRobot makes a folder of logs when this is imported
    helpers = pytest.importorskip("lerobot.async_inference.helpers")
    raw = {"agent_x.pos": 1.5, "task": "push", "image": np.arange(12, dtype=np.uint8).reshape(2, 2, 3)}
    raw["scalar"] = np.float32(2.0)
    message = helpers.TimedObservation(timestamp=1.0, timestep=3, observation=raw, must_go=True)
    got = loads(pickle.dumps(message))
    np.testing.assert_array_equal(got.get_observation().pop("image"), raw.pop("image"))
    assert got.get_observation() == raw
    features = {"observation.state": {"dtype": "float32", "shape": (5,), "names": list(STATE)}}
    config = helpers.RemotePolicyConfig("mode", "folder", features, 8, "cpu")
    assert loads(pickle.dumps(config, protocol=4)) == config
    for evil in (Evil(), os.system, torch.nn.Linear(1, 1), [{"deep": Evil()}]):
        with pytest.raises(pickle.UnpicklingError, match="a message may not contain"):
            loads(pickle.dumps(evil))


@pytest.mark.slow
@pytest.mark.parametrize("inference", ["sync", "rtc"])
def test_lerobot_rollout_drives_the_simulated_robot(
    policy: Path, tmp_path: Path, inference: str, offline_environment: dict[str, str]
) -> None:
    pytest.importorskip("gym_pusht")
    flags = ["--policy.path=" + str(policy), "--robot.type=mode_simulation", "--robot.task=pusht"]
    flags += ["--fps=10", "--duration=4", "--strategy.type=base", f"--inference.type={inference}"]
    flags += ["--return_to_initial_position=true", "--device=cpu"]
    flags += ["--inference.rtc.execution_horizon=6"] if inference == "rtc" else []
    done = subprocess.run(
        [sys.executable, "-m", "lerobot.scripts.lerobot_rollout", *flags],
        env=offline_environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    said = done.stderr + done.stdout
    found = re.search(r"pusht: success \S+ after (\d+) steps, (\d+) of them without a command", said)
    assert found
    assert int(found[1]) > int(found[2])  # some steps had a command
    assert "Could not return to initial position" not in said


@pytest.fixture
def server(tmp_path: Path, offline_environment: dict[str, str]) -> Iterator[str]:
    """The address of a policy server in a process of its own."""
    pytest.importorskip("grpc")
    code = (
        "from lerobot_policy_mode.command import main; main(['policy-server', '--port', '0', '--fps', '10'])"
    )
    log = (tmp_path / "server.log").open("w")
    process = subprocess.Popen(
        [sys.executable, "-c", code], env=offline_environment, cwd=tmp_path, stderr=log, stdout=log
    )
    try:
        deadline = time.monotonic() + 600
        while not (found := re.search(r"serving at (\S+)", (tmp_path / "server.log").read_text())):
            assert process.poll() is None, (tmp_path / "server.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.5)
        yield found[1]
    finally:
        process.terminate()
        process.wait()
        log.close()


@pytest.mark.slow
def test_asynchronous_inference(
    policy: Path, tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LeRobot's client, with its threads, drives the simulated robot by actions of the server."""
    pytest.importorskip("gym_pusht")
    monkeypatch.chdir(tmp_path)
    handlers = list(logging.getLogger().handlers)
    from lerobot.async_inference.configs import RobotClientConfig
    from lerobot.async_inference.robot_client import RobotClient

    client = RobotClient(
        RobotClientConfig(
            policy_type="mode",
            pretrained_name_or_path=str(policy),
            robot=SimulatedRobotConfig(),
            actions_per_chunk=8,
            server_address=server,
            fps=10,
            chunk_size_threshold=0.5,
        )
    )
    try:
        assert client.start()
        threads = [
            threading.Thread(target=client.receive_actions, daemon=True),
            threading.Thread(target=client.control_loop, args=("",), daemon=True),
        ]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + 300
        while client.latest_action < 20:  # three chunks at least
            assert time.monotonic() < deadline, (tmp_path / "server.log").read_text()[-3000:]
            time.sleep(0.2)
    finally:
        client.shutdown_event.set()
        for thread in threads:
            thread.join(timeout=10)
        client.stop()
        logging.getLogger().handlers[:] = handlers
    assert "Error in StreamActions" not in (tmp_path / "server.log").read_text()
