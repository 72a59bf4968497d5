"""Steps in which nothing happens are found, left out, and what is left still solves the task."""

from pathlib import Path

import numpy as np
import pytest

from mode_envs import env_task, make
from mode_envs.collect import collect
from mode_envs.demonstrate import Attempt, Demonstrator
from mode_envs.no_ops import no_ops
from mode_envs.recordings import Recordings
from mode_policy.errors import ConfigError

BELOW = 0.02


def test_a_step_counts_only_if_nothing_is_asked_for_and_nothing_moves():
    actions = np.zeros((7, 4))
    actions[1, 0] = 0.5  # motion
    actions[3:, 3] = 1.0  # the gripper is told to close at step 3
    executed = actions.copy()
    executed[2, 1] = 0.3  # a disturbance
    states = np.zeros((7, 2))
    states[5:, 1] = 0.01  # a finger moves during step 4
    found = no_ops(actions, executed, states, np.ones(4), BELOW)
    assert found.tolist() == [True, False, False, False, False, True, False]


def test_the_scale_of_the_actions_counts():
    actions, states = np.full((3, 2), 0.1), np.zeros((3, 2))
    assert no_ops(actions, actions, states, np.full(2, 10.0), BELOW).tolist() == [True, True, False]
    assert not no_ops(actions, actions, states, np.ones(2), BELOW).any()


@pytest.mark.parametrize("value", [-0.1, 1.0])
def test_a_share_is_within_0_and_1(value):
    with pytest.raises(ConfigError, match=f"no_ops_below is {value}"):
        collect([env_task("reach-v3")], 1, no_ops_below=value)


def test_recordings_of_both_kinds_do_not_meet():
    attempt = {"env_id": "mode/metaworld-reach-v3", "max_steps": 500, "seed": 0}
    recordings = Recordings(Path("root"))
    plain = recordings.path(Attempt(**attempt), 0, 1)
    assert plain != recordings.path(Attempt(**attempt, no_ops_below=BELOW), 0, 1)
    assert plain.parent.name == "noise0-0.5-seed0-settle5"


def test_what_is_left_solves_the_task_as_recorded():
    pytest.importorskip("metaworld")
    attempt = {"env_id": "mode/metaworld-reach-v3", "max_steps": 500, "seed": 5, "settle_steps": 30}
    demonstrate = Demonstrator()
    whole, short = demonstrate(Attempt(**attempt)), demonstrate(Attempt(**attempt, no_ops_below=0.2))
    assert whole is not None
    assert short is not None
    assert set(short) == set(whole)
    assert len(short["action"]) < len(whole["action"])
    env = make("reach-v3")
    observation, info = env.reset(seed=5)
    solved = []
    for state, action in zip(short["observation.state"], short["action"], strict=True):
        assert np.array_equal(observation["observation.state"], state)
        observation, _, _, _, info = env.step(action)
        solved.append(info["success"])
    assert any(solved)
    env.close()


def test_what_no_longer_solves_the_task_is_a_failed_attempt(monkeypatch):
    pytest.importorskip("metaworld")
    monkeypatch.setattr("mode_envs.demonstrate.no_ops", lambda actions, *_: np.arange(len(actions)) > 2)
    attempt = Attempt(env_id="mode/metaworld-reach-v3", max_steps=500, seed=5, no_ops_below=BELOW)
    assert Demonstrator()(attempt) is None
