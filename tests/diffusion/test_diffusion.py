"""Preconditioning, schedules and samplers: parity with the authors, and laws."""

import itertools
import math

import pytest
import torch
from safetensors.torch import load_file

from mode_policy.config import DensityConfig, SamplerConfig, build
from mode_policy.diffusion import edm
from mode_policy.diffusion.samplers import SAMPLERS
from mode_policy.diffusion.schedules import SCHEDULES, exponential, grid, sigma_of_uniform
from mode_policy.errors import ConfigError
from tests.published import GOLDEN, denoiser, golden

DETERMINISTIC = ("ddim", "euler", "heun", "dpm_2", "dpmpp_2m", "dpmpp_2s", "lms")
STOCHASTIC = ("euler_ancestral", "dpmpp_sde")


@pytest.fixture(scope="module")
def reference():
    return load_file(GOLDEN / "diffusion.safetensors")


def relative_error(a, b):
    return ((a - b).norm() / b.norm()).item()


def denoise_with(model, g):
    @torch.no_grad()
    def denoise(x, sigma):
        sigma_B = sigma if torch.is_tensor(sigma) else x.new_full((len(x),), sigma)
        s = edm.scalings(sigma_B, 0.5)
        return (
            s.skip * x
            + s.out * model(s.into * x, sigma_B, g["state_images"], g["goals"][:, 0]).prediction_BCA
        )

    return denoise


def test_denoised_equals_the_authors(reference):
    g = golden("default")
    x = g["actions"] * g["sigma"][:, None, None]
    assert relative_error(denoise_with(denoiser("default"), g)(x, g["sigma"]), reference["denoised"]) < 1e-6


def test_loss_equals_the_authors(reference):
    g, model = golden("default"), denoiser("default")
    noisy = edm.add_noise(g["actions"], g["sigma"], reference["loss_noise"])
    s = edm.scalings(g["sigma"], 0.5)
    with torch.no_grad():
        f = model(s.into * noisy, g["sigma"], g["state_images"], g["goals"][:, 0]).prediction_BCA
    error = (f - edm.training_target(g["actions"], noisy, s)).square()
    loss = edm.masked_mean(error, torch.zeros(error.shape[:2], dtype=torch.bool))
    assert loss.item() == pytest.approx(reference["loss"].item(), rel=1e-5)


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_equal_the_authors(reference, name):
    # Theirs is float32: exp(small) − 1 of the variance-preserving grid loses digits.
    rtol = 5e-4 if name == "vp" else 2e-6
    torch.testing.assert_close(
        torch.tensor(SCHEDULES[name](10)), reference[f"schedule_{name}"], rtol=rtol, atol=1e-9
    )


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_samplers_equal_the_authors(reference, name):
    denoise = denoise_with(denoiser("default"), golden("default"))
    actions = SAMPLERS[name](denoise, reference["x_T"], exponential(10), pytest.fail)
    # Our scalars are float64, theirs float32; ten steps.
    assert relative_error(actions, reference[name]) < 2e-6


def test_another_sampler_is_noticed(reference):
    """Negative control: the samplers' golden outputs differ by far more than the tolerance."""
    assert relative_error(reference["heun"], reference["dpmpp_2m"]) > 1e-3


def test_sigma_quantiles_equal_the_authors(reference):
    sigma = sigma_of_uniform(reference["loglogistic_uniform"], DensityConfig(), 0.5)
    torch.testing.assert_close(sigma, reference["loglogistic_sigma"], rtol=2e-6, atol=0)


@pytest.mark.parametrize("name", ["loglogistic", "loguniform", "lognormal"])
def test_densities_stay_in_range_and_have_their_median(name):
    u = torch.linspace(0, 1, 10001, dtype=torch.float64)[1:-1]
    sigma = sigma_of_uniform(u, DensityConfig(name=name), 0.5)
    assert sigma.min() >= 0.001 * (1 - 1e-6)
    assert sigma.max() <= 80 * (1 + 1e-6)
    median = math.sqrt(0.001 * 80) if name == "loguniform" else 0.5
    assert sigma.median().item() == pytest.approx(median, rel=0.01)
    assert (sigma.diff() >= 0).all()


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("n", [1, 2, 5, 10])
def test_grids_decrease_to_zero(name, n):
    sigmas = grid(name, n, 0.001, 80.0)
    assert len(sigmas) == n + 1
    assert sigmas[-1] == 0.0
    assert all(a > b for a, b in itertools.pairwise(sigmas))


