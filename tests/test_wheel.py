"""The wheel, as someone without the repository has it."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.slow

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
# Neither the project nor the environment that the tests run in may lend anything to the installed wheel.
FOREIGN = ("VIRTUAL_ENV", "PYTHONPATH", "UV_PROJECT", "UV_PROJECT_ENVIRONMENT", "MODE_DATA_DIR")


def call(*command: str | Path, cwd: Path) -> str:
    """Run a command, show what it says if it fails, and return what it prints."""
    environment = {k: v for k, v in os.environ.items() if k not in FOREIGN}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the source distribution, so that both are complete and nothing stale gets in."""
    folder = tmp_path_factory.mktemp("dist")
    call("uv", "build", "--out-dir", folder, cwd=ROOT)
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def files(wheel: Path) -> set[str]:
    """Names of what the wheel holds."""
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_every_module_and_configuration_is_in(files):
    expected = set()
    for package, folder in PROJECT["tool"]["setuptools"]["package-dir"].items():
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".py", ".yaml") or path.name == "py.typed":
                expected.add(f"{package.replace('.', '/')}/{path.relative_to(ROOT / folder).as_posix()}")
    assert {"mode_policy/conf/train.yaml", "mode_kernels/py.typed", "mode_policy/apps/train.py"} <= expected
    packaged = {name for name in files if ".dist-info/" not in name}
    assert packaged == expected


def test_nothing_of_the_repository_is_in(files):
    assert {name.split("/")[0].split("-")[0] for name in files} == {
        "mode_policy",
        "mode_datasets",
        "mode_envs",
        "mode_kernels",
    }


def test_every_program_is_in(files):
    modules = [target.split(":")[0] for target in PROJECT["project"]["scripts"].values()]
    assert [m for m in modules if f"{m.replace('.', '/')}.py" not in files] == []


def test_it_trains_from_another_folder(wheel, tmp_path):
    venv, elsewhere, run = tmp_path / "venv", tmp_path / "elsewhere", tmp_path / "run"
    elsewhere.mkdir()
    # The pinned versions: what is tested is our wheel and not this morning's releases of others.
    pins = tmp_path / "pins.txt"
    pins.write_text("\n".join(PROJECT["tool"]["uv"]["constraint-dependencies"]))
    call("uv", "venv", "--python", sys.executable, venv, cwd=ROOT)
    python = venv / "bin" / "python"
    packages = f"mode-policy[metaworld,language] @ {wheel.as_uri()}"
    call("uv", "pip", "install", "--python", python, "--constraint", pins, packages, cwd=ROOT)
    origin = call(python, "-c", "import mode_envs; print(mode_envs.__file__)", cwd=elsewhere)
    assert Path(origin.strip()).is_relative_to(venv)
    overrides = [
        "task=metaworld_mt10",
        "task.tasks=[reach-v3]",
        "model=debug",
        "dataset.episodes=2",
        "trainer.steps=2",
        "trainer.minutes=null",
        "trainer.batch_size=8",
        "trainer.device=cpu",
        "evaluation.episodes=1",
        "evaluation.videos=0",
        f"run_dir={run}",
    ]
    call(venv / "bin" / "mode-train", *overrides, cwd=elsewhere)
    assert (run / "evaluation.json").is_file()
    assert (run / "report.html").is_file()
    assert list((elsewhere / "datasets" / "store").glob("*.zarr"))
