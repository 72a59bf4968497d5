"""LIBERO's and robomimic's HDF5: what their numbers mean, and files that cannot be trusted."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mode_datasets import open_store
from mode_datasets.convert import SourceOptions, detect, open_source, parse_keys
from mode_datasets.convert.libero import ACTION_SCALE
from mode_envs import convention, features, suite
from mode_policy.convention import Convention, Side, differences, missing
from mode_policy.errors import ConfigError, DataError
from mode_policy.types import ACTION, ENVIRONMENT_STATE, STATE

from .conftest import (
    LIBERO_ENV_ARGS,
    LIBERO_TASKS,
    Arrays,
    libero_attributes,
    libero_demo,
    run,
    same_episodes,
    to_store,
    write_hdf5,
)

h5py = pytest.importorskip("h5py")
AGENTVIEW = "observation.images.agentview"


def test_libero_comes_out_upright_with_what_it_means(
    libero: tuple[Path, dict[str, list[Arrays]]], tmp_path: Path
) -> None:
    folder, suite = libero
    assert detect(folder).format == "libero"
    store = to_store(folder, tmp_path / "out.zarr")
    demos = [demo for name in sorted(suite) for demo in suite[name]]
    assert store.episode_lengths.tolist() == [len(demo["actions"]) for demo in demos]  # demo_2 before demo_10
    assert {task.name: task.instruction for task in store.tasks} == LIBERO_TASKS
    for i, demo in enumerate(demos):
        arrays = store.episode(i).arrays
        np.testing.assert_array_equal(arrays[AGENTVIEW], demo["obs/agentview_rgb"][:, ::-1])
        state = np.concatenate([demo["obs/ee_states"], demo["obs/gripper_states"]], 1).astype(np.float32)
        np.testing.assert_array_equal(arrays[STATE], state)
        np.testing.assert_array_equal(arrays[ACTION], demo["actions"].astype(np.float32))
    assert store.convention == Convention(
        action_kind="delta", action_frame="world", action_scale=ACTION_SCALE, gripper="plus_closes", fps=20.0
    )
    assert store.features[STATE].names[-2:] == ("left_finger", "right_finger")
    assert store.image_orientation == "upright"


def test_liberos_files_mean_what_its_environments_mean(libero: tuple[Path, dict[str, list[Arrays]]]) -> None:
    source, _ = open_source(libero[0], None, SourceOptions())
    task = suite("libero_10")[0].env_id
    seen = features(task, "both", cameras=("agentview", "eye_in_hand"))
    environment = Side(name="environment", features=seen, convention=convention(task))
    demonstrations = Side(name="demonstrations", features=source.features, convention=source.convention)
    assert differences(demonstrations, environment) == []
    assert missing(environment, demonstrations) == []
    swapped, _ = open_source(libero[0], None, SourceOptions(gripper="plus_opens"))
    wrong = Side(name="demonstrations", features=swapped.features, convention=swapped.convention)
    assert [d.what for d in differences(wrong, environment)] == ["gripper"]  # negative control


def test_the_file_says_how_its_images_are_turned(tmp_path: Path) -> None:
    demo = libero_demo(5, np.random.default_rng(0))
    for image_convention, step in (("opengl", -1), ("opencv", 1)):
        path = tmp_path / image_convention / "task_demo.hdf5"
        write_hdf5(path, [demo], libero_attributes("do it", macros_image_convention=image_convention))
        images = to_store(path, tmp_path / f"{image_convention}.zarr").episode(0).arrays[AGENTVIEW]
        np.testing.assert_array_equal(images, demo["obs/agentview_rgb"][:, ::step])
    both = tmp_path / "both"
    both.mkdir()
    for name in ("opengl", "opencv"):
        (tmp_path / name / "task_demo.hdf5").rename(both / f"{name}_demo.hdf5")
    with pytest.raises(DataError, match=r"not all stored the same way .*opencv"):
        open_source(both, None, SourceOptions())
    user = open_source(both, None, SourceOptions(orientation="upright"))[0].episode(0)
    np.testing.assert_array_equal(user.arrays[AGENTVIEW], demo["obs/agentview_rgb"])


def test_the_files_controller_and_rate_count(tmp_path: Path) -> None:
    settings = json.loads(json.dumps(LIBERO_ENV_ARGS))
    settings["env_kwargs"]["control_freq"] = 10
    settings["env_kwargs"]["controller_configs"] |= {"control_delta": False}
    path = tmp_path / "task_demo.hdf5"
    write_hdf5(
        path,
        [libero_demo(5, np.random.default_rng(0))],
        libero_attributes("do it", env_args=json.dumps(settings)),
    )
    convention = open_source(path, None, SourceOptions())[0].convention
    assert (convention.fps, convention.action_kind, convention.action_scale) == (10.0, "absolute", ())
    told = open_source(path, None, SourceOptions(fps=5.0, gripper="one_opens"))[0].convention
    assert (told.fps, told.gripper) == (5.0, "one_opens")


def test_user_chooses_and_joins_arrays(libero: tuple[Path, dict[str, list[Arrays]]]) -> None:
    keys = {STATE: ("joint_states", "ee_pos"), ACTION: ("actions",)}
    source, _ = open_source(libero[0], None, SourceOptions(keys=keys))
    demo = libero[1][min(libero[1])][0]
    joined = np.concatenate([demo["obs/joint_states"], demo["obs/ee_pos"]], 1).astype(np.float32)
    np.testing.assert_array_equal(source.episode(0).arrays[STATE], joined)
    assert set(source.features) == {STATE, ACTION}
    with pytest.raises(DataError, match=r"no 'joint_state', which 'observation.state' needs.*joint_states"):
        open_source(libero[0], None, SourceOptions(keys={STATE: ("joint_state",), ACTION: ("actions",)}))


def test_user_chooses_parts_of_arrays(libero: tuple[Path, dict[str, list[Arrays]]]) -> None:
    keys = parse_keys(
        [
            "observation.state=ee_states[:3]+joint_states[-2:]+gripper_states",
            "action=actions[3:6]+actions[6:]",
        ]
    )
    source, _ = open_source(libero[0], None, SourceOptions(keys=keys))
    demo, arrays = libero[1][min(libero[1])][0], source.episode(0).arrays
    parts = [demo["obs/ee_states"][:, :3], demo["obs/joint_states"][:, 5:], demo["obs/gripper_states"]]
    np.testing.assert_array_equal(arrays[STATE], np.concatenate(parts, 1).astype(np.float32))
    np.testing.assert_array_equal(arrays[ACTION], demo["actions"][:, 3:].astype(np.float32))
    fingers = ("left_finger", "right_finger")
    assert source.features[STATE].names == ("x", "y", "z", "joint_6", "joint_7", *fingers)
    assert source.features[ACTION].names == ("rx", "ry", "rz", "gripper")
    for name, why in (
        ("ee_states[9:]", "none"),
        ("ee_states[a]", "no 'ee_states.a.'"),
        ("agentview_rgb[:1]", None),
    ):
        key = STATE if why else AGENTVIEW
        with pytest.raises(DataError, match=why or "cannot become"):
            open_source(libero[0], None, SourceOptions(keys={key: (name,), ACTION: ("actions",)}))


@pytest.mark.parametrize("to", ["libero", "robomimic"])
def test_there_and_back(libero: tuple[Path, dict[str, list[Arrays]]], tmp_path: Path, to: str) -> None:
    store = to_store(libero[0], tmp_path / "first.zarr")
    written = tmp_path / ("suite" if to == "libero" else "all.hdf5")
    run(tmp_path / "first.zarr", written, to=to)
    assert detect(written).format == to
    back = to_store(written, tmp_path / "second.zarr")
    same_episodes(store, back)
    assert (back.convention, back.features) == (store.convention, store.features)
    assert back.provenance.source == store.provenance.source


def test_liberos_own_readers_find_their_way(
    libero: tuple[Path, dict[str, list[Arrays]]], tmp_path: Path
) -> None:
    to_store(libero[0], tmp_path / "store.zarr")
    run(tmp_path / "store.zarr", tmp_path / "suite", to="libero")
    name = min(LIBERO_TASKS)
    with (
        h5py.File(libero[0] / f"{name}_demo.hdf5") as original,
        h5py.File(tmp_path / "suite" / f"{name}_demo.hdf5") as ours,
    ):
        for demo in original["data"]:
            for key in ("agentview_rgb", "eye_in_hand_rgb", "joint_states", "gripper_states"):
                np.testing.assert_allclose(
                    ours["data"][demo]["obs"][key], original["data"][demo]["obs"][key], rtol=1e-6
                )
            np.testing.assert_allclose(
                ours["data"][demo]["actions"], original["data"][demo]["actions"], rtol=1e-6
            )
            np.testing.assert_array_equal(ours["data"][demo]["dones"], original["data"][demo]["dones"])
        assert ours["data"].attrs["macros_image_convention"] == "opengl"
        assert json.loads(ours["data"].attrs["problem_info"])["language_instruction"] == LIBERO_TASKS[name]
        assert json.loads(ours["data"].attrs["env_args"])["type"] == 1


def test_another_gripper_is_not_written_as_liberos(
    libero: tuple[Path, dict[str, list[Arrays]]], tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"'plus_opens', and LIBERO's readers take \+1 for closed"):
        run(libero[0], tmp_path / "suite", to="libero", gripper="plus_opens")
    assert not (tmp_path / "suite").exists()


def robomimic_demo(steps: int, rng: np.random.Generator) -> Arrays:
    return {
        "actions": rng.uniform(-1, 1, (steps, 7)),
        "obs/robot0_eef_pos": rng.normal(size=(steps, 3)),
        "obs/object": rng.normal(size=(steps, 10)),
        "obs/agentview_image": rng.integers(0, 256, (steps, 8, 9, 3), dtype=np.uint8),
    }


def test_robomimic_and_its_masks(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    demos = [robomimic_demo(4 + i, rng) for i in range(3)]
    path = tmp_path / "lift.hdf5"
    settings = {"env_name": "Lift", "type": 1, "env_kwargs": LIBERO_ENV_ARGS["env_kwargs"]}
    write_hdf5(path, demos, {"env_args": json.dumps(settings), "total": 15}, compression="gzip")
    with h5py.File(path, "a") as file:
        file["mask/train"] = np.array([b"demo_0", b"demo_2"])
    assert detect(path).format == "robomimic"
    store = to_store(path, tmp_path / "lift.zarr")
    assert store.episode_lengths.tolist() == [4, 5, 6]
    arrays = store.episode(1).arrays
    np.testing.assert_array_equal(
        arrays["observation.images.agentview"], demos[1]["obs/agentview_image"]
    )  # upright
    np.testing.assert_array_equal(arrays[ENVIRONMENT_STATE], demos[1]["obs/object"].astype(np.float32))
    assert (store.convention.gripper, store.convention.fps) == ("plus_closes", 20.0)
    assert store.tasks[0].instruction == "Lift"
    masked = to_store(path, tmp_path / "train.zarr", mask="train", instruction="lift the cube")
    assert masked.episode_lengths.tolist() == [4, 6]
    assert masked.tasks[0].instruction == "lift the cube"
    with pytest.raises(DataError, match=r"no mask 'trian'.*train"):
        open_source(path, None, SourceOptions(mask="trian"))


def test_other_actions_mean_something_else(tmp_path: Path) -> None:
    """The controller's settings describe ``actions``, and nothing that stands beside them."""
    demo = robomimic_demo(4, np.random.default_rng(0))
    demo["actions_abs"] = np.ones((4, 7))
    settings = {"env_name": "Lift", "type": 1, "env_kwargs": LIBERO_ENV_ARGS["env_kwargs"]}
    write_hdf5(tmp_path / "lift.hdf5", [demo], {"env_args": json.dumps(settings)})
    assert open_source(tmp_path / "lift.hdf5", None, SourceOptions())[0].convention.action_kind == "delta"
    source, _ = open_source(tmp_path / "lift.hdf5", None, SourceOptions(keys={ACTION: ("/actions_abs",)}))
    assert source.convention == Convention(fps=20.0)
    np.testing.assert_array_equal(source.episode(0).arrays[ACTION], np.ones((4, 7)))


