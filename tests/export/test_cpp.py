"""The C++ program: the same actions as Python's, without Python; and what it refuses."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mode_policy.export.manifest import CHECK, hashes, read_manifest, write_manifest
from mode_policy.export.runtime import load
from mode_policy.types import STATE, Observation
from tests.conftest import ROOT

pytestmark = pytest.mark.slow

SOURCE = ROOT / "mode_policy" / "deploy" / "cpp"

#: The same native code runs; only the number of threads may divide its sums differently.
TOLERANCE = {"rtol": 0.0, "atol": 1e-6}


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Path:
    for tool in ("cmake", "g++", "make"):
        if shutil.which(tool) is None:
            pytest.skip(f"there is no {tool}: apt-get install cmake g++ make")
    build = tmp_path_factory.mktemp("cpp")
    torch_dir = Path(torch.__file__).parent
    configure = ["cmake", "-S", SOURCE, "-B", build, "-G", "Unix Makefiles", f"-DTORCH_DIR={torch_dir}"]
    for command in ([*configure, "-DCMAKE_BUILD_TYPE=Debug"], ["cmake", "--build", build]):
        done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return build / "mode_act"


def act(program: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the program, without Python's environment."""
    command = [str(a) for a in (program, *arguments)]
    return subprocess.run(command, capture_output=True, text=True, env={"OMP_NUM_THREADS": "1"})


def actions(done: subprocess.CompletedProcess[str]) -> torch.Tensor:
    assert done.returncode == 0, done.stderr
    data = json.loads(done.stdout)
    assert data["milliseconds"] > 0
    return torch.tensor(data["actions"]).view(data["shape"])


def test_the_recorded_observation_gives_the_recorded_actions(program, aoti_export) -> None:
    done = act(program, aoti_export)
    assert json.loads(done.stdout)["error"] < 1e-4
    exported = load(aoti_export)
    recorded = load_file(aoti_export / CHECK)
    seen = Observation(states={STATE: recorded[STATE]}, instruction=recorded["instruction"])
    torch.testing.assert_close(actions(done), exported.act(seen, noise=list(recorded["noise"])), **TOLERANCE)


@pytest.fixture
def observation(tmp_path) -> Path:
    save_file({STATE: torch.tensor([[[0.3, -0.2, 0.5]]])}, tmp_path / "observation.safetensors")
    return tmp_path / "observation.safetensors"


def test_another_observation_gives_pythons_actions(program, aoti_export, observation) -> None:
    exported = load(aoti_export)
    seen = Observation(states={STATE: load_file(observation)[STATE]})
    for text in ("go left", "go right"):
        done = act(program, aoti_export, observation, "--instruction", text, "--seed", 7)
        assert "error" not in json.loads(done.stdout)
        expected = exported.act(seen, instruction=text, generator=torch.Generator().manual_seed(7))
        torch.testing.assert_close(actions(done), expected, **TOLERANCE)


def refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    assert done.returncode == 2, (done.stdout, done.stderr)
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert all(word in done.stderr for word in words), done.stderr


def test_arguments_are_checked(program, aoti_export, observation) -> None:
    refused(act(program), "usage: mode_act EXPORT")
    refused(act(program, aoti_export, observation, "--seed"), "--seed needs a value")
    refused(act(program, aoti_export, observation, "--seed", "-1"), "--seed -1 is no number")
    refused(act(program, aoti_export, observation), "needs --instruction", '"go left", "go right"')
    refused(act(program, aoti_export, observation, "--instruction", "up"), 'unknown instruction "up"')
    refused(act(program, "/nowhere"), "/nowhere/manifest.json cannot be read; is /nowhere an export?")


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"observation.other": torch.zeros(1)}, ["holds no 'observation.state', which the policy needs"]),
        ({STATE: torch.zeros(1, 1, 4)}, ["float32 of shape (1, 1, 4)", "float32 of shape (1, 1, 3)"]),
        ({STATE: torch.zeros(2, 1, 3)}, ["of shape (2, 1, 3); the policy takes"]),
        ({STATE: torch.zeros(1, 1, 3, dtype=torch.uint8)}, ["uint8 of shape (1, 1, 3); the policy takes"]),
        ({STATE: torch.zeros(1, 1, 3).double()}, ["'observation.state': its type is F64"]),
        ({STATE: torch.full((1, 1, 3), torch.inf)}, ["'observation.state' is not finite"]),
    ],
)
def test_observations_that_do_not_fit_are_refused(program, aoti_export, tmp_path, tensors, words) -> None:
    save_file(tensors, tmp_path / "seen.safetensors")
    refused(act(program, aoti_export, tmp_path / "seen.safetensors", "--instruction", "go left"), *words)