def test_preconditioning_laws():
    sigma = torch.logspace(-4, 2, 50, dtype=torch.float64)
    s = edm.scalings(sigma, 0.5)
    total = sigma.square()[:, None, None] + 0.25
    torch.testing.assert_close(s.into.square() * total, torch.ones_like(total))
    torch.testing.assert_close(s.skip**2 * total + s.out**2, torch.full_like(total, 0.25))
    assert s.skip[0].item() == pytest.approx(1.0, abs=1e-6)


def test_the_target_has_unit_variance():
    g = torch.Generator().manual_seed(0)
    for sigma in (0.01, 0.5, 20.0):
        a = 0.5 * torch.randn(200, 50, 20, generator=g)
        sigma_B = torch.full((200,), sigma)
        noisy = edm.add_noise(a, sigma_B, torch.randn(a.shape, generator=g))
        target = edm.training_target(a, noisy, edm.scalings(sigma_B, 0.5))
        assert target.var().item() == pytest.approx(1.0, rel=0.02)


def ideal_denoiser(mean, deviation):
    """The best denoiser of Gaussian data, in closed form."""

    def denoise(x, sigma):
        return (x * deviation**2 + mean * sigma**2) / (deviation**2 + sigma**2)

    return denoise


@pytest.mark.parametrize("name", [*DETERMINISTIC, *STOCHASTIC])
def test_samplers_sample_the_right_gaussian(name):
    """On data of known distribution, every sampler draws from it; first-order ones need smaller steps."""
    steps = 60 if name in ("heun", "dpm_2", "dpmpp_2m", "dpmpp_2s", "lms") else 400
    g = torch.Generator().manual_seed(0)
    mean, deviation = 0.3, 0.2
    x = 80 * torch.randn(20000, 1, 1, generator=g, dtype=torch.float64)
    sigmas = grid("karras", steps, 0.001, 80.0)

    def noise():
        return torch.randn(x.shape, generator=g, dtype=x.dtype)

    y = SAMPLERS[name](ideal_denoiser(mean, deviation), x, sigmas, noise)
    assert y.mean().item() == pytest.approx(mean, abs=0.01)
    assert y.std().item() == pytest.approx(deviation, rel=0.05)


def test_ddim_equals_its_closed_form():
    mean, deviation = 0.3, 0.2
    sigmas = exponential(10)
    x = torch.tensor([[[2.0]]], dtype=torch.float64)
    expected = x.clone()
    for a, b in itertools.pairwise(sigmas):
        shrink = deviation**2 / (deviation**2 + a**2)
        expected = expected * (b / a + (1 - b / a) * shrink) + (1 - b / a) * (1 - shrink) * mean
    y = SAMPLERS["ddim"](ideal_denoiser(mean, deviation), x, sigmas, pytest.fail)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)


def test_masked_mean_ignores_padding():
    value = torch.tensor([[[1.0], [100.0]], [[3.0], [5.0]]])
    pad = torch.tensor([[False, True], [False, False]])
    assert edm.masked_mean(value, pad).item() == pytest.approx(3.0)
    assert edm.masked_mean(value, torch.ones_like(pad)).item() == 0.0


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"name": "dimm"}, "unknown sampler 'dimm'. Did you mean 'ddim'"),
        ({"schedule": "karas"}, "unknown schedule 'karas'. Did you mean 'karras'"),
        ({"sigma_min": 100.0}, "sigma_min=100.0 must be below sigma_max=80.0"),
        ({"steps": 0}, "steps"),
    ],
)
def test_bad_samplers_say_what_to_change(config, message):
    with pytest.raises(ConfigError, match=message):
        build(SamplerConfig, config)
