"""``export.py``, called as a user calls it, but in this process."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra

from mode_policy.apps.export import main
from mode_policy.checkpoint import save_checkpoint
from mode_policy.export.runtime import load
from tests.export.policies import trained


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "checkpoint"
    policy = trained()
    save_checkpoint(folder, policy, policy.state_dict(), about={"task": {"name": "toy"}, "step": 5})
    return folder


@pytest.fixture
def program(monkeypatch, capsys) -> Callable[..., tuple[int, str]]:
    """A function that runs the program; returns its exit code and what it printed."""

    def run(*arguments: str) -> tuple[int, str]:
        GlobalHydra.instance().clear()
        monkeypatch.setattr(sys, "argv", ["export.py", *arguments])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    return run


def test_it_writes_an_export_and_says_what_it_is(program, checkpoint, tmp_path) -> None:
    out = tmp_path / "export, 1=a"  # characters that mean something to Hydra
    settings = ("target=weights", "weights=raw", "batch=2", "sampler.steps=3")
    code, text = program(f"checkpoint={checkpoint}", f"out={out}", *settings)
    assert code == 0, text
    exported = load(out)
    assert exported.check() < 1e-4
    manifest = exported.manifest
    assert (manifest.batch, manifest.sampler.steps, manifest.sampler.name) == (2, 3, "ddim")
    assert manifest.origin["weights"] == "raw"
    assert manifest.origin["about"]["step"] == 5
    assert len(manifest.origin["sha256"]) == 64
    assert manifest.origin["checkpoint"] == "checkpoint"
    for words in (
        "exporting",
        "ddim, 3 steps, batch 2",
        "of 8 left out",
        "compared   4 observations",
        "took",
    ):
        assert words in text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"target": "tensorrt"}, "target: Input should be 'aoti', 'onnx' or 'weights' (got 'tensorrt')"),
        ({"checkpoint": "/nowhere"}, "there is nothing at '/nowhere'"),
        ({"dtype": "float16"}, "dtype: Input should be 'float32' or 'bfloat16'"),
        ({"dtype": "bfloat16"}, "target=weights does not know dtype=bfloat16; it knows float32"),
        ({"batch": "0"}, "batch: Input should be greater than or equal to 1"),
        ({"targets": "aoti"}, "unknown override 'targets'. Did you mean 'target'"),
        ({"out": None}, "out has no value; give out="),
        ({"sampler.name": "dim"}, "unknown sampler 'dim'. Did you mean"),
    ],
)
def test_bad_settings_are_named(program, checkpoint, tmp_path, changes, words: str) -> None:
    settings = {"checkpoint": str(checkpoint), "target": "weights", "out": str(tmp_path / "out")} | changes
    code, text = program(*(f"{key}={value}" for key, value in settings.items() if value is not None))
    assert code == 2, text
    assert words in text
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_exists_is_left_alone(program, checkpoint, tmp_path) -> None:
    code, text = program(f"checkpoint={checkpoint}", "target=weights", f"out={tmp_path}")
    assert code == 2
    assert f"{tmp_path} exists; give another folder with out=" in text
