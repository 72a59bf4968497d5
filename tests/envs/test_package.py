"""Names, suites, and what importing the package costs."""

import subprocess
import sys

import gymnasium
import pytest

import mode_envs
from mode_envs import METAWORLD_INSTRUCTIONS, SUITES, env_task, make_expert, register, renderer, suite
from mode_envs import contract as here
from mode_envs.registration import ENTRIES, require
from mode_policy import types as there
from mode_policy.errors import ConfigError, SimulatorError


def test_import_is_light():
    code = (
        "import sys, mode_envs, mode_envs.lanes, mode_envs.demonstrate\n"
        "print([m for m in ('metaworld', 'mujoco', 'pymunk', 'pygame', 'torch') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "[]\n"


def test_feature_keys_are_the_packages():
    assert (here.STATE, here.ACTION, here.IMAGE_PREFIX) == (there.STATE, there.ACTION, there.IMAGE_PREFIX)


def test_registration_is_complete_and_idempotent():
    register()
    assert {e.env_id for e in ENTRIES.values()} == {i for i in gymnasium.registry if i.startswith("mode/")}
    assert gymnasium.spec("mode/metaworld-reach-v3").max_episode_steps == 500
    assert gymnasium.spec("mode/pusht-v0").max_episode_steps == 300


def test_tables_are_metaworlds():
    env_dict = pytest.importorskip("metaworld.env_dict")
    assert list(METAWORLD_INSTRUCTIONS) == list(env_dict.MT50_V3)
    assert [t.task.name for t in suite("metaworld_mt10")] == list(env_dict.MT10_V3)
    assert len(suite("metaworld_mt50")) == 50


def test_instructions_are_distinct_sentences():
    ours = [e for e in ENTRIES.values() if not e.env_id.startswith("mode/libero-")]  # as LIBERO has them
    instructions = [e.instruction for e in ours]
    assert len(set(instructions)) == len(instructions)
    assert all(text[0].isupper() and text.endswith(".") for text in instructions)


def test_tasks_are_found_by_name_and_id():
    assert env_task("reach-v3") == env_task("mode/metaworld-reach-v3")
    assert env_task("pusht").max_steps == 300


def test_unknown_names_get_a_suggestion():
    with pytest.raises(ConfigError, match=r"Did you mean .*'reach-v3'"):
        env_task("reach-v2")
    with pytest.raises(ConfigError, match=r"unknown suite 'metaworld_mt1'.* Did you mean 'metaworld_mt10'"):
        suite("metaworld_mt1")
    with pytest.raises(ConfigError, match="'pusht' has no scripted expert; these have one: assembly-v3"):
        make_expert("pusht")
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = mode_envs.nothing
    assert all(callable(tasks) for tasks in SUITES.values())


def test_missing_simulator_says_how_to_install_it():
    with pytest.raises(SimulatorError, match=r"needs 'no_such_sim'.*pip install 'mode-policy\[pusht\]'"):
        require("no_such_sim.envs", "pusht")


def test_no_opengl_says_what_to_install(monkeypatch):
    pytest.importorskip("mujoco")
    monkeypatch.setattr(renderer, "BACKENDS", ("no_such_backend",))
    renderer.rendering_available.cache_clear()
    try:
        env = mode_envs.make("reach-v3", render_mode="rgb_array")
        env.reset(seed=0)
        env.step(env.action_space.sample())  # needs no OpenGL
        with pytest.raises(SimulatorError, match=r"no_such_backend.*apt-get install -y libegl1"):
            env.render()
    finally:
        renderer.rendering_available.cache_clear()


def test_a_backend_that_mujoco_does_not_know_is_named(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "egll")
    renderer.rendering_available.cache_clear()
    try:
        available, reason = renderer.rendering_available()
    finally:
        renderer.rendering_available.cache_clear()
    assert not available
    assert "MUJOCO_GL is 'egll', which MuJoCo does not know; set it to egl or osmesa" in reason