def test_robomimic_without_settings_knows_nothing(tmp_path: Path) -> None:
    path = tmp_path / "bare.hdf5"
    write_hdf5(path, [robomimic_demo(4, np.random.default_rng(0))], {})
    with pytest.raises(DataError, match="give it in Hz with --fps"):
        open_source(path, None, SourceOptions())
    assert open_source(path, None, SourceOptions(fps=7.0))[0].convention == Convention(fps=7.0)


Change = Callable[[h5py.Group], object]


def damaged(path: Path, change: Change) -> Path:
    """A LIBERO file of three demonstrations, the second of which ``change`` damages."""
    write_hdf5(path, [libero_demo(5, np.random.default_rng(i)) for i in range(3)], libero_attributes("do it"))
    with h5py.File(path, "a") as file:
        change(file["data/demo_1"])
    return path


def without(name: str) -> Change:
    return lambda demo: demo.pop(name)


def instead(name: str, values: object) -> Change:
    def change(demo: h5py.Group) -> None:
        del demo[name]
        demo[name] = values

    return change


def nan_action(demo: h5py.Group) -> None:
    actions = demo["actions"][...]
    actions[3, 2] = np.nan
    demo["actions"][...] = actions


def values_elsewhere(demo: h5py.Group) -> None:
    del demo["obs/joint_states"]
    demo.create_dataset("obs/joint_states", (5, 7), "f8", external=[("secret.bin", 0, h5py.h5f.UNLIMITED)])