def header(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode() + b"\0" * 12


def entry(shape: list[int], begin: int, end: int) -> bytes:
    return header(json.dumps({"a": {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}}))


LYING = {
    "empty": (b"", "cut off"),
    "a header longer than the file": (struct.pack("<Q", 1 << 40), "cut off"),
    "no JSON": (header("{"), "no JSON"),
    "nested too deep": (header("[" * 5000), "nested too deep"),
    "no object": (header("[]"), "found an array where an object was expected"),
    "offsets outside": (entry([3], 4, 16), "outside of the file"),
    "offsets reversed": (entry([3], 12, 0), "outside of the file"),
    "negative": (entry([-3], 0, 12), "whole number"),
    "too large": (entry([1 << 32, 1 << 32], 0, 0), "larger than the file"),
    "shape and offsets": (entry([2], 0, 12), "do not fit its shape"),
    "no shape": (header('{"a":{"dtype":"F32","data_offsets":[0,12]}}'), "no key 'shape'"),
}


@pytest.mark.parametrize("lie", LYING)
def test_files_that_lie_are_refused(program, aoti_export, tmp_path, lie: str) -> None:
    content, words = LYING[lie]
    (tmp_path / "seen.safetensors").write_bytes(content)
    refused(act(program, aoti_export, tmp_path / "seen.safetensors"), "seen.safetensors", words)


@pytest.fixture
def copied(aoti_export, tmp_path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(aoti_export, tmp_path / "export"))


def test_a_corrupt_folder_is_refused(program, copied) -> None:
    data = bytearray((copied / "model.pt2").read_bytes())
    data[len(data) // 2] ^= 1
    (copied / "model.pt2").write_bytes(data)
    refused(act(program, copied), "model.pt2 is corrupt: its SHA-256 differs")
    (copied / "model.pt2").unlink()
    refused(act(program, copied), "model.pt2 is missing; copy the whole folder")
    text = (copied / "manifest.json").read_text()
    (copied / "manifest.json").write_text(text.replace("0.5", "0.6", 1))
    refused(act(program, copied), "manifest.json is corrupt: its SHA-256 differs")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"processor": "aarch64"}, "it was made for Linux on aarch64, this is Linux on"),
        ({"torch": "2.7"}, "it was made for torch 2.7, this program was built with"),
        ({"instruction_sets": ("avx1024",)}, "this one lacks avx1024"),
    ],
)
def test_another_machine_is_refused(program, copied, change: dict, words: str) -> None:
    manifest = read_manifest(copied)
    assert manifest.made_for is not None
    write_manifest(copied, replace(manifest, made_for=replace(manifest.made_for, **change)))
    refused(act(program, copied), words)


def test_other_targets_and_formats_are_refused(program, weights_export, copied) -> None:
    refused(act(program, weights_export), "its target is weights; this program runs exports of target=aoti")
    write_manifest(copied, replace(read_manifest(copied), format=2))
    refused(act(program, copied), "it has format 2, this program reads up to 1")


def test_actions_that_differ_are_reported(program, copied) -> None:
    recorded = load_file(copied / CHECK)
    save_file(recorded | {"action": recorded["action"] + 1}, copied / CHECK)
    manifest = read_manifest(copied)
    write_manifest(copied, replace(manifest, sha256=hashes(copied, manifest.sha256)))
    done = act(program, copied)
    assert done.returncode == 1
    assert "differ from the recorded ones" in done.stderr
