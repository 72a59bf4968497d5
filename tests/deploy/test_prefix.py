"""Real-time chunking: what is committed stays, and the new chunk joins it."""

import numpy as np
import pytest
import torch

from mode_policy.diffusion.prefix import Prefix, hold_prefix, soft_mask
from mode_policy.diffusion.samplers import SAMPLERS
from mode_policy.diffusion.schedules import grid
from mode_policy.errors import DataError
from tests import toy


def ideal_denoiser(mean, deviation):
    """The best denoiser of Gaussian data, in closed form."""

    def denoise(x, sigma):
        return (x * deviation**2 + mean * sigma**2) / (deviation**2 + sigma**2)

    return denoise


def test_the_mask_is_that_of_the_paper():
    # H = 8, d = 2, overlap until 6: c = 4/5, 3/5, 2/5, 1/5 and W = c (e^c - 1) / (e - 1)
    c = np.array([0.8, 0.6, 0.4, 0.2])
    expected = [1, 1, *(c * (np.exp(c) - 1) / (np.e - 1)), 0, 0]
    np.testing.assert_allclose(soft_mask(8, 2, 6), expected, rtol=1e-12)
    np.testing.assert_allclose(soft_mask(8, 2, 6, "linear"), [1, 1, *c, 0, 0], rtol=1e-12)
    assert soft_mask(8, 2, 6, "none") == [1, 1, 0, 0, 0, 0, 0, 0]
    assert soft_mask(4, 9, 9) == [1, 1, 1, 1]
    assert soft_mask(4, 0, 0) == [0, 0, 0, 0]


@pytest.mark.parametrize("name", SAMPLERS)
def test_fixed_positions_are_exact_and_free_ones_untouched(name):
    g = torch.Generator().manual_seed(0)
    x = 80 * torch.randn(3, 6, 2, generator=g, dtype=torch.float64)
    prefix = torch.randn(3, 6, 2, generator=g, dtype=torch.float64)
    weights = torch.zeros(3, 6, dtype=torch.float64)
    weights[:2, :3] = 1.0  # the third sample of the batch is free
    sigmas = grid("exponential", 10, 0.001, 80.0)

    def noise():
        return torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype)

    free = SAMPLERS[name](ideal_denoiser(0.3, 0.2), x, sigmas, noise)
    held = SAMPLERS[name](hold_prefix(ideal_denoiser(0.3, 0.2), prefix, weights, 0.5), x, sigmas, noise)
    # The last step of first-order samplers returns the prefix itself; others add and subtract it again.
    torch.testing.assert_close(held[:2, :3], prefix[:2, :3], rtol=0, atol=1e-9)
    # This denoiser treats positions separately, so the others must not have moved at all.
    assert torch.equal(held[:2, 3:], free[:2, 3:])
    assert torch.equal(held[2], free[2])


def test_the_network_sees_committed_actions_at_every_noise_level():
    seen = []

    def denoise(x, sigma):
        seen.append((x.clone(), sigma))
        return torch.zeros_like(x)

    n = torch.randn(1, 4, 1, dtype=torch.float64)
    prefix = torch.full((1, 4, 1), 0.7, dtype=torch.float64)
    weights = torch.tensor([[1.0, 1.0, 0.0, 0.0]], dtype=torch.float64)
    sigmas = grid("exponential", 6, 0.001, 80.0)
    SAMPLERS["ddim"](hold_prefix(denoise, prefix, weights, 0.5), sigmas[0] * n, sigmas, pytest.fail)
    # x moves along a' + σn' from the start on, where n' = n − a'/σ₀ is the noise that it began with.
    for x, sigma in seen:
        expected = 0.7 + sigma * (n - 0.7 / sigmas[0])
        torch.testing.assert_close(x[:, :2], expected[:, :2], rtol=1e-9, atol=1e-12)


