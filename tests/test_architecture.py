"""The house: who may import whom, what importing costs, how long files are, what is packaged."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
FOLDERS = {package: ROOT / folder for package, folder in SETUPTOOLS["package-dir"].items()}

# A package of ours and what none of its modules may import, at module level or inside a function. The longest
# name that a module begins with counts, so the programs, which compose everything, are free.
SIMULATORS = {"gymnasium", "mujoco", "metaworld", "gym_pusht"}
FORBIDDEN: dict[str, set[str]] = {
    "mode_kernels": {"mode_policy", "mode_datasets", "mode_envs", "lerobot", *SIMULATORS},
    "mode_policy": {"mode_policy.apps", "mode_datasets", "mode_envs", "lerobot", *SIMULATORS},
    "mode_policy.apps": set(),
    "mode_datasets": {"mode_policy.apps", "mode_envs"},
    "mode_envs": {"mode_policy.apps", "mode_datasets"},
}
OUR_FOLDERS = ("mode_policy", "kernels", "envs", "datasets", "conf", "scripts", "tests", "benchmarks", "docs")


def within(name: str, packages: set[str]) -> bool:
    """Whether a dotted name is one of the packages or lies inside one."""
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def imports(source: str, module: str, is_package: bool = False) -> Iterator[tuple[int, str]]:
    """Yield line and absolute name of all that a module's source imports, wherever it stands in the file.

    ``from a import b`` gives both ``a`` and ``a.b``, because b may be a module.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parent = module.split(".")[: -(node.level - is_package) or None] if node.level else []
            base = ".".join([*parent, *([node.module] if node.module else [])])
            yield from ((node.lineno, name) for name in (base, *(f"{base}.{a.name}" for a in node.names)))
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            yield from (
                (node.lineno, str(ast.literal_eval(a))) for a in node.args if isinstance(a, ast.Constant)
            )


def offences(source: str, module: str, is_package: bool = False) -> list[str]:
    """Describe the imports of a module that go against the one-way rule."""
    room = max((room for room in FORBIDDEN if within(module, {room})), key=len)
    found = imports(source, module, is_package)
    return sorted(
        {f"{module}:{line} imports {name}" for line, name in found if within(name, FORBIDDEN[room])}
    )


def modules() -> Iterator[tuple[str, Path]]:
    """Yield name and file of every module that is packaged."""
    for package in FORBIDDEN:
        if package in FOLDERS:
            for path in sorted(FOLDERS[package].rglob("*.py")):
                parts = path.relative_to(FOLDERS[package]).with_suffix("").parts
                yield ".".join([package, *(p for p in parts if p != "__init__")]), path


def test_imports_run_one_way():
    found = [o for name, path in modules() for o in offences(path.read_text(), name, path.stem == "__init__")]
    assert found == []


def test_the_walk_covers_every_room():
    names = {name for name, _ in modules()}
    assert {"mode_kernels.reference", "mode_policy.policy", "mode_policy.apps.train"} <= names
    assert {"mode_datasets.store", "mode_envs.registration"} <= names


@pytest.mark.parametrize(
    ("module", "source", "caught"),
    [
        ("mode_policy.policy", "import mode_datasets", "mode_datasets"),
        ("mode_policy.policy", "def f():\n    import gymnasium.spaces as s", "gymnasium.spaces"),
        ("mode_policy.policy", "def f():\n    from mode_envs.suites import suite", "mode_envs.suites"),
        ("mode_policy.policy", "from mode_policy import apps", "mode_policy.apps"),
        ("mode_policy.policy", "from . import apps", "mode_policy.apps"),
        ("mode_policy.nn.block", "from ..apps.cli import console", "mode_policy.apps.cli"),
        (
            "mode_policy.nn.block",
            "import importlib as i\ni.import_module('lerobot')",
            "lerobot",
        ),
        ("mode_kernels.experts", "class A:\n    from mode_policy import types", "mode_policy"),
        ("mode_datasets.store", "async def f():\n    import mode_envs", "mode_envs"),
        ("mode_envs.rollout", "from mode_policy.apps import cli", "mode_policy.apps"),
    ],
)
def test_the_walk_catches(module, source, caught):
    """Negative control: the rule can fail."""
    lines = offences(source, module)
    assert f"{module}:{source.count(chr(10)) + 1} imports {caught}" in lines


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("mode_policy.apps.train", "import mode_envs, mode_datasets, gymnasium"),
        ("mode_envs.rollout", "import gymnasium\nfrom mode_policy.types import Task"),
        ("mode_policy.policy", "from mode_kernels import expert_mlp\nimport mode_envs_of_others"),
        ("mode_policy.policy", "'import mode_envs'  # import mode_envs"),
    ],
)
def test_the_walk_lets_pass(module, source):
    assert offences(source, module) == []


def test_a_packages_relative_imports_start_from_itself():
    assert offences("from .apps import cli", "mode_policy", is_package=True)
    assert not offences("from .nn import apps", "mode_policy", is_package=True)


def test_importing_the_policy_is_light():
    """A robot that runs a policy needs neither simulators nor a language model."""
    code = (
        "import sys, mode_policy.policy\n"
        "heavy = {'gymnasium', 'mujoco', 'lerobot', 'transformers', 'mode_envs', 'mode_datasets'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "[]\n"


def test_files_are_short():
    paths = [p for folder in OUR_FOLDERS for p in (ROOT / folder).rglob("*") if "store" not in p.parts]
    texts = [p for p in (*paths, *ROOT.glob("*")) if p.suffix in (".py", ".yaml", ".md", ".toml")]
    lengths = {str(p.relative_to(ROOT)): len(p.read_text().splitlines()) for p in texts}
    assert {name: lines for name, lines in lengths.items() if lines > 500} == {}


def test_every_package_is_listed_and_exists():
    # A folder with an __init__.py is a package; its name follows from the room that it stands in.
    found = {
        ".".join([package, *init.parent.relative_to(folder).parts])
        for package, folder in FOLDERS.items()
        for init in folder.rglob("__init__.py")
    }
    assert sorted(SETUPTOOLS["packages"]) == sorted(found)
    assert set(SETUPTOOLS["package-data"]) >= {package for package in FOLDERS if "." not in package}


def test_no_root_folder_shadows_a_library():
    """``datasets/`` and ``kernels/`` may only hold packages, or ``import datasets`` would find ours."""
    assert [name for name in ("datasets", "kernels", "envs") if (ROOT / name / "__init__.py").exists()] == []
