"""robomimic's HDF5 files (Mandlekar et al. 2021, arXiv 2108.03298): one file, images upright.

What actions mean follows from the simulator's settings in the attribute ``env_args``, where they name a
controller; everything else stays unknown.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mode_datasets.convert.assemble import Slot, features_of, task_of
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
)
from mode_datasets.convert.libero import controller_convention
from mode_datasets.convert.source import KeyMap, SourceOptions
from mode_policy.convention import Convention
from mode_policy.errors import DataError, did_you_mean
from mode_policy.types import ACTION, ENVIRONMENT_STATE, IMAGE_PREFIX, Task

LOOKS_FOR = "robomimic HDF5: a .hdf5 file with the groups data/demo_0, data/demo_1, …"


def recognise(path: Path) -> str | None:
    """Return why this is robomimic's format, or None."""
    if path.is_dir() or path.suffix not in (".hdf5", ".h5"):
        return None
    with open_hdf5(path) as file:
        count = sum(name.startswith("demo_") for name in file["data"]) if "data" in file else 0
    return f"HDF5 with {count} groups data/demo_<i>" if count else None


def open_robomimic(path: Path, options: SourceOptions) -> Hdf5Source:
    """Open a file.

    Raises:
        DataError: if it is damaged, or has no such mask.
    """
    notes: list[str] = []
    with open_hdf5(path) as file:
        data = member(file, "data", str(path))
        names = demonstrations(file, path)
        if options.mask is not None:
            names = _masked(file, path, names, options.mask)
        described = Description.loads(data.attrs.get(NAME))
        settings = json_attribute(data, "env_args")
        tasks: dict[str, Task] = {}
        demos = [
            Demo(
                file=path,
                name=name,
                task=_task(member(data, name, str(path)), settings, options.instruction, tasks, notes),
                seed=seed_of(data, name, path),
            )
            for name in names
        ]
        available = slots(member(data, names[0], str(path)), f"{path.name}/{names[0]}")
    keys = options.keys or (described.keys if described else default_keys(available))
    known = described.convention if described else _convention(settings)
    return Hdf5Source(
        path=path,
        features=refine(features_of(keys, available, {}, str(path)), described),
        convention=options.convention(
            known if keys.get(ACTION) == ("actions",) else Convention(fps=known.fps)
        ),
        provenance=provenance_of(path, "robomimic HDF5", options.licence, described),
        tasks=tuple(tasks.values()),
        notes=tuple(dict.fromkeys(notes)),
        demos=tuple(demos),
        keys=keys,
        orientation=options.orientation or "upright",
        episode_bytes=options.episode_bytes,
    )


def default_keys(available: dict[str, Slot]) -> KeyMap:
    """Return each array under its own name; ``object`` is the state of the environment."""
    keys: dict[str, tuple[str, ...]] = {}
    for name, slot in available.items():
        if name == "actions" or name[0] == "/":
            continue
        if slot.is_image:
            keys[IMAGE_PREFIX + name.removesuffix("_image").removesuffix("_rgb")] = (name,)
        elif len(slot.shape) == 1:
            keys[ENVIRONMENT_STATE if name == "object" else f"observation.{name}"] = (name,)
    return keys | {ACTION: ("actions",)}


def _masked(file: Any, path: Path, names: list[str], mask: str) -> list[str]:
    known = list(member(file, "mask", str(path))) if "mask" in file else []
    if mask not in known:
        raise DataError(f"{path} has no mask {mask!r}.{did_you_mean(mask, known)}")
    rows = member(file, f"mask/{mask}", str(path))
    if rows.size > len(names):
        raise DataError(f"mask {mask!r} of {path} has {rows.size} entries for {len(names)} demonstrations")
    chosen = {name.decode() if isinstance(name, bytes) else str(name) for name in np.asarray(rows)}
    if absent := chosen - set(names):
        raise DataError(f"mask {mask!r} of {path} names {sorted(absent)[0]!r}, which the file lacks")
    return [name for name in names if name in chosen]


def _task(
    demo: Any, settings: dict[str, Any], instruction: str | None, tasks: dict[str, Task], notes: list[str]
) -> Task:
    about = json_attribute(demo, "ep_meta")
    text = instruction or str(about.get("lang") or "")
    environment = str(settings.get("env_name") or "task")
    if not text:
        text = environment
        notes.append(
            f"the file has no instructions; {environment!r} stands for them (give one with --instruction)"
        )
    return tasks.setdefault(text, task_of(text, str(about.get("task") or "")))


def _convention(settings: dict[str, Any]) -> Convention:
    options = settings.get("env_kwargs", {})
    options = options if isinstance(options, dict) else {}
    rate = float(options["control_freq"]) if options.get("control_freq") else None
    robots = options.get("robots", ())
    one_arm = robots == "Panda" or list(robots) == ["Panda"]
    return controller_convention(options.get("controller_configs"), rate) if one_arm else Convention(fps=rate)
