"""The scripts of ``benchmarks/``: what they need is looked for before they measure."""

from __future__ import annotations

import importlib
import re
import shlex
import sys

import pytest
import torch

from mode_policy.apps.bench.main import _parser
from mode_policy.apps.cli import CONF, compose
from tests.conftest import ROOT

AUTHORS = ("latency", "training_step")


@pytest.fixture
def program(monkeypatch):
    """Runs a script in this process, which must stop as bad input does."""
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])

    def run(name: str, *arguments: object) -> None:
        module = importlib.import_module(name)
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            module.main()
        assert stopped.value.code == 2

    return run


@pytest.mark.parametrize("name", AUTHORS)
def test_a_folder_that_is_not_the_authors_is_refused(program, capsys, tmp_path, name):
    program(name, "--authors", tmp_path)
    said = capsys.readouterr().err
    assert "there is no mode/models/networks/modedit.py; give a checkout of the authors' repository" in said


@pytest.mark.parametrize("name", AUTHORS)
def test_a_package_that_the_authors_need_is_named(program, capsys, tmp_path, name):
    file = tmp_path / "mode/models/networks/modedit.py"
    file.parent.mkdir(parents=True)
    file.write_text("import surely_not_installed\n")
    program(name, "--authors", tmp_path)
    assert "needs 'surely_not_installed', which is not installed" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("name", AUTHORS)
def test_a_gpu_that_is_not_there_is_refused(program, capsys, tmp_path, name):
    program(name, "--authors", tmp_path, "--device", "cuda")
    assert "--device cuda, but torch finds no GPU" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_tiles_are_measured_on_a_gpu_only(program, capsys):
    pytest.importorskip("triton")
    program("tune_kernels", "--dry-run")
    assert (
        "tiles are measured on a GPU, and torch finds none; no table was changed" in capsys.readouterr().err
    )


def test_a_task_that_is_not_of_libero_is_refused(program, capsys):
    program("rollout_throughput", "--task", "reach-v3", "--rollouts", 4, "--lanes", 2)
    assert "--task reach-v3 is none of LIBERO's" in capsys.readouterr().err


def commands() -> list[str]:
    text = (ROOT / "benchmarks/gpu_todo.md").read_text()
    return [found.strip() for found in re.findall(r"uv run ([^`|;&\n]+)", text)]


@pytest.mark.parametrize("command", commands())
def test_the_commands_for_a_gpu_exist(command):
    """Programs, options, settings and paths that are named are there."""
    name, *arguments = shlex.split(command)
    if name == "mode-bench":
        _parser().parse_args(arguments)
    elif name == "pytest":
        assert all((ROOT / path).exists() for path in arguments if path.startswith("tests/"))
    elif name.startswith("benchmarks/"):
        text = (ROOT / name).read_text()
        assert all(f'"{option}"' in text for option in arguments if option.startswith("--"))
    elif name.removesuffix(".py") in CONF:  # the others are of other packages
        compose(name.removesuffix(".py"), arguments)
