"""LIBERO's environments, in the real simulator."""

import os
import subprocess
import sys
import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from mode_envs import env_task, features, make, make_expert, rendering_available
from mode_envs.contract import ENVIRONMENT_STATE, STATE
from mode_envs.lanes import Begin, Lanes
from mode_envs.libero_assets import find_assets, package_folder
from mode_envs.libero_goal import GOAL_STATE
from mode_envs.libero_states import load_initial_states
from mode_envs.libero_tasks import LIBERO_SUITES
from mode_policy.errors import ConfigError, SimulatorError


def _absent() -> str:
    """Why the simulator cannot run here, or nothing."""
    try:
        find_assets(download=False)
    except SimulatorError as error:
        return str(error)
    return ""


pytestmark = pytest.mark.skipif(bool(_absent()), reason=_absent() or "-")
needs_gl = pytest.mark.skipif(not rendering_available()[0], reason=rendering_available()[1])

TASK = "pick_up_the_butter_and_place_it_in_the_basket"
STOVE = "KITCHEN_SCENE3_turn_on_the_stove"
STOVE_AND_POT = "KITCHEN_SCENE3_turn_on_the_stove_and_put_the_moka_pot_on_it"


@pytest.fixture(scope="module")
def env():
    env = make(TASK)
    yield env
    env.close()


@pytest.fixture(scope="module")
def used():
    """An object of the same task that has had another life: moved, grasped, reset without a seed."""
    env = make(TASK)
    generator = np.random.default_rng(1)
    env.reset(seed=99)
    for _ in range(10):
        env.step(generator.uniform(-1, 1, 7).astype(np.float32))
    env.reset()
    env.step(np.ones(7, np.float32))
    yield env
    env.close()


def trajectory(env: gymnasium.Env, steps: int = 6, **reset: object) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    observation, _ = env.reset(**reset)
    seen = [observation]
    for _ in range(steps):
        observation, *_ = env.step(generator.uniform(-1, 1, 7).astype(np.float32))
        seen.append(observation)
    return [np.concatenate([o[key] for o in seen]) for key in seen[0]]