def bomb(demo: h5py.Group) -> None:
    del demo["obs/agentview_rgb"]
    shape = (10**9, 16, 16, 3)
    demo.create_dataset("obs/agentview_rgb", shape, "u1", chunks=(1, 16, 16, 3), compression="gzip")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (without("obs/ee_states"), "has no 'obs/ee_states'"),
        (without("actions"), "has no 'actions'"),
        (instead("actions", np.zeros((4, 7))), r"differ in length \(ee_states: 5, .*actions: 4\)"),
        (instead("actions", np.zeros((5, 6))), r"float32 \(5, 6\).*\(5, 7\)"),
        (instead("obs/agentview_rgb", np.full((5, 16, 16, 3), 0.5)), "values 0.5 … 0.5"),
        (instead("obs/joint_states", np.array([b"x"] * 5)), "plain numbers"),
        (instead("obs/joint_states", np.array(["x"] * 5, dtype=h5py.string_dtype())), "plain numbers"),
        (nan_action, "'action' is nan at step 3, dimension 2"),
        (instead("obs/joint_states", h5py.ExternalLink("/etc/secret.hdf5", "/x")), "link to elsewhere"),
        (values_elsewhere, "other files"),
        (bomb, "declares 715 GiB"),
        (lambda demo: demo.attrs.modify("num_samples", 9), "says num_samples 9"),
    ],
)
def test_damaged_demonstrations_are_left_out_with_the_reason(
    tmp_path: Path, change: Change, reason: str
) -> None:
    path = damaged(tmp_path / "task_demo.hdf5", change)
    report = run(path, tmp_path / "out.zarr")
    assert [(s.index, s.name) for s in report.skipped] == [(1, "task_demo.hdf5/demo_1")]
    assert re.search(reason, report.skipped[0].reason), report.skipped[0].reason
    assert open_store(tmp_path / "out.zarr").num_episodes == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.zarr", "task_demo.hdf5"]


