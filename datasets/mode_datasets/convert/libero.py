"""LIBERO's HDF5 files (Liu et al. 2023, arXiv 2306.03310): one a task, about fifty demonstrations in each.

What the format means, none of which the files say in so many words: actions are position deltas of the
operational space controller in [−1, 1] (0.05 m and 0.5 rad a unit), the gripper opens at −1 and closes at +1,
20 steps a second. Images are as OpenGL draws them, upside down. Observations are those *after* the action of
the same row.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mode_datasets.convert.assemble import Slot, features_of
from mode_datasets.convert.description import NAME, Description, provenance_of, refine
from mode_datasets.convert.hdf5 import (
    Demo,
    Hdf5Source,
    demonstrations,
    json_attribute,
    member,
    open_hdf5,
    seed_of,
    slots,
    text_attribute,
)
from mode_datasets.convert.source import KeyMap, SourceOptions
from mode_policy.convention import Convention, Orientation
from mode_policy.errors import DataError
from mode_policy.types import ACTION, IMAGE_PREFIX, STATE, Feature, Task

LOOKS_FOR = "LIBERO HDF5: *.hdf5 whose group 'data' has the attribute 'problem_info' or 'bddl_file_name'"

#: What is known of LIBERO's arrays.
KNOWN = {
    "actions": Feature(shape=(7,), names=("x", "y", "z", "rx", "ry", "rz", "gripper"), unit="m, rad"),
    "ee_states": Feature(shape=(6,), names=("x", "y", "z", "rx", "ry", "rz"), unit="m, rad"),
    "gripper_states": Feature(shape=(2,), names=("left_finger", "right_finger"), unit="m"),
    "joint_states": Feature(shape=(7,), names=tuple(f"joint_{i}" for i in range(1, 8)), unit="rad"),
}

#: Metres and radians of 1.0, and the gripper, which has no unit.
ACTION_SCALE = (0.05, 0.05, 0.05, 0.5, 0.5, 0.5, 1.0)

CONVENTION = Convention(
    action_kind="delta", action_frame="world", action_scale=ACTION_SCALE, gripper="plus_closes", fps=20.0
)


def files_of(path: Path) -> list[Path]:
    """Return the HDF5 files of a folder in order of their names, or the one that ``path`` is."""
    if not path.is_dir():
        return [path]
    return sorted(p for p in path.iterdir() if p.suffix in (".hdf5", ".h5") and not p.name.startswith("."))


def recognise(path: Path) -> str | None:
    """Return why this is LIBERO's format, or None."""
    files = files_of(path)
    if not files or files[0].suffix not in (".hdf5", ".h5"):
        return None
    with open_hdf5(files[0]) as file:
        if "data" not in file:
            return None
        for name in ("problem_info", "bddl_file_name"):
            if name in file["data"].attrs:
                return f"{len(files)} HDF5 files; 'data' of {files[0].name} has the attribute {name!r}"
    return None


def open_libero(path: Path, options: SourceOptions) -> Hdf5Source:
    """Open a task's file, or the folder of a suite.

    Raises:
        DataError: if a file is damaged, or lacks what its task is.
    """
    demos: list[Demo] = []
    orientations: dict[Orientation, Path] = {}
    available: dict[str, Slot] = {}
    described: Description | None = None
    known = CONVENTION
    notes = ["observations are those after the action of the same row, as LIBERO records them"]
    for file_path in files_of(path):
        with open_hdf5(file_path) as file:
            data = member(file, "data", str(file_path))
            names = demonstrations(file, file_path)
            task = _task(data, file_path, options.instruction)
            demos += [
                Demo(file=file_path, name=n, task=task, seed=seed_of(data, n, file_path)) for n in names
            ]
            orientations.setdefault(_orientation(data), file_path)
            if not available:
                available = slots(member(data, names[0], str(file_path)), f"{file_path.name}/{names[0]}")
                described = Description.loads(data.attrs.get(NAME))
                known = described.convention if described else _convention(data, notes)
    if options.orientation is None and len(orientations) > 1:
        listed = ", ".join(f"{kind} in {where.name}" for kind, where in orientations.items())
        raise DataError(f"images of {path} are not all stored the same way ({listed}); convert them apart")
    orientation, *_ = orientations
    keys = options.keys or (described.keys if described else default_keys(available))
    features = refine(features_of(keys, available, KNOWN, str(path)), described)
    return Hdf5Source(
        path=path,
        features=features,
        convention=options.convention(
            known if keys.get(ACTION) == ("actions",) else Convention(fps=known.fps)
        ),
        provenance=provenance_of(path, "LIBERO HDF5", options.licence, described),
        tasks=tuple(dict.fromkeys(demo.task for demo in demos)),
        notes=tuple(notes),
        demos=tuple(demos),
        keys=keys,
        orientation=options.orientation or orientation,
        episode_bytes=options.episode_bytes,
    )


