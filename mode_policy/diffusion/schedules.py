"""Noise levels: grids for sampling and densities for training.

Grids are plain lists of Python floats, decreasing, with a final 0: n + 1 values for n calls of the network.
They are known before the loop begins, so no step needs a device to learn its noise level.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from mode_policy.config import DensityConfig


def _linspace(a: float, b: float, n: int) -> list[float]:
    return [a + (b - a) * i / (n - 1) if n > 1 else a for i in range(n)]


def exponential(n: int, sigma_min: float = 0.001, sigma_max: float = 80.0) -> list[float]:
    """Log-spaced from σ_max to σ_min: the authors' default."""
    return [math.exp(v) for v in _linspace(math.log(sigma_max), math.log(sigma_min), n)] + [0.0]


def karras(n: int, sigma_min: float = 0.001, sigma_max: float = 80.0, rho: float = 7.0) -> list[float]:
    """Karras et al. 2022 (arXiv 2206.00364), eq. 5."""
    return [v**rho for v in _linspace(sigma_max ** (1 / rho), sigma_min ** (1 / rho), n)] + [0.0]


def linear(n: int, sigma_min: float = 0.001, sigma_max: float = 80.0) -> list[float]:
    """Evenly spaced from σ_max to σ_min."""
    return [*_linspace(sigma_max, sigma_min, n), 0.0]


def vp(n: int, beta_d: float = 19.9, beta_min: float = 0.1, eps: float = 1e-3) -> list[float]:
    """Variance-preserving SDE (Song et al. 2021, arXiv 2011.13456) in σ; takes no σ range."""
    times = _linspace(1.0, eps, n)
    return [math.sqrt(math.expm1(beta_d * t * t / 2 + beta_min * t)) for t in times] + [0.0]


def ve(n: int, sigma_min: float = 0.001, sigma_max: float = 80.0) -> list[float]:
    """Variance-exploding SDE as in the authors' code.

    Their time axis runs to n + 1 and is divided by n − 1, so the last level lies below σ_min; kept for
    parity.
    """
    times = _linspace(0.0, n + 1, n)
    return [sigma_max * (sigma_min / sigma_max) ** (t / max(n - 1, 1)) for t in times] + [0.0]


SCHEDULES: dict[str, Callable[..., list[float]]] = {
    "exponential": exponential,
    "karras": karras,
    "linear": linear,
    "vp": vp,
    "ve": ve,
}


def grid(name: str, n: int, sigma_min: float, sigma_max: float) -> list[float]:
    """Return the named grid; ``vp`` is fixed by its β and ignores the limits."""
    return vp(n) if name == "vp" else SCHEDULES[name](n, sigma_min, sigma_max)


def sigma_of_uniform(u: Tensor, config: DensityConfig, sigma_data: float) -> Tensor:
    """Map uniform draws in (0, 1) to σ by the inverse CDF of the configured density.

    ``loglogistic`` (default, truncated to [σ_min, σ_max]): σ = exp(loc + scale·logit u), u between the CDFs
    of the ends. ``loguniform``: uniform in ln σ. ``lognormal``: ln σ normal (EDM), clamped to the range.

    Returns:
        float32, shape of ``u``.
    """
    u = u.double()
    loc = math.log(sigma_data) if config.loc is None else config.loc
    low, high = math.log(config.sigma_min), math.log(config.sigma_max)
    if config.name == "loguniform":
        return (low + (high - low) * u).exp().float()
    if config.name == "lognormal":
        return (loc + config.scale * math.sqrt(2) * torch.erfinv(2 * u - 1)).clamp(low, high).exp().float()
    cdf_low, cdf_high = (1 / (1 + math.exp(-(v - loc) / config.scale)) for v in (low, high))
    return (loc + config.scale * torch.logit(cdf_low + (cdf_high - cdf_low) * u)).exp().float()
