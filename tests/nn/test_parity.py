"""The denoiser reproduces the authors' implementation, from their tensor names."""

import pytest
import torch

from mode_policy.errors import CheckpointError
from mode_policy.nn.router import load_balancing_loss, router_z_loss
from mode_policy.published import from_published, to_published
from tests.published import CASES, denoiser, golden, published_weights


def relative_error(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


def run(model, g):
    with torch.no_grad():
        return model(g["actions"], g["sigma"], g["state_images"], g["goals"][:, 0])


@pytest.mark.parametrize("case", CASES)
def test_output_equals_the_authors(case):
    output = run(denoiser(case), golden(case)).prediction_BCA
    # Another order of float32 sums (stacked projections): rounding only.
    assert relative_error(output, golden(case)["output"]) < 1e-6


@pytest.mark.parametrize("case", CASES)
def test_routing_equals_the_authors(case):
    g, routings = golden(case), run(denoiser(case), golden(case)).routings
    assert torch.equal(torch.stack([r.expert_RK for r in routings], 1), g["expert_index"])
    probs = torch.stack([r.probs_RN for r in routings], 1)
    torch.testing.assert_close(probs, g["router_probs"], rtol=0, atol=1e-6)
    weights = [torch.zeros_like(r.probs_RN).scatter(1, r.expert_RK, r.weight_RK) for r in routings]
    torch.testing.assert_close(torch.stack(weights, 1), g["expert_weight"], rtol=0, atol=1e-6)


def test_routing_differs_between_noise_levels():
    """The golden cases would prove little if all samples used the same experts."""
    indices = golden("default")["expert_index"]
    assert len({tuple(row.flatten().tolist()) for row in indices}) > 1


def test_balancing_losses_equal_the_authors():
    g, routings = golden("default"), run(denoiser("default"), golden("default")).routings
    torch.testing.assert_close(load_balancing_loss(routings), g["load_balancing_loss"][0], rtol=1e-6, atol=0)
    torch.testing.assert_close(router_z_loss(routings), g["router_z_loss"][0], rtol=1e-5, atol=0)


@pytest.mark.parametrize("damage", ["permuted_experts", "dropped_norm", "swapped_halves"])
def test_damaged_weights_are_noticed(damage):
    """Negative control: each of these is a mistake that a careless conversion makes."""
    model = denoiser("default")
    block = model.blocks[1]
    with torch.no_grad():
        if damage == "permuted_experts":
            block.experts.up_weight_NED.copy_(block.experts.up_weight_NED.roll(1, 0))
        elif damage == "dropped_norm":
            block.expert_norm.gain.fill_(1.0)
        else:
            halves = block.experts.up_weight_NED.chunk(2, dim=1)
            block.experts.up_weight_NED.copy_(torch.cat(halves[::-1], dim=1))
    assert relative_error(run(model, golden("default")).prediction_BCA, golden("default")["output"]) > 1e-3


@pytest.mark.parametrize("case", CASES)
def test_names_round_trip(case):
    model, published = denoiser(case), published_weights(case)
    back = to_published(model.state_dict(), model.config)
    assert set(published) - set(back) == {"gripper_embed.weight"}
    assert all(torch.equal(tensor, published[name]) for name, tensor in back.items())


def test_foreign_tensors_are_listed():
    published = published_weights("default")
    del published["blocks.1.ln_2.g"]
    published["blocks.9.ln_2.g"] = torch.ones(64)
    with pytest.raises(
        CheckpointError, match=r"missing \['blocks.1.ln_2.g'\].*not used \['blocks.9.ln_2.g'\]"
    ):
        from_published(published, denoiser("default").config)
