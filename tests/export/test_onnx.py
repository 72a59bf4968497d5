"""The target onnx: one copy of each weight, and the policy's actions in ONNX Runtime."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mode_policy.diffusion.prefix import Prefix
from mode_policy.errors import ExportError
from mode_policy.export.manifest import hashes, read_manifest, write_manifest
from mode_policy.export.runtime import load
from mode_policy.export.write import ExportOptions, export, verify
from tests import toy
from tests.export.light import parts_in_use
from tests.export.policies import NETWORKS, SIZES, trained

#: Rounding of float32 through two layers and two steps: another library multiplies and adds.
TOLERANCE = {"rtol": 2e-4, "atol": 2e-5}

#: Wide enough that the file is weights and not graph.
WIDE = SIZES | {"dim": 128}


@pytest.fixture(scope="module")
def onnx_export(tmp_path_factory) -> Path:
    for package in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(package, reason=f"{package} is not installed: uv sync --extra onnx")
    folder = tmp_path_factory.mktemp("exports") / "onnx"
    export(trained(denoiser=WIDE), folder, ExportOptions(target="onnx"))
    return folder


def test_it_acts_as_the_policy_does(onnx_export) -> None:
    policy, exported = trained(denoiser=WIDE), load(onnx_export)
    assert exported.check() < 1e-4
    assert exported.plan is None
    noise = torch.randn(1, 4, 2)
    prefix = Prefix(actions=torch.full((1, 4, 2), 0.3), weights=torch.tensor([[1.0, 0.5, 0.0, 0.0]]))
    for step, held in ((3, None), (4, None), (5, prefix)):
        seen = toy.batch(step, 1).observation
        found = exported.act(seen, noise=noise, prefix=held)
        torch.testing.assert_close(found, policy.act(seen, noise=noise, prefix=held), **TOLERANCE)
    assert torch.equal(found[:, 0], prefix.actions[:, 0])


def test_each_weight_is_there_once(onnx_export) -> None:
    checkpoint = sum(t.numel() * t.element_size() for t in trained(denoiser=WIDE).state_dict().values())
    manifest = load(onnx_export).manifest
    files = [onnx_export / name for name in manifest.sha256 if name.startswith("model.onnx")]
    kept = sum(len(numbers) for numbers in manifest.experts.kept)
    expert = 4 * (3 * 4 * 128 * 128 + 8 * 128)
    assert kept * expert < sum(file.stat().st_size for file in files) <= 1.05 * checkpoint


def test_it_needs_little_of_the_package(onnx_export) -> None:
    assert parts_in_use(onnx_export) == ["[]", "[]"]


def test_it_runs_on_processors_alone(onnx_export) -> None:
    with pytest.raises(ExportError, match="runs on cpu, not on cuda; leave device out"):
        load(onnx_export, device="cuda")


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_named(tmp_path, monkeypatch, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ExportError, match=f"target=onnx needs .*{package}: uv sync --extra onnx"):
        export(trained(), tmp_path / "export", ExportOptions(target="onnx"))
    assert list(tmp_path.iterdir()) == []


def test_a_missing_runtime_is_named(onnx_export, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ExportError, match="run in ONNX Runtime: pip install onnxruntime"):
        load(onnx_export)


@pytest.mark.parametrize("graph", [b"no graph", b""])
def test_a_graph_that_cannot_be_loaded_is_named(onnx_export, tmp_path, graph: bytes) -> None:
    folder = Path(shutil.copytree(onnx_export, tmp_path / "export"))
    (folder / "model.onnx").write_bytes(graph)
    manifest = read_manifest(folder)
    write_manifest(folder, replace(manifest, sha256=hashes(folder, manifest.sha256)))
    with pytest.raises(ExportError, match=r"ONNX Runtime .* cannot load .*model\.onnx"):
        load(folder)


def test_a_graph_of_other_shapes_is_named(onnx_export, tmp_path) -> None:
    folder = Path(shutil.copytree(onnx_export, tmp_path / "export"))
    manifest = read_manifest(folder)
    state, *others = manifest.inputs
    write_manifest(folder, replace(manifest, inputs=(replace(state, shape=(1, 1, 9)), *others)))
    with pytest.raises(ExportError, match=r"model\.onnx takes other shapes of \['observation\.state'\]"):
        load(folder)


@pytest.mark.slow
@pytest.mark.parametrize("network", [*NETWORKS, "images", "stochastic", "second order", "guided", "history"])
def test_every_policy_can_be_exported(tmp_path, network: str) -> None:
    policies = {
        "images": lambda: trained(images=True),
        "stochastic": lambda: trained(sampler={"name": "dpmpp_sde", "steps": 3}),
        "second order": lambda: trained(sampler={"name": "heun", "steps": 3}),
        "guided": lambda: trained("goal in the router", sampler={"steps": 2, "guidance": 2.0}),
        "history": lambda: trained(history=2, language=None),
    }
    policy = policies.get(network, lambda: trained(network))()
    export(policy, tmp_path / "export", ExportOptions(target="onnx", batch=3))
    assert verify(load(tmp_path / "export"), policy).error < 1e-4
