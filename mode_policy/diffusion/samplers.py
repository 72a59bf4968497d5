"""Samplers: from noise to actions along a grid of noise levels.

Each is a pure function ``sampler(denoise, x, sigmas, noise)``:

- ``denoise(x, sigma)`` returns D(x; σ) for a Python float σ;
- ``x`` is the start, ``sigmas[0]`` times standard normal noise;
- ``sigmas`` is a grid of `mode_policy.diffusion.schedules`, ending in 0;
- ``noise()`` returns fresh standard normal noise shaped like x; only stochastic samplers call it.

All scalars are computed in double precision on the host, so a sampler never waits for a device.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

from torch import Tensor

Denoise = Callable[[Tensor, float], Tensor]
Noise = Callable[[], Tensor]
Sampler = Callable[[Denoise, Tensor, Sequence[float], Noise], Tensor]


def _slope(x: Tensor, sigma: float, denoised: Tensor) -> Tensor:
    """dx/dσ of the probability-flow ODE."""
    return (x - denoised) / sigma


def _exponential_step(x: Tensor, denoised: Tensor, sigma: float, sigma_next: float) -> Tensor:
    """First-order exponential integrator, x ← (σ'/σ)x + (1 − σ'/σ)D; returns D at σ' = 0."""
    ratio = sigma_next / sigma
    return ratio * x + (1 - ratio) * denoised


def _ancestral(sigma: float, sigma_next: float, eta: float = 1.0) -> tuple[float, float]:
    """Split a step into the part to denoise to and the noise to add back."""
    up = min(sigma_next, eta * math.sqrt(sigma_next**2 * (sigma**2 - sigma_next**2)) / sigma)
    return math.sqrt(sigma_next**2 - up**2), up


def ddim(denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: Noise) -> Tensor:
    """DDIM (arXiv 2010.02502), equal to DPM-Solver-1: MoDE's default."""
    for sigma, sigma_next in itertools.pairwise(sigmas):
        x = _exponential_step(x, denoise(x, sigma), sigma, sigma_next)
    return x


def euler(denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: Noise) -> Tensor:
    """Euler steps in σ (EDM, algorithm 1 without the correction)."""
    for sigma, sigma_next in itertools.pairwise(sigmas):
        x = x + (sigma_next - sigma) * _slope(x, sigma, denoise(x, sigma))
    return x


def euler_ancestral(denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: Noise) -> Tensor:
    """Euler steps with ancestral noise (stochastic)."""
    for sigma, sigma_next in itertools.pairwise(sigmas):
        down, up = _ancestral(sigma, sigma_next)
        x = x + (down - sigma) * _slope(x, sigma, denoise(x, sigma))
        if up > 0:
            x = x + up * noise()
    return x


def heun(denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: Noise) -> Tensor:
    """Heun's second-order method (EDM, algorithm 1)."""
    for sigma, sigma_next in itertools.pairwise(sigmas):
        slope = _slope(x, sigma, denoise(x, sigma))
        euler_x = x + (sigma_next - sigma) * slope
        if sigma_next > 0:
            slope = (slope + _slope(euler_x, sigma_next, denoise(euler_x, sigma_next))) / 2
        x = x + (sigma_next - sigma) * slope
    return x


def dpm_2(denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: Noise) -> Tensor:
    """DPM-Solver-2 (arXiv 2206.00927): midpoint in ln σ."""
    for sigma, sigma_next in itertools.pairwise(sigmas):
        slope = _slope(x, sigma, denoise(x, sigma))
        if sigma_next > 0:
            middle = math.sqrt(sigma * sigma_next)
            x_middle = x + (middle - sigma) * slope
            slope = _slope(x_middle, middle, denoise(x_middle, middle))
        x = x + (sigma_next - sigma) * slope
    return x


def dpmpp_2s(denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: Noise) -> Tensor:
    """DPM-Solver++(2S) (arXiv 2211.01095, algorithm 1), single step, second order."""
    for sigma, sigma_next in itertools.pairwise(sigmas):
        denoised = denoise(x, sigma)
        if sigma_next > 0:
            middle = math.sqrt(sigma * sigma_next)
            denoised = denoise(_exponential_step(x, denoised, sigma, middle), middle)
        x = _exponential_step(x, denoised, sigma, sigma_next)
    return x


def dpmpp_2m(denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: Noise) -> Tensor:
    """DPM-Solver++(2M) (arXiv 2211.01095, algorithm 2), multistep, second order."""
    previous: Tensor | None = None
    for i, (sigma, sigma_next) in enumerate(itertools.pairwise(sigmas)):
        denoised = denoise(x, sigma)
        target = denoised
        if previous is not None and sigma_next > 0:
            ratio = math.log(sigmas[i - 1] / sigma) / math.log(sigma / sigma_next)
            target = (1 + 1 / (2 * ratio)) * denoised - 1 / (2 * ratio) * previous
        x = _exponential_step(x, target, sigma, sigma_next)
        previous = denoised
    return x


def dpmpp_sde(denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: Noise) -> Tensor:
    """DPM-Solver++ SDE, two stages with ancestral noise at each (stochastic)."""
    for sigma, sigma_next in itertools.pairwise(sigmas):
        denoised = denoise(x, sigma)
        if sigma_next > 0:
            middle = math.sqrt(sigma * sigma_next)
            down, up = _ancestral(sigma, middle)
            x_middle = _exponential_step(x, denoised, sigma, down) + up * noise()
            denoised = denoise(x_middle, middle)
        down, up = _ancestral(sigma, sigma_next)
        x = _exponential_step(x, denoised, sigma, down)
        if up > 0:
            x = x + up * noise()
    return x


def lms(denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: Noise, order: int = 4) -> Tensor:
    """Linear multistep (Adams–Bashforth on the uneven grid) of order up to 4."""
    slopes: list[Tensor] = []
    for i in range(len(sigmas) - 1):
        slopes.insert(0, _slope(x, sigmas[i], denoise(x, sigmas[i])))
        del slopes[order:]
        for j, slope in enumerate(slopes):
            x = x + _lagrange_integral(sigmas, i, j, len(slopes)) * slope
    return x


def _lagrange_integral(sigmas: Sequence[float], i: int, j: int, order: int) -> float:
    """∫ from σᵢ to σᵢ₊₁ of the Lagrange polynomial that is 1 at σᵢ₋ⱼ and 0 at the order − 1 others."""
    coefficients = [1.0]  # ascending powers of (σ − σᵢ); exact by multiplying out
    for k in range(order):
        if k == j:
            continue
        root = sigmas[i - k] - sigmas[i]
        scale = 1.0 / (sigmas[i - j] - sigmas[i - k])
        shifted = [0.0, *coefficients]
        coefficients = [scale * (a - root * b) for a, b in zip(shifted, [*coefficients, 0.0], strict=True)]
    step = sigmas[i + 1] - sigmas[i]
    return sum(c * step ** (p + 1) / (p + 1) for p, c in enumerate(coefficients))


SAMPLERS: dict[str, Sampler] = {
    "ddim": ddim,
    "euler": euler,
    "euler_ancestral": euler_ancestral,
    "heun": heun,
    "dpm_2": dpm_2,
    "dpmpp_2s": dpmpp_2s,
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_sde": dpmpp_sde,
    "lms": lms,
}
