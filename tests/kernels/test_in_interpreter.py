"""Runs the tests of `on_device` in Triton's interpreter, in a process of their own; see its conftest.

One process for all of them, as starting it takes longer than most of its tests. Its output is the message of
a failure.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

pytest.importorskip("triton")

FOLDER = Path(__file__).parent / "on_device"
FILES = sorted(path.name for path in FOLDER.glob("test_*.py"))


def run(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-n0", "-p", "no:cacheprovider", "-W", "ignore", *arguments],
        cwd=ROOT,
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_in_interpreter():
    result = run([str(FOLDER)])
    assert result.returncode == 0, result.stdout[-8000:] + result.stderr[-2000:]
    assert " passed" in result.stdout  # and not only deselected


@pytest.mark.slow
@pytest.mark.parametrize("file", [f for f in FILES if "slow" in (FOLDER / f).read_text()])
def test_in_interpreter_slow(file):
    result = run(["-m", "slow", str(FOLDER / file)])
    assert result.returncode == 0, result.stdout[-8000:] + result.stderr[-2000:]
    assert " passed" in result.stdout


@pytest.mark.slow
def test_without_the_interpreter_and_a_gpu_nothing_is_collected():
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {
        "CUDA_VISIBLE_DEVICES": ""
    }
    result = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-n0",
            "-p",
            "no:cacheprovider",
            "--collect-only",
            "-q",
            str(FOLDER),
        ],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == pytest.ExitCode.NO_TESTS_COLLECTED, result.stdout
