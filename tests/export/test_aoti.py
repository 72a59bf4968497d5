"""The target aoti: native code for the whole path; compiling takes a while."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch._inductor import config

from mode_policy.diffusion.prefix import Prefix
from mode_policy.errors import ExportError, PlanError
from mode_policy.export.manifest import hashes, read_manifest, seal, write_manifest
from mode_policy.export.runtime import load
from mode_policy.export.write import ExportOptions, export, verify
from mode_policy.inference.aoti import AotiEngine
from mode_policy.inference.engine import EagerEngine
from mode_policy.inference.plan import InferencePlan
from tests import toy
from tests.export.light import parts_in_use
from tests.export.policies import trained

#: Rounding of float32: the compiler fuses and reorders.
TOLERANCE = {"rtol": 2e-4, "atol": 2e-5}


@pytest.fixture
def copied(aoti_export, tmp_path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(aoti_export, tmp_path / "export"))


def describe(folder: Path, **changes) -> None:
    """Change the manifest."""
    file = folder / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    seal(folder)


@pytest.mark.slow
def test_it_acts_as_the_policy_does(aoti_export) -> None:
    policy, exported = trained(), load(aoti_export)
    assert exported.check() < 1e-4
    noise = torch.randn(1, 4, 2)
    prefix = Prefix(actions=torch.full((1, 4, 2), 0.3), weights=torch.tensor([[1.0, 0.5, 0.0, 0.0]]))
    for step, held in ((3, None), (4, None), (5, prefix)):
        seen = toy.batch(step, 1).observation
        found = exported.act(seen, noise=noise, prefix=held)
        torch.testing.assert_close(found, policy.act(seen, noise=noise, prefix=held), **TOLERANCE)


@pytest.mark.slow
def test_it_needs_little_of_the_package(aoti_export) -> None:
    assert parts_in_use(aoti_export) == ["[]", "[]"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"processor": "aarch64"}, "it was made for Linux on aarch64, this is"),
        ({"torch": "2.7"}, "it was made for torch 2.7, this is torch"),
        ({"instruction_sets": ["avx1024"], "cpu_capability": "AVX1024"}, "this one lacks avx1024"),
        ({"gpu_capability": "9.0"}, "compute capability 9.0"),
    ],
)
def test_another_machine_is_refused(copied, change: dict, words: str) -> None:
    made_for = json.loads((copied / "manifest.json").read_text())["made_for"]
    describe(copied, made_for=made_for | change)
    with pytest.raises(ExportError, match=rf"model.pt2 cannot run here: .*{words}"):
        load(copied)


@pytest.mark.slow
def test_a_corrupt_package_is_named(copied) -> None:
    data = bytearray((copied / "model.pt2").read_bytes())
    data[len(data) // 2] ^= 1
    (copied / "model.pt2").write_bytes(data)
    with pytest.raises(ExportError, match=r"model\.pt2 is corrupt: its SHA-256 differs"):
        load(copied)


@pytest.mark.slow
def test_a_package_that_cannot_be_loaded_is_named(copied) -> None:
    (copied / "model.pt2").write_bytes(b"no archive")
    manifest = read_manifest(copied)
    write_manifest(copied, replace(manifest, sha256=hashes(copied, manifest.sha256)))
    with pytest.raises(ExportError, match=r"model\.pt2 cannot be loaded"):
        load(copied)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["images", "goal in the router", "stochastic, guided", "batch"])
def test_every_policy_can_be_exported(tmp_path, kind: str) -> None:
    policies = {
        "images": lambda: trained(images=True),
        "stochastic, guided": lambda: trained(sampler={"name": "dpmpp_sde", "steps": 2, "guidance": 2.0}),
        "goal in the router": lambda: trained("goal in the router"),
        "batch": trained,
    }
    batch = 5 if kind == "batch" else 1
    export(policies[kind](), tmp_path / "export", ExportOptions(target="aoti", batch=batch))
    assert verify(load(tmp_path / "export"), policies[kind]()).error < 1e-4


@pytest.mark.slow
def test_bfloat16_is_half_as_large_and_close(aoti_export, tmp_path) -> None:
    folder = tmp_path / "export"
    wide = {"dim": 128, "num_layers": 1, "num_heads": 2}
    policy = trained(denoiser=wide, sampler={"steps": 1})
    manifest = export(policy, folder, ExportOptions(target="aoti", dtype="bfloat16"))
    whole = sum(t.numel() * t.element_size() for t in policy.state_dict().values())
    assert (folder / "model.pt2").stat().st_size < 0.8 * whole
    assert manifest.verification is not None
    assert 1e-5 < manifest.verification.error < 0.1


@pytest.mark.slow
def test_the_engine_equals_the_plan() -> None:
    plan = InferencePlan(trained(), batch=2)
    engine = AotiEngine(plan)
    prefix = Prefix(actions=torch.full((2, 4, 2), 0.3), weights=torch.tensor([[1.0, 0.5, 0.0, 0.0]] * 2))
    for held in (None, prefix):
        noise, seen = [torch.randn(2, 4, 2)], toy.batch(3, 2).observation
        expected = EagerEngine(plan).act(seen, noise=noise, prefix=held).actions_BCA
        found = engine.act(seen, noise=noise, prefix=held)
        torch.testing.assert_close(found.actions_BCA, expected, **TOLERANCE)
        assert found.seconds > 0
    with pytest.raises(PlanError, match="3 observations for a plan of batch 2"):
        engine.act(toy.batch(3, 3).observation)


def test_a_missing_compiler_is_named(tmp_path) -> None:
    with (
        config.patch({"cpp.cxx": (None, "no-such-compiler")}),
        pytest.raises(ExportError, match=r"needs a C\+\+ compiler, and there is no 'no-such-compiler'"),
    ):
        export(trained(), tmp_path / "export", ExportOptions(target="aoti"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_compilation_that_fails_leaves_nothing(tmp_path) -> None:
    failing = tmp_path / "g++"
    failing.write_text("#!/bin/sh\nfor a; do [ $a = -c ] && exit 1; done\necho 'g++ (made up) 12.2'\n")
    failing.chmod(0o755)
    with (
        config.patch({"cpp.cxx": (None, str(failing))}),
        pytest.raises(ExportError, match="the compilation failed"),
    ):
        export(trained(sampler={"steps": 1}), tmp_path / "export", ExportOptions(target="aoti"))
    assert list(tmp_path.iterdir()) == [failing]


@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_it_runs_on_a_gpu(tmp_path) -> None:
    policy = trained().to("cuda")
    export(policy, tmp_path / "export", ExportOptions(target="aoti"))
    exported = load(tmp_path / "export")
    assert exported.manifest.made_for is not None
    assert exported.manifest.made_for.gpu_capability is not None
    assert verify(exported, policy).error < 1e-3