def same(first: list[np.ndarray], second: list[np.ndarray]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_gymnasium_accepts_it(env):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(infinity|not within the observation space).*")
        check_env(env.unwrapped, skip_render_check=True)


@needs_gl
def test_gymnasium_accepts_pictures():
    env = make(TASK, obs_mode="both", image_size=(48, 64), cameras=("gripper", "static"))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(infinity|not within the observation space).*")
        check_env(env.unwrapped, skip_render_check=True)
    env.close()


def test_a_seed_determines_an_episode_whatever_happened_before(env, used):
    first = trajectory(env, seed=3)
    assert same(first, trajectory(used, seed=3))
    assert same(first, trajectory(env, seed=3))
    assert not same(first, trajectory(env, seed=4))


def test_environments_of_one_scene_do_not_disturb_each_other(env, used):
    """They share the compiled model: stepping them in turn must equal stepping one after the other."""
    alone = [trajectory(each, seed=seed) for each, seed in ((env, 3), (used, 5))]
    generators = [np.random.default_rng(0) for _ in range(2)]
    seen = [[env.reset(seed=3)[0]], [used.reset(seed=5)[0]]]
    for _ in range(6):
        for each, generator, record in zip((env, used), generators, seen, strict=True):
            record.append(each.step(generator.uniform(-1, 1, 7).astype(np.float32))[0])
    together = [[np.concatenate([o[key] for o in record]) for key in record[0]] for record in seen]
    assert all(same(a, b) for a, b in zip(alone, together, strict=True))


def test_initial_states_are_the_published_ones():
    env = make(TASK, settle_steps=0)
    sim = env.unwrapped
    states = load_initial_states(package_folder() / "init_files" / "libero_object" / f"{TASK}.pruned_init")
    assert sim.num_initial_states == len(states) == 50
    for number in (0, 17, 49):
        _, info = env.reset(seed=1, options={"init_state_id": number})
        assert info["init_state_id"] == number
        flat = np.concatenate([[sim._data.time], sim._data.qpos, sim._data.qvel])
        assert np.array_equal(flat, states[number])
    env.close()


def test_an_initial_state_is_the_same_under_any_seed(env, used):
    fixed = {"options": {"init_state_id": 7}}
    assert same(trajectory(env, seed=1, **fixed), trajectory(used, seed=2, **fixed))


def test_seeds_choose_among_initial_states(env):
    chosen = [env.reset(seed=seed)[1]["init_state_id"] for seed in range(8)]
    assert chosen == [env.reset(seed=seed)[1]["init_state_id"] for seed in range(8)]
    assert len(set(chosen)) > 4


def test_drawn_arrangements_follow_the_seed_and_are_not_published_ones(env):
    drawn = make(TASK, initial_states="drawn", settle_steps=0)
    first = trajectory(drawn, seed=3)
    assert same(first, trajectory(drawn, seed=3))
    drawn.reset(seed=4)
    positions = drawn.unwrapped._data.qpos
    published = env.unwrapped._states[:, 1 : 1 + len(positions)]
    assert np.abs(published - positions).max(axis=1).min() > 0.005
    before = np.random.get_state()[1].copy()
    drawn.reset(seed=5)
    assert np.array_equal(before, np.random.get_state()[1])  # NumPy's global generator is the caller's
    with pytest.raises(ConfigError, match=r"init_state_id is 3; .* has none, as initial_states='drawn'"):
        drawn.reset(options={"init_state_id": 3})
    drawn.close()


def test_features_describe_observation_and_action(env):
    observation, _ = env.reset(seed=0)
    described = features(TASK)
    assert described.pop("action").shape == env.action_space.shape
    assert {k: (v.shape, v.dtype) for k, v in described.items()} == {
        k: (v.shape, str(v.dtype)) for k, v in observation.items()
    }
    assert all(len(f.names) == f.shape[0] for f in described.values())
    state = dict(zip(described[ENVIRONMENT_STATE].names, observation[ENVIRONMENT_STATE], strict=True))
    where = env.unwrapped.position("butter_1")
    assert [state[f"butter_1_{axis}"] for axis in "xyz"] == pytest.approx(where, abs=1e-6)
    quaternion = [state[f"butter_1_q{axis}"] for axis in "wxyz"]
    assert np.linalg.norm(quaternion) == pytest.approx(1, abs=1e-5)
    absent = next(b for b in LIBERO_SUITES["object"].bodies if b not in env.unwrapped._problem.obj_body_id)
    assert [value for name, value in state.items() if name.startswith(absent)] == [0.0] * 7


def simulators_pose(env: gymnasium.Env, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Position and rotation matrix, by LIBERO's and robosuite's own names."""
    problem = env.unwrapped._problem
    data = problem.sim.data
    if name in problem.object_sites_dict:
        return data.get_site_xpos(name), data.get_site_xmat(name)
    body = problem.get_object(name).root_body
    return data.get_body_xpos(body), data.get_body_xmat(body)


def matrix(quaternion: np.ndarray) -> np.ndarray:
    w, *v = quaternion.astype(np.float64)
    x, y, z = v
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + 2 * w * cross + 2 * cross @ cross


@pytest.mark.parametrize(
    "task",
    [
        TASK,
        STOVE_AND_POT,
        pytest.param("pick_up_the_black_bowl_on_the_stove_and_place_it_on_the_plate", marks=pytest.mark.slow),
        pytest.param("open_the_middle_drawer_of_the_cabinet", marks=pytest.mark.slow),
        pytest.param("KITCHEN_SCENE6_close_the_microwave", marks=pytest.mark.slow),
        pytest.param(
            "LIVING_ROOM_SCENE4_stack_the_left_bowl_on_the_right_bowl_and_place_them_in_the_tray",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_the_goal_state_holds_the_poses_that_the_goal_names(task):
    env = make(task)
    observation, _ = env.reset(seed=0)
    described = features(task)[GOAL_STATE]
    assert env.observation_space[GOAL_STATE].shape == described.shape == (42,)
    assert described.names[7:10] == ("goal1_place_x", "goal1_place_y", "goal1_place_z")
    goals = observation[GOAL_STATE].reshape(3, 2, 7)
    goal = env.unwrapped.goal
    assert not goals[len(goal) :].any()
    for rows, (_, *names) in zip(goals, goal, strict=False):
        if len(names) == 1:
            assert not rows[1].any()
            assert follows_its_joint(env, rows[0], names[0])
            continue
        for row, name in zip(rows, names, strict=True):
            position, rotation = simulators_pose(env, name)
            assert row[:3] == pytest.approx(position, abs=1e-6)
            assert matrix(row[3:]) == pytest.approx(rotation, abs=1e-5)
    env.close()


def follows_its_joint(env: gymnasium.Env, before: np.ndarray, name: str) -> bool:
    """Return whether the first pose of the goal state moves as far as the joint of a piece of furniture."""
    import mujoco

    sim = env.unwrapped
    regions = sim._problem.object_sites_dict
    holder = regions[name] if name in regions else sim._problem.get_object(name)
    joint = sim._model.joint(holder.joints[0])
    sim._data.qpos[joint.qposadr[0]] += 0.1
    mujoco.mj_kinematics(sim._model, sim._data)
    after = sim._vectors()[GOAL_STATE][:7]
    if joint.type[0] == mujoco.mjtJoint.mjJNT_SLIDE:
        return bool(np.linalg.norm(after[:3] - before[:3]) == pytest.approx(0.1, abs=1e-5))
    return bool(2 * np.arccos(abs(after[3:] @ before[3:])) == pytest.approx(0.1, abs=1e-3))


def test_actions_move_the_hand_as_described(env):
    """1 is 0.05 m along an axis of the world, which the controller approaches; +1 closes the gripper."""
    for axis in range(3):
        before = env.reset(seed=0)[0][STATE]
        action = np.zeros(7, np.float32)
        action[axis], action[6] = 1.0, 1.0
        for _ in range(5):
            observation, *_ = env.step(action)
        moved = observation[STATE][:3] - before[:3]
        assert np.argmax(np.abs(moved)) == axis
        assert 0.03 < moved[axis] <= 0.25
        assert np.abs(observation[STATE][6:]).sum() < np.abs(before[6:]).sum()


def test_time_limit_and_info(env):
    env.reset(seed=0)
    for step in range(280):
        _, reward, terminated, truncated, info = env.step(np.zeros(7, np.float32))
        assert (reward, terminated, info["success"]) == (0.0, False, False)
        assert truncated == (step == 279)
    assert info["instruction"] == "pick up the butter and place it in the basket"


def test_an_expert_solves_it_from_drawn_arrangements():
    env, expert = make(TASK, initial_states="drawn"), make_expert(TASK)
    observation, _ = env.reset(seed=0)
    terminated = truncated = False
    while not (terminated or truncated):
        observation, reward, terminated, truncated, info = env.step(expert.act(observation))
    assert terminated
    assert info["success"]
    assert reward == 1.0
    env.close()


@pytest.mark.slow
@pytest.mark.parametrize("task", LIBERO_SUITES["object"].tasks)
def test_the_expert_solves_every_task_of_its_suite(task):
    env, expert = make(task, initial_states="drawn"), make_expert(task)
    solved = 0
    for seed in range(3):
        observation, info = env.reset(seed=seed)
        expert.reset()
        truncated = False
        while not (truncated or info["success"]):
            observation, _, _, truncated, info = env.step(expert.act(observation))
        solved += info["success"]
    env.close()
    assert solved >= 2


@needs_gl
def test_pictures_are_upright(env):
    """Moving the hand up must move what changes in the picture up."""
    lower = make(TASK, render_mode="rgb_array", render_size=(96, 128))
    lower.reset(seed=0)
    start = lower.render().astype(int)
    assert start.shape == (96, 128, 3)
    # The robot stands at the far side of the floor, so the upper half is where pixels change.
    for _ in range(15):
        lower.step(np.array([0, 0, 1, 0, 0, 0, -1], np.float32))
    risen = np.nonzero((np.abs(lower.render() - start) > 40).any(axis=-1))[0]
    assert np.median(risen) < 48
    lower.close()


@needs_gl
def test_pictures_of_any_size_and_camera_agree():
    env = make(TASK, obs_mode="pixels", image_size=(64, 64))
    observation, _ = env.reset(seed=0)
    assert set(observation) == {"observation.images.static", "observation.images.gripper"}
    sim = env.unwrapped
    assert np.array_equal(sim.picture((64, 64), "static"), observation["observation.images.static"])
    large = sim.picture((128, 128), "agentview").reshape(64, 2, 64, 2, 3).mean(axis=(1, 3))
    assert np.abs(large - observation["observation.images.static"]).mean() < 8
    assert np.array_equal(sim.picture((64, 64), "static"), observation["observation.images.static"])
    env.close()


def test_lanes_switch_tasks_of_a_scene_without_compiling(env):
    lanes = Lanes()
    for lane in range(3):
        task = env_task(TASK)
        (reply,) = lanes([Begin(lane=lane, env_id=task.env_id, max_steps=9, seed=lane, history=1)])
        assert reply.observation is not None
    shared = {id(e.env.unwrapped._model) for e in lanes._episodes.values()}
    assert shared == {id(env.unwrapped._model)}
    lanes.close()


def test_wrong_options_say_what_is_right(env):
    with pytest.raises(ConfigError, match=r"unknown camera 'wrist'.*Known: .*gripper, static"):
        make(TASK, cameras=("wrist",))
    with pytest.raises(ConfigError, match=r"init_state_id is 50; .* has 0 to 49"):
        env.reset(options={"init_state_id": 50})
    with pytest.raises(ConfigError, match="unknown option 'init_state' of reset"):
        env.reset(options={"init_state": 1})
    with pytest.raises(ConfigError, match="initial_states is 'random'"):
        make(TASK, initial_states="random")


def test_nothing_is_asked_nor_left_behind(tmp_path):
    """LIBERO prompts and writes to the home folder, robosuite chooses an OpenGL: here neither may."""
    code = (
        "import os\nfrom mode_envs import make\n"
        f"env = make({TASK!r}); env.reset(seed=0); print('MUJOCO_GL' in os.environ)"
    )
    home = {**os.environ, "HOME": str(tmp_path)}
    home.pop("MUJOCO_GL", None)
    done = subprocess.run(
        [sys.executable, "-c", code], env=home, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    assert done.stdout == "False\n", done.stderr
    assert done.stderr == ""
    left = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")}
    assert not [name for name in left if "libero" in name or "robosuite" in name]


@pytest.mark.slow
@pytest.mark.parametrize(
    "task", [STOVE, "open_the_middle_drawer_of_the_cabinet", "KITCHEN_SCENE7_open_the_microwave"]
)
def test_furniture(task):
    """Scenes with a stove, drawers, a microwave: same seed, same episode, also after another one."""
    env = make(task)
    first = trajectory(env, 20, seed=0)
    trajectory(env, 5, seed=1)
    assert same(first, trajectory(env, 20, seed=0))
    env.close()