def test_soft_positions_agree_with_the_posterior():
    """For Gaussian data the guided denoiser is the exact mean given x and the committed action."""
    sigma_data, w, sigma = 0.5, 0.3, 0.8
    x, committed = torch.tensor([[[1.1]]]), torch.tensor([[[-0.4]]])
    denoise = ideal_denoiser(0.0, sigma_data)
    held = hold_prefix(denoise, committed, torch.tensor([[w]]), sigma_data)(x, sigma)
    s2 = sigma_data**2 * (1 - w) / w
    precision = 1 / sigma_data**2 + 1 / sigma**2 + 1 / s2
    expected = (x / sigma**2 + committed / s2) / precision
    torch.testing.assert_close(held, expected)


def test_the_policy_keeps_what_is_fixed_to_the_bit():
    policy, observation = toy.policy(chunk=8, execute=4).eval(), toy.batch(0).observation
    noise = torch.randn(16, 8, 2)
    before = policy.act(observation, noise=noise.flip(1))
    weights = torch.tensor(soft_mask(8, 3, 6)).expand(16, 8)
    after = policy.act(observation, noise=noise, prefix=Prefix(actions=before, weights=weights))
    assert torch.equal(after[:, :3], before[:, :3])
    assert not torch.allclose(after[:, 6:], before[:, 6:])


def test_a_prefix_without_weight_changes_nothing():
    policy, observation = toy.policy().eval(), toy.batch(0).observation
    noise = torch.randn(16, 4, 2)
    nothing = Prefix(actions=torch.randn(16, 4, 2), weights=torch.zeros(16, 4))
    assert torch.equal(
        policy.act(observation, noise=noise, prefix=nothing), policy.act(observation, noise=noise)
    )


def test_the_seam_is_smaller_than_without():
    """A denoiser that knows smooth chunks continues the prefix; without it the seam is a draw of the data."""
    length, scale = 10, 3.0
    t = torch.arange(length, dtype=torch.float64)
    covariance = 0.25 * torch.exp(-((t[:, None] - t) ** 2) / (2 * scale**2))  # smooth in time

    def denoise(x_BCA, sigma):
        gain = covariance @ torch.linalg.inv(covariance + sigma**2 * torch.eye(length, dtype=torch.float64))
        return torch.einsum("ij,bja->bia", gain, x_BCA)

    g = torch.Generator().manual_seed(0)
    sigmas = grid("exponential", 10, 0.001, 80.0)
    roots = torch.linalg.cholesky(covariance + 1e-9 * torch.eye(length, dtype=torch.float64))
    old = torch.einsum("ij,bja->bia", roots, torch.randn(500, length, 1, generator=g, dtype=torch.float64))
    x = sigmas[0] * torch.randn(500, length, 1, generator=g, dtype=torch.float64)
    weights = torch.tensor(soft_mask(length, 3, length - 2), dtype=torch.float64).expand(500, length)
    new = SAMPLERS["ddim"](hold_prefix(denoise, old, weights, 0.5), x, sigmas, pytest.fail)
    free = SAMPLERS["ddim"](denoise, x, sigmas, pytest.fail)
    inside = old.diff(dim=1).abs().mean()
    seam = (new[:, 3] - old[:, 2]).abs().mean()
    seam_without = (free[:, 3] - old[:, 2]).abs().mean()
    # Not 1: without the denoiser's Jacobian the first, noisiest levels know little of the prefix.
    assert seam < 1.15 * inside
    hard = torch.tensor(soft_mask(length, 3, length - 2, "none"), dtype=torch.float64).expand(500, length)
    abrupt = SAMPLERS["ddim"](hold_prefix(denoise, old, hard, 0.5), x, sigmas, pytest.fail)
    assert (abrupt[:, 3] - old[:, 2]).abs().mean() > 1.3 * inside, "the soft mask is what joins them"
    assert seam_without > 2 * inside, "negative control: chunks do not agree by themselves"


def test_bad_prefixes_are_refused():
    actions, weights = torch.zeros(2, 4, 2), torch.zeros(2, 4)
    with pytest.raises(DataError, match=r"actions \(2, 4, 2\) and weights \(2, 3\)"):
        Prefix(actions=actions, weights=weights[:, :3])
    with pytest.raises(DataError, match="not finite"):
        Prefix(actions=actions * torch.nan, weights=weights)
    with pytest.raises(DataError, match=r"outside of \[0, 1\]"):
        Prefix(actions=actions, weights=weights + 2)
