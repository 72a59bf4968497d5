"""The target weights: smaller than the checkpoint, and the same actions."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from mode_policy.diffusion.prefix import Prefix
from mode_policy.errors import ExportError
from mode_policy.export import manifest as manifests
from mode_policy.export.runtime import load
from mode_policy.export.write import ExportOptions, export, verify
from mode_policy.inference.engine import EagerEngine
from tests import toy
from tests.export.policies import NETWORKS, trained

#: Rounding of float32: the plan adds the same numbers in another order.
TOLERANCE = {"rtol": 2e-4, "atol": 2e-5}


def test_it_acts_as_the_policy_does(weights_export) -> None:
    policy, exported = trained(), load(weights_export)
    seen, noise = toy.batch(3, 1).observation, torch.randn(1, 4, 2)
    expected = policy.act(seen, noise=noise)
    torch.testing.assert_close(exported.act(seen, noise=noise), expected, **TOLERANCE)
    assert exported.plan is not None
    by_engine = EagerEngine(exported.plan).act(seen, noise=[noise]).actions_BCA
    torch.testing.assert_close(by_engine, expected, **TOLERANCE)


def test_it_continues_a_prefix(weights_export) -> None:
    policy, exported = trained(), load(weights_export)
    seen, noise = toy.batch(3, 1).observation, torch.randn(1, 4, 2)
    prefix = Prefix(actions=torch.full((1, 4, 2), 0.3), weights=torch.tensor([[1.0, 0.5, 0.0, 0.0]]))
    found = exported.act(seen, noise=noise, prefix=prefix)
    torch.testing.assert_close(found, policy.act(seen, noise=noise, prefix=prefix), **TOLERANCE)
    assert torch.equal(found[:, 0], prefix.actions[:, 0])


def test_it_leaves_unused_experts_out(weights_export) -> None:
    whole = sum(t.numel() for t in trained().state_dict().values())
    state = load_file(weights_export / "weights.safetensors")
    kept = load(weights_export).manifest.experts.kept
    assert [len(state[f"denoiser.blocks.{i}.experts.up_weight_NED"]) for i in range(2)] == [*map(len, kept)]
    assert sum(t.numel() for t in state.values()) < whole


@pytest.mark.parametrize("network", [*NETWORKS, "images", "stochastic", "guided", "no language"])
def test_every_policy_can_be_exported(tmp_path, network: str) -> None:
    policies = {
        "images": lambda: trained(images=True),
        "stochastic": lambda: trained(sampler={"name": "euler_ancestral", "steps": 3}),
        "guided": lambda: trained(sampler={"steps": 2, "guidance": 2.0}),
        "no language": lambda: trained(language=None),
    }
    policy = policies.get(network, lambda: trained(network))()
    export(policy, tmp_path / "export", ExportOptions(target="weights", batch=3))
    exported = load(tmp_path / "export")
    assert exported.check() < 1e-4
    assert verify(exported, policy).error < 1e-4


def test_another_policy_is_noticed(weights_export) -> None:
    """The comparison can fail."""
    with pytest.raises(ExportError, match=r"actions differ by .* of their scale from the policy's own"):
        verify(load(weights_export), trained(seed=1))


def test_an_export_that_acts_otherwise_leaves_nothing(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(manifests.TOLERANCE, "float32", 1e-12)
    with pytest.raises(ExportError, match="nothing was written"):
        export(trained(), tmp_path / "export", ExportOptions(target="weights"))
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(weights_export) -> None:
    with pytest.raises(ExportError, match=r"exists; give another folder with out="):
        export(trained(), weights_export, ExportOptions(target="weights"))


@pytest.mark.parametrize("target", ["onnx", "weights"])
def test_types_that_a_target_does_not_know_are_refused(target) -> None:
    with pytest.raises(ExportError, match=f"target={target} does not know dtype=bfloat16; it knows float32"):
        ExportOptions(target=target, dtype="bfloat16")


def test_the_policy_stays_as_it_was(tmp_path) -> None:
    policy = trained()
    state = {k: v.clone() for k, v in policy.state_dict().items()}
    export(policy, tmp_path / "export", ExportOptions(target="weights"))
    assert all(torch.equal(v, state[k]) for k, v in policy.state_dict().items())
    assert all(p.requires_grad for p in policy.parameters())
