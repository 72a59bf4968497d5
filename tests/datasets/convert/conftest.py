"""Small data sets of each format, written by the format's own library, and what must come out of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from mode_datasets import DemonstrationStore, open_store
from mode_datasets.convert import Report, SinkOptions, SourceOptions, convert, open_sink, open_source
from mode_policy.types import Features

#: What LIBERO's own scripts write, as far as a converter may rely on it.
LIBERO_ENV_ARGS = {
    "type": 1,
    "env_name": "Libero_Kitchen_Tabletop_Manipulation",
    "problem_name": "libero_kitchen_tabletop_manipulation",
    "env_kwargs": {
        "robots": ["Panda"],
        "control_freq": 20,
        "controller_configs": {
            "type": "OSC_POSE",
            "control_delta": True,
            "output_max": [0.05, 0.05, 0.05, 0.5, 0.5, 0.5],
        },
    },
}
LIBERO_TASKS = {
    "KITCHEN_SCENE1_open_the_top_drawer": "open the top drawer",
    "KITCHEN_SCENE2_turn_on_the_stove": "turn on the stove",
}

Arrays = dict[str, np.ndarray]


def libero_demo(steps: int, rng: np.random.Generator, size: int = 16) -> Arrays:
    """One demonstration in LIBERO's layout."""
    return {
        "actions": rng.uniform(-1, 1, (steps, 7)),
        "states": rng.normal(size=(steps, 47)),
        "rewards": np.eye(1, steps, steps - 1, dtype=np.uint8)[0],
        "dones": np.eye(1, steps, steps - 1, dtype=np.uint8)[0],
        "obs/ee_states": rng.normal(size=(steps, 6)),
        "obs/ee_pos": rng.normal(size=(steps, 3)),
        "obs/ee_ori": rng.normal(size=(steps, 3)),
        "obs/gripper_states": rng.normal(size=(steps, 2)),
        "obs/joint_states": rng.normal(size=(steps, 7)),
        "obs/agentview_rgb": rng.integers(0, 256, (steps, size, size, 3), dtype=np.uint8),
        "obs/eye_in_hand_rgb": rng.integers(0, 256, (steps, size, size, 3), dtype=np.uint8),
    }


def write_hdf5(
    path: Path, demos: Sequence[Arrays], attributes: Mapping[str, object], **dataset: object
) -> None:
    """Write demonstrations as LIBERO's and robomimic's scripts do."""
    h5py = pytest.importorskip("h5py")
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        for name, value in attributes.items():
            data.attrs[name] = value
        for i, demo in enumerate(demos):
            group = data.create_group(f"demo_{i}")
            for name, x in demo.items():
                group.create_dataset(name, data=x, **dataset)
            group.attrs["num_samples"] = len(demo["actions"])


def libero_attributes(instruction: str, **changes: object) -> dict[str, object]:
    """The attributes of ``data`` in LIBERO's files."""
    return {
        "env_name": LIBERO_ENV_ARGS["env_name"],
        "problem_info": json.dumps(
            {"problem_name": "p", "domain_name": "d", "language_instruction": instruction}
        ),
        "macros_image_convention": "opengl",
        "bddl_file_name": "kitchen/x.bddl",
        "env_args": json.dumps(LIBERO_ENV_ARGS),
        **changes,
    }


@pytest.fixture
def libero(tmp_path: Path) -> tuple[Path, dict[str, list[Arrays]]]:
    """A suite of two tasks, two and eleven demonstrations of which the first is the longest."""
    rng = np.random.default_rng(0)
    suite = {
        name: [libero_demo(12 - i, rng) for i in range(count)]
        for name, count in zip(LIBERO_TASKS, (2, 11), strict=True)
    }
    for name, demos in suite.items():
        write_hdf5(tmp_path / "libero" / f"{name}_demo.hdf5", demos, libero_attributes(LIBERO_TASKS[name]))
    return tmp_path / "libero", suite


def to_store(
    source: Path, destination: Path, format: str | None = None, **options: object
) -> DemonstrationStore:
    """Convert to a store and open it."""
    run(source, destination, format, **options)
    return open_store(destination)


def run(
    source: Path, destination: Path, format: str | None = None, to: str = "store", **options: object
) -> Report:
    """Convert in this process."""
    opened, _ = open_source(source, format, SourceOptions(**options))
    about = SinkOptions(features=opened.features, convention=opened.convention, provenance=opened.provenance)
    return convert(opened, open_sink(destination, to, about, lossless=True), destination, workers=0)


def same_episodes(
    first: DemonstrationStore, second: DemonstrationStore, keys: Features | None = None
) -> None:
    """Assert that two stores hold the same, bit for bit."""
    assert first.episode_lengths.tolist() == second.episode_lengths.tolist()
    assert set(first.features) == set(second.features)
    for i in range(first.num_episodes):
        a, b = first.episode(i), second.episode(i)
        assert a.task == b.task
        for key in keys or first.features:
            np.testing.assert_array_equal(a.arrays[key], b.arrays[key], err_msg=f"episode {i}, {key}")