def default_keys(available: dict[str, Slot]) -> KeyMap:
    """Return the usual reading: pose and fingers as the state, joints beside it, each camera."""
    keys: dict[str, tuple[str, ...]] = {}
    if "ee_states" in available and "gripper_states" in available:
        keys[STATE] = ("ee_states", "gripper_states")
    if "joint_states" in available:
        keys["observation.joint_states"] = ("joint_states",)
    if not keys:
        vectors = [n for n, s in available.items() if n != "actions" and n[0] != "/" and not s.is_image]
        keys |= {f"observation.{name}": (name,) for name in vectors}
    for name, slot in available.items():
        if slot.is_image and name[0] != "/":
            keys[IMAGE_PREFIX + name.removesuffix("_rgb")] = (name,)
    return keys | {ACTION: ("actions",)}


def _task(data: Any, path: Path, instruction: str | None) -> Task:
    said = json_attribute(data, "problem_info").get("language_instruction", "")
    # LIBERO writes a text, or a list of its pieces.
    text = (said if isinstance(said, str) else "".join(map(str, said))).strip().strip('"')
    text = instruction or text
    if not text:
        raise DataError(
            f"{path} does not say what its demonstrations do: 'data' has no language_instruction in "
            "problem_info; give it with --instruction"
        )
    return Task(name=path.stem.removesuffix("_demo"), instruction=text)


def _orientation(data: Any) -> Orientation:
    return "upright" if text_attribute(data, "macros_image_convention") == "opencv" else "upside_down"


def _convention(data: Any, notes: list[str]) -> Convention:
    """LIBERO's convention, with the control rate and the controller's scale that the file may give."""
    settings = json_attribute(data, "env_args").get("env_kwargs", {})
    rate = settings.get("control_freq") if isinstance(settings, dict) else None
    if not rate:
        notes.append("the file does not say its control rate; LIBERO's 20 Hz were assumed")
    controller = settings.get("controller_configs") if isinstance(settings, dict) else None
    return controller_convention(controller, float(rate or 20.0)) if controller else _at(float(rate or 20.0))


def _at(rate: float) -> Convention:
    return Convention(**{**CONVENTION.to_json(), "fps": rate})


def controller_convention(controller: Any, rate: float | None) -> Convention:
    """Return what robosuite's operational space controller means by its actions; the gripper is last."""
    kind = str(controller.get("type", "")) if isinstance(controller, dict) else ""
    if kind not in ("OSC_POSE", "OSC_POSITION"):
        return Convention(fps=rate)
    outputs = controller.get("output_max", ())
    delta = bool(controller.get("control_delta", True))
    scale = tuple(float(x) for x in outputs) if isinstance(outputs, list | tuple) and delta else ()
    return Convention(
        action_kind="delta" if delta else "absolute",
        action_frame="world",
        action_scale=(*scale, 1.0) if scale else (),
        gripper="plus_closes",
        fps=rate,
    )
