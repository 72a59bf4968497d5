"""LIBERO's tables and files, without a simulator."""

import pickle
import re
import zipfile

import numpy as np
import pytest

from mode_envs import convention, env_task, features, suite
from mode_envs.libero_assets import package_folder
from mode_envs.libero_goal import GOAL_PREDICATES, GOAL_STATE
from mode_envs.libero_states import load_initial_states
from mode_envs.libero_tasks import LIBERO_SUITES, instruction
from mode_envs.registration import entry
from mode_policy.convention import Side, differences
from mode_policy.errors import ConfigError, SimulatorError


@pytest.fixture(scope="module")
def package():
    try:
        return package_folder()
    except SimulatorError as error:
        pytest.skip(str(error))


def test_suites_are_complete():
    sizes = {
        name: len(suite(name)) for name in ("libero_spatial", "libero_object", "libero_goal", "libero_10")
    }
    assert sizes == dict.fromkeys(sizes, 10)
    assert len(suite("libero90")) == 90
    horizons = {key: env_task(s.tasks[0]).max_steps for key, s in LIBERO_SUITES.items()}
    assert horizons == {"spatial": 280, "object": 280, "goal": 300, "10": 520, "90": 400}
    assert entry("mode/libero-goal-turn_on_the_stove").task == "turn_on_the_stove"
    with pytest.raises(ConfigError, match=r"unknown suite 'libero_90'\. Did you mean 'libero90'"):
        suite("libero_90")


def test_instructions_are_the_published_ones():
    assert instruction("KITCHEN_SCENE10_put_the_black_bowl_in_the_top_drawer_of_the_cabinet") == (
        "put the black bowl in the top drawer of the cabinet"
    )
    assert env_task("turn_on_the_stove").task.instruction == "turn on the stove"


@pytest.mark.parametrize("key", LIBERO_SUITES)
def test_the_tables_are_liberos(package, key):
    known = LIBERO_SUITES[key]
    folder = package / "bddl_files" / known.folder
    assert {path.stem for path in folder.glob("*.bddl")} == set(known.tasks)
    for task in known.tasks:
        words = (folder / f"{task}.bddl").read_text().split()
        start, end = words.index("(:fixtures"), words.index("(:obj_of_interest")
        declared = {w for w in words[start:end] if w.rsplit("_", 1)[-1].isdigit()}
        assert declared <= set(known.bodies), task


def test_the_goal_state_has_room_for_every_goal_and_is_the_same_in_all_suites(package):
    goals = [path.read_text().split("(:goal")[1] for path in package.glob("bddl_files/*/*.bddl")]
    predicates = [len(re.findall(r"\(\w+ [a-z][^()]*\)", goal)) for goal in goals]
    assert (min(predicates), max(predicates)) == (1, GOAL_PREDICATES)
    described = [features(known.tasks[0])[GOAL_STATE] for known in LIBERO_SUITES.values()]
    assert all(feature == described[0] for feature in described)


def test_every_task_has_its_initial_states(package):
    for known in LIBERO_SUITES.values():
        for task in known.tasks:
            path = package / "init_files" / known.folder / f"{task}.pruned_init"
            assert path.is_file(), path
    states = load_initial_states(path)
    assert states.shape[0] == 50
    assert np.isfinite(states).all()


class Harmful:
    def __reduce__(self):
        return print, ("executed",)


@pytest.mark.parametrize("content", [Harmful(), [1, 2], np.zeros(3)])
def test_initial_states_are_read_without_executing_anything(tmp_path, capsys, content):
    path = tmp_path / "task.pruned_init"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(content, protocol=2))
    with pytest.raises(SimulatorError, match=r"task\.pruned_init .*reinstall hf-libero"):
        load_initial_states(path)
    assert capsys.readouterr().out == ""


def test_damaged_initial_states_are_named(tmp_path, package):
    name = "pick_up_the_milk_and_place_it_in_the_basket.pruned_init"
    whole = (package / "init_files" / "libero_object" / name).read_bytes()
    for content in (b"", whole[: len(whole) // 2]):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(SimulatorError, match=r"cannot be read .*reinstall hf-libero"):
            load_initial_states(tmp_path / name)
    with pytest.raises(SimulatorError, match="there are no initial states at"):
        load_initial_states(tmp_path / "absent.pruned_init")


def test_conventions_of_all_environments():
    libero, metaworld, pusht = (convention(n) for n in ("turn_on_the_stove", "reach-v3", "pusht"))
    assert (libero.action_kind, libero.gripper, libero.fps) == ("delta", "plus_closes", 20)
    assert libero.action_scale == (0.05, 0.05, 0.05, 0.5, 0.5, 0.5, 1.0)
    assert (metaworld.action_kind, metaworld.action_scale[0], metaworld.fps) == ("delta", 0.01, 80)
    assert (pusht.action_kind, pusht.action_frame, pusht.gripper, pusht.fps) == (
        "absolute",
        "image",
        "none",
        10,
    )


def test_environments_mean_what_the_published_demonstrations_mean():
    published = pytest.importorskip("mode_datasets.convert.libero")
    described = features("turn_on_the_stove")
    assert described["action"] == published.KNOWN["actions"]
    data = Side(name="data", features={"action": described["action"]}, convention=published.CONVENTION)
    here = Side(name="here", features=described, convention=convention("turn_on_the_stove"))
    assert differences(data, here) == []


def test_images_are_described_for_every_camera():
    described = features("turn_on_the_stove", "pixels", image_size=(64, 96), cameras=("agentview",))
    assert set(described) == {"observation.images.agentview", "action"}
    assert described["observation.images.agentview"].shape == (64, 96, 3)
    assert set(features("turn_on_the_stove", "both")) > {
        "observation.images.static",
        "observation.images.gripper",
    }
