"""The contract that every environment keeps."""

import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from mode_envs import METAWORLD_INSTRUCTIONS, features, make, make_expert, rendering_available
from mode_envs.contract import STATE
from mode_envs.instructions import METAWORLD_MT10
from mode_envs.metaworld import CAMERAS
from mode_policy.errors import ConfigError, SimulatorError

pytest.importorskip("metaworld")
pytest.importorskip("gym_pusht")

IDS = ["mode/pusht-v0", "mode/metaworld-reach-v3", "mode/metaworld-door-open-v3", "mode/metaworld-hammer-v3"]
needs_gl = pytest.mark.skipif(not rendering_available()[0], reason=rendering_available()[1])


def check(env: gymnasium.Env) -> None:
    with warnings.catch_warnings():
        # The checker recommends normalised actions and bounded observations; ours are raw units by contract.
        warnings.filterwarnings("ignore", message=".*(symmetric and normalized|infinity).*")
        warnings.filterwarnings("ignore", message=".*not within the observation space.*")
        check_env(env.unwrapped, skip_render_check=not rendering_available()[0])


@pytest.mark.parametrize("env_id", IDS)
def test_gymnasium_accepts_it(env_id):
    check(gymnasium.make(env_id))


@needs_gl
@pytest.mark.parametrize(("env_id", "obs_mode"), [(IDS[0], "pixels"), (IDS[0], "both"), (IDS[1], "both")])
def test_gymnasium_accepts_pictures(env_id, obs_mode):
    check(gymnasium.make(env_id, obs_mode=obs_mode, image_size=(48, 64)))


@pytest.mark.parametrize("env_id", IDS[:2])
def test_features_describe_observation_and_action(env_id):
    modes = ("state", "pixels", "both") if rendering_available()[0] else ("state",)
    for obs_mode in modes:
        env = make(env_id, obs_mode=obs_mode)
        observation, _ = env.reset(seed=0)
        described = features(env_id, obs_mode)
        action = described.pop("action")
        assert {k: (v.shape, v.dtype) for k, v in described.items()} == {
            k: (v.shape, str(v.dtype)) for k, v in observation.items()
        }
        assert action.shape == env.action_space.shape
        assert all(len(f.names) == f.shape[0] for f in (action, *described.values()) if f.names)
        env.close()
    assert features("pusht")[STATE].angles == (4,)


def trajectory(env: gymnasium.Env, seed: int | None, steps: int) -> np.ndarray:
    generator = np.random.default_rng(0)
    space = env.action_space
    observation, info = env.reset(seed=seed)
    seen = [observation[STATE]]
    for _ in range(steps):
        action = generator.uniform(space.low, space.high).astype(np.float32)
        observation, reward, _, _, info = env.step(action)
        seen += [observation[STATE], [reward], [info["success"]]]
    return np.concatenate(seen)


def disturb(env: gymnasium.Env, task: str) -> None:
    """Leave traces: solve another arrangement half way, then reset without a seed."""
    expert = make_expert(task)
    observation, _ = env.reset(seed=8)
    for _ in range(30):
        observation, *_ = env.step(expert.act(observation))
    env.reset()
    env.step(env.action_space.high)


@pytest.mark.parametrize("task", METAWORLD_INSTRUCTIONS)
def test_seed_determines_a_metaworld_episode_whatever_happened_before(task):
    env = make(task)
    first = trajectory(env, 7, 10)
    disturb(env, task)
    assert np.array_equal(first, trajectory(env, 7, 10))
    assert not np.array_equal(first, trajectory(env, 8, 10))


@pytest.mark.parametrize("task", [*METAWORLD_MT10[:3], "pusht"])
def test_seed_determines_an_episode_in_a_fresh_object(task):
    used = make(task)
    trajectory(used, 3, 20)
    assert np.array_equal(trajectory(used, 5, 40), trajectory(make(task), 5, 40))


def test_resets_without_a_seed_continue_the_stream():
    def goals(env):
        return [env.reset(seed=seed)[0][STATE][-3:].tolist() for seed in (4, None, None)]

    first = goals(make("reach-v3"))
    assert first == goals(make("reach-v3"))
    assert first[0] != first[1] != first[2]


@pytest.mark.parametrize("task", METAWORLD_MT10)
def test_first_observation_shows_where_things_are(task):
    """Meta-World itself would show window-close's handle 20 cm off until the first step."""
    env = make(task)
    first, _ = env.reset(seed=1)
    second, *_ = env.step(np.array([0, 0, 0, -1], np.float32))
    assert np.abs(first[STATE] - second[STATE])[:18].max() < 0.01
    assert np.array_equal(first[STATE][:18], first[STATE][18:36])


def test_info_and_truncation():
    env = make("pusht")
    _, info = env.reset(seed=0)
    assert info == {"instruction": env.unwrapped.instruction, "success": False, "coverage": info["coverage"]}
    assert 0 <= info["coverage"] <= 1
    for step in range(300):
        _, reward, terminated, truncated, info = env.step(np.array([20, 20], np.float32))
        assert not terminated
        assert reward == pytest.approx(min(info["coverage"] / 0.95, 1))
        assert truncated == (step == 299)


def test_success_terminates_and_stepping_on_is_allowed():
    env, expert = make("reach-v3"), make_expert("reach-v3")
    observation, _ = env.reset(seed=0)
    terminated = False
    while not terminated:
        observation, _, terminated, truncated, info = env.step(expert.act(observation))
        assert not truncated
    assert info["success"]
    env.step(expert.act(observation))


def test_wrong_options_say_what_is_right():
    with pytest.raises(ConfigError, match="obs_mode is 'pixel'; choose one of state, pixels, both"):
        make("pusht", obs_mode="pixel")
    with pytest.raises(ConfigError, match="Did you mean 'corner2'"):
        make("reach-v3", camera="corne2")
    env = make("reach-v3")
    env.reset(seed=0)
    with pytest.raises(SimulatorError, match="render_mode='rgb_array'"):
        env.render()


@needs_gl
@pytest.mark.parametrize("camera", CAMERAS)
def test_metaworld_pictures_are_upright(camera):
    """Moving the hand up must move what is drawn there up."""
    env = make("reach-v3", camera=camera, render_mode="rgb_array", render_size=(120, 160))
    env.reset(seed=0)
    below = env.render()
    assert below.shape == (120, 160, 3)
    assert below.dtype == np.uint8
    if camera not in ("topview", "gripperPOV"):  # those look straight down
        for _ in range(60):
            env.step(np.array([0, 0, 1, -1], np.float32))
        above = env.render()
        moved = (np.abs(above.astype(int) - below) > 40).any(axis=-1)
        assert row_of_red(above, moved) < row_of_red(below, moved) - 3
    env.close()


def row_of_red(image: np.ndarray, where: np.ndarray) -> float:
    """Mean row of the robot's pixels; it is the only red thing."""
    red = where & (image[..., 0] > 80) & (image[..., 1] < 60) & (image[..., 2] < 60)
    return float(np.nonzero(red)[0].mean())


@needs_gl
def test_pusht_picture_shows_the_state():
    env = make("pusht", obs_mode="both", image_size=(96, 96))
    for seed in range(3):
        observation, _ = env.reset(seed=seed)
        image = observation["observation.images.top"].astype(int)
        blue = (image[..., 2] > 200) & (image[..., 0] < 120)
        row, column = np.argwhere(blue).mean(axis=0)
        x, y = observation[STATE][:2] * 96 / 512
        assert (column, row) == pytest.approx((x, y), abs=2)
