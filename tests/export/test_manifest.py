"""The folder's description: read strictly, and held to its files."""

from __future__ import annotations

import json
import shutil
import zipfile

import pytest

from mode_policy.errors import ExportError
from mode_policy.export.manifest import (
    DESCRIPTION,
    Manifest,
    check_files,
    check_package,
    read_manifest,
    read_tensors,
    seal,
    write_manifest,
)
from mode_policy.export.runtime import load


def change(folder, **changes) -> None:
    file = folder / DESCRIPTION
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    seal(folder)


def test_it_says_what_the_policy_is(weights_export) -> None:
    manifest = read_manifest(weights_export)
    assert manifest.target == "weights"
    assert manifest.batch == 1
    assert [array.name for array in manifest.inputs] == [
        "observation.state",
        "instruction",
        "noise",
        "prefix",
        "prefix_weights",
    ]
    assert manifest.output.shape == (1, 4, 2)
    assert manifest.instructions is not None
    assert manifest.instructions.instructions == ("go left", "go right")
    assert manifest.sampler.steps == len(manifest.noise_levels) == 2
    assert manifest.made_for is None  # weights run anywhere
    assert manifest.versions["torch"]
    assert manifest.statistics["observation.state"]["mean"]
    assert manifest.experts.left_out == 8 - sum(len(kept) for kept in manifest.experts.kept) > 0
    assert manifest.verification is not None
    assert manifest.verification.error <= manifest.verification.tolerance
    assert set(manifest.sha256) == {"weights.safetensors", "instructions.safetensors", "check.safetensors"}


def test_it_survives_a_round_trip(weights_export, tmp_path) -> None:
    manifest = read_manifest(weights_export)
    write_manifest(tmp_path, manifest)
    again: Manifest = read_manifest(tmp_path)
    assert again == manifest


def test_a_folder_without_one_is_no_export(tmp_path) -> None:
    with pytest.raises(ExportError, match=r"is no export: it has no manifest.json; write one with export.py"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "damaged"),
        ("[]", "holds no object"),
        ('{"format": 1', "damaged"),
        ('{"format": 1}', "target: Field required"),
        ("\x80", "damaged"),
    ],
)
def test_damage_is_named(damaged, text: str, words: str) -> None:
    (damaged / DESCRIPTION).write_bytes(text.encode("latin-1"))
    seal(damaged)
    with pytest.raises(ExportError, match=rf"manifest\.json is damaged.*{words}|{words}"):
        load(damaged)


def test_values_out_of_range_are_named(damaged) -> None:
    change(damaged, dtype="float16")
    with pytest.raises(ExportError, match="dtype: Input should be 'float32' or 'bfloat16'"):
        load(damaged)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"batch": 2}, r"batch=2, but 'observation.state' has the shape \(1, 1, 3\)"),
        (
            {"target": "onnx", "device": "cuda"},
            "device=cuda, but exports of the target onnx run on a processor",
        ),
    ],
)
def test_values_that_contradict_each_other_are_named(damaged, changes, words: str) -> None:
    change(damaged, **changes)
    with pytest.raises(ExportError, match=rf"manifest\.json is damaged: .*{words}"):
        load(damaged)


def test_a_package_without_native_code_is_named(tmp_path) -> None:
    file = tmp_path / "model.pt2"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("readme.txt", "no code")
    with pytest.raises(ExportError, match=r"model\.pt2 cannot be loaded: it holds no native code"):
        check_package(file)
    file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(ExportError, match=r"model\.pt2 cannot be loaded: File is not a zip file"):
        check_package(file)


def test_unknown_keys_are_named(damaged) -> None:
    change(damaged, targets="aoti")
    with pytest.raises(ExportError, match=r"targets: unknown key. Did you mean 'target'"):
        load(damaged)


def test_a_newer_format_asks_for_an_update(damaged) -> None:
    change(damaged, format=2)
    with pytest.raises(ExportError, match="has format 2, this version reads up to 1; update mode-policy"):
        load(damaged)


@pytest.mark.parametrize("name", ["weights.safetensors", "instructions.safetensors", "check.safetensors"])
def test_a_corrupt_file_is_named(damaged, name: str) -> None:
    data = bytearray((damaged / name).read_bytes())
    data[-1] ^= 1
    (damaged / name).write_bytes(data)
    with pytest.raises(ExportError, match=rf"{name} is corrupt: its SHA-256 differs from manifest.json"):
        load(damaged)


def test_a_corrupt_manifest_is_named(damaged) -> None:
    text = (damaged / DESCRIPTION).read_text()
    (damaged / DESCRIPTION).write_text(text.replace("0.5", "0.6", 1))
    with pytest.raises(ExportError, match=r"manifest.json is corrupt: its SHA-256 differs"):
        load(damaged)


@pytest.mark.parametrize("name", ["weights.safetensors", "manifest.sha256"])
def test_a_missing_file_is_named(damaged, name: str) -> None:
    (damaged / name).unlink()
    with pytest.raises(ExportError, match=rf"{name} is missing; copy the whole folder"):
        load(damaged)


@pytest.mark.parametrize("kept", [[[0, 4], [0, 1]], [[], [0, 1]], [[1, 0], [0, 1]], [[-1, 0], [0, 1]]])
def test_experts_that_cannot_be_are_refused(damaged, kept) -> None:
    change(damaged, experts={"number": 4, "kept": kept})
    with pytest.raises(ExportError, match=r"are no experts of 4, in their order"):
        load(damaged)


def test_every_needed_file_has_a_hash(damaged) -> None:
    hashes = json.loads((damaged / DESCRIPTION).read_text())["sha256"]
    del hashes["weights.safetensors"]
    change(damaged, sha256=hashes)
    with pytest.raises(ExportError, match=r"lists no hash of \['weights.safetensors'\]"):
        load(damaged)


def test_files_outside_of_the_folder_are_refused(damaged) -> None:
    manifest = read_manifest(damaged)
    manifest.sha256["../outside"] = "0" * 64
    with pytest.raises(ExportError, match=r"names '../outside', which lies outside"):
        check_files(damaged, manifest)


def test_tensors_that_are_missing_are_named(weights_export, tmp_path) -> None:
    shutil.copy(weights_export / "instructions.safetensors", tmp_path)
    with pytest.raises(ExportError, match=r"lacks \['action'\] \(it has \['embeddings'\]\)"):
        read_tensors(tmp_path / "instructions.safetensors", "action")
    (tmp_path / "cut").write_bytes(b"\x10")
    with pytest.raises(ExportError, match="cut cannot be read"):
        read_tensors(tmp_path / "cut")