def test_a_file_that_was_cut_short_is_named(
    libero: tuple[Path, dict[str, list[Arrays]]], tmp_path: Path
) -> None:
    path = libero[0] / f"{min(LIBERO_TASKS)}_demo.hdf5"
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(DataError, match=rf"{path.name} cannot be opened .*truncated.*copy or download"):
        run(libero[0], tmp_path / "out.zarr")
    assert not (tmp_path / "out.zarr").exists()


def test_a_file_without_a_task_asks_for_it(tmp_path: Path) -> None:
    path = tmp_path / "task_demo.hdf5"
    demos = [libero_demo(5, np.random.default_rng(0))]
    write_hdf5(path, demos, libero_attributes("x", problem_info="{}"))
    with pytest.raises(DataError, match=r"does not say what its demonstrations do.*--instruction"):
        open_source(path, None, SourceOptions())
    assert open_source(path, None, SourceOptions(instruction="go"))[0].tasks[0].instruction == "go"
    write_hdf5(
        path, demos, libero_attributes("x", problem_info=json.dumps({"language_instruction": list("go on")}))
    )
    assert open_source(path, None, SourceOptions())[0].tasks[0].instruction == "go on"


def test_an_option_of_another_format_is_refused(libero: tuple[Path, dict[str, list[Arrays]]]) -> None:
    with pytest.raises(ConfigError, match="--mask means nothing for the format 'libero'"):
        open_source(libero[0], None, SourceOptions(mask="train"))
