"""The noise levels at which a sampler calls the network, known before it runs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mode_policy.config import SamplerConfig
from mode_policy.diffusion.samplers import SAMPLERS


@dataclass(frozen=True)
class Level:
    """A noise level, and EDM's preconditioning there in double precision (arXiv 2206.00364, table 1)."""

    sigma: float
    skip: float
    out: float
    into: float


def level_of(sigma: float, sigma_data: float) -> Level:
    """Return a noise level with its preconditioning."""
    total = sigma**2 + sigma_data**2
    return Level(sigma, sigma_data**2 / total, sigma * sigma_data / total**0.5, total**-0.5)


def all_calls(sampler: SamplerConfig, sigmas: list[float]) -> list[float]:
    """Return the noise level of each network call of a sampler, in order.

    Found by running the sampler on a single number: its scalars depend on the grid alone.
    """
    seen: list[float] = []

    def record(x: Tensor, sigma: float) -> Tensor:
        seen.append(sigma)
        return x

    SAMPLERS[sampler.name](record, torch.zeros(1), sigmas, lambda: torch.zeros(1))
    return seen


def network_calls(sampler: SamplerConfig, sigmas: list[float]) -> list[float]:
    """Return the distinct noise levels of `all_calls`, in the order of their first call."""
    return list(dict.fromkeys(all_calls(sampler, sigmas)))
