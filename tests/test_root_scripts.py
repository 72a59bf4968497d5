"""The programs at the root stand beside folders that are named like libraries, and must not import those."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT

Report = dict[str, Any]

# Lies outside of the repository, where the programs and the processes that they start can import it.
PROBE = """
import concurrent.futures, importlib.util, json, multiprocessing, sys

def where():
    specs = {name: importlib.util.find_spec(name) for name in ("datasets", "kernels")}
    return {name: spec and list(spec.submodule_search_locations) for name, spec in specs.items()}

def spawned():
    # While a script runs, this names its file, and a spawned process imports it; here the script has ended.
    sys.modules["__main__"].__file__ = sys.argv[0]
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, context) as pool:
        return pool.submit(where).result()

def make_worker():
    return lambda request: where()

def simulator():
    from mode_envs.worker import Worker

    worker = Worker("probe:make_worker")
    worker.send(None)
    found = worker.receive(timeout=60)
    worker.close()
    return found

def model():
    from transformers import CLIPTextModel

    return CLIPTextModel.__module__

def report(*questions):
    print("REPORT", json.dumps({question.__name__: question() for question in questions}))
"""


@pytest.fixture(scope="module")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Report]:
    """A function that puts questions to the interpreter after ``python <script> --help`` at the root."""
    folder = tmp_path_factory.mktemp("probe")
    (folder / "probe.py").write_text(PROBE)

    def ask(script: str, questions: str) -> Report:
        # -i: when the script has ended, the interpreter that ran it takes orders from standard input.
        done = subprocess.run(
            [sys.executable, "-i", script, "--help"],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(folder)},
            input=f"from probe import *; report({questions})\n",
            capture_output=True,
            text=True,
        )
        assert f"uv run {script}" in done.stdout, done.stderr
        answers = [line for line in done.stdout.splitlines() if line.startswith("REPORT ")]
        assert answers, done.stderr
        report: Report = json.loads(answers[0].removeprefix("REPORT "))
        return report

    return ask


@pytest.fixture(scope="module")
def train(ask: Callable[[str, str], Report]) -> Report:
    """What ``train.py`` and the processes that it starts find."""
    return ask("train.py", "where, spawned, simulator, model")


def is_clean(found: dict[str, list[str] | None]) -> bool:
    """Whether packages named like our folders are the installed ones, or absent."""
    installed = all("site-packages" in Path(p).parts for p in found["datasets"] or [""])
    return installed and not is_ours(found["kernels"])


def is_ours(paths: list[str] | None) -> bool:
    """Whether a package is one of the repository's folders."""
    return any(Path(p).parent == ROOT for p in paths or ())


def test_train_finds_the_libraries(train):
    assert is_clean(train["where"])
    assert train["model"].startswith("transformers.models.clip")


def test_evaluate_finds_the_libraries(ask):
    assert is_clean(ask("evaluate.py", "where")["where"])


def test_export_finds_the_libraries(ask):
    assert is_clean(ask("export.py", "where")["where"])


def test_spawned_processes_can_import_the_script_again(train):
    assert is_clean(train["spawned"])


def test_simulators_find_the_libraries(train):
    assert is_clean(train["simulator"])


@pytest.mark.parametrize(("name", "options"), [("kernels", []), ("datasets", ["-S"])])
def test_the_root_shadows_without_the_first_lines(name, options):
    """Negative control. An installed library beats a plain folder, so -S hides the installed ones."""
    code = f"import {name}; print(*{name}.__path__)"
    paths = subprocess.check_output([sys.executable, *options, "-c", code], cwd=ROOT, text=True).split()
    assert is_ours(paths)
