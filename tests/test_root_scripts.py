"""The programs at the root stand beside folders that are named like libraries, and must not import those."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT

NAMES = ("datasets", "kernels")

# Lies outside of the repository, where the program and the processes that it starts can import it.
PROBE = """
import concurrent.futures, importlib.util, json, multiprocessing, sys

def where(name):
    '''Where a package would be imported from, or None.'''
    spec = importlib.util.find_spec(name)
    return spec and list(spec.submodule_search_locations)

def make_where():
    return where

def spawned(name):
    # As in any script that runs; the interpreter has forgotten the file by now, and a spawned process imports it.
    sys.modules["__main__"].__file__ = sys.argv[0]
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, context) as pool:
        return pool.submit(where, name).result()

def simulator(name):
    from mode_envs.worker import Worker

    worker = Worker("probe:make_where")
    worker.send(name)
    found = worker.receive(timeout=60)
    worker.close()
    return found

def report():
    import datasets
    from transformers import CLIPTextModel

    found = {f.__name__: {n: f(n) for n in ("datasets", "kernels")} for f in (where, spawned, simulator)}
    print("REPORT", json.dumps({**found, "datasets": datasets.__file__, "model": CLIPTextModel.__module__}))
"""


@pytest.fixture(scope="module", params=["train.py", "evaluate.py"])
def report(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the interpreter finds after it has run ``python <script> --help`` at the root."""
    folder = tmp_path_factory.mktemp("probe")
    (folder / "probe.py").write_text(PROBE)
    # -i: when the script has ended, the interpreter that ran it takes orders from standard input.
    done = subprocess.run(
        [sys.executable, "-i", request.param, "--help"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(folder)},
        input="import probe; probe.report()\n",
        capture_output=True,
        text=True,
    )
    assert "powered by Hydra" in done.stdout, done.stderr
    marked = [line for line in done.stdout.splitlines() if line.startswith("REPORT ")]
    assert marked, done.stderr
    return json.loads(marked[0].removeprefix("REPORT "))


def ours(found: list[str] | None) -> bool:
    """Whether a package would be imported from the repository's own folders (its .venv is none of them)."""
    return any(Path(p).parent == ROOT for p in found or ())


def test_libraries_are_the_installed_ones(report):
    assert "site-packages" in Path(report["datasets"]).parts
    assert report["model"].startswith("transformers.models.clip")
    assert not any(ours(report["where"][name]) for name in NAMES)


def test_spawned_processes_import_the_script_again(report):
    assert not any(ours(report["spawned"][name]) for name in NAMES)


def test_simulators_stay_clean(report):
    assert not any(ours(report["simulator"][name]) for name in NAMES)


@pytest.mark.parametrize(("name", "options"), [("kernels", []), ("datasets", ["-S"])])
def test_the_root_shadows_without_the_first_lines(name, options):
    """Negative control. An installed library beats a plain folder; -S hides those that are installed."""
    code = f"import {name}; print(*{name}.__path__)"
    path = subprocess.check_output([sys.executable, *options, "-c", code], cwd=ROOT, text=True).split()
    assert ours(path)
