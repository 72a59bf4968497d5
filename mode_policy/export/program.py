"""A sampler as a table of numbers.

A sampler multiplies by numbers that its grid fixes and adds; only the network does anything else. So what
the network is shown at its i-th call is a weighted sum of the noise and of what it answered before, and so is
the result. Running the sampler on coordinate vectors instead of actions reads the weights off, in double
precision, for every sampler alike::

    x_i = Σ_d noise[i, d] · ε_d + Σ_{j<i} answers[i, j] · D_j        D_i = D(x_i; σ_i)

Legend: I calls of the network, N draws of noise (the start included).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mode_policy.config import SamplerConfig
from mode_policy.diffusion.samplers import SAMPLERS


@dataclass(frozen=True, eq=False)
class Program:
    """See the module.

    Attributes:
        sigmas: noise level of each call.
        noise_IN: float64 weights of the noise in what each call is shown.
        answers_II: float64 weights of the earlier answers; zero from the diagonal on.
        final_noise_N: the same for the result.
        final_answers_I: the same for the result.
    """

    sigmas: tuple[float, ...]
    noise_IN: Tensor
    answers_II: Tensor
    final_noise_N: Tensor
    final_answers_I: Tensor


def sampler_program(sampler: SamplerConfig, sigmas: list[float]) -> Program:
    """Return a sampler's table for a grid of noise levels that ends in 0."""
    calls, draws = _count(sampler, sigmas)
    basis = torch.eye(draws + calls, dtype=torch.float64)
    seen: list[tuple[float, Tensor]] = []
    drawn = iter(basis[1:draws])

    def denoise(x: Tensor, sigma: float) -> Tensor:
        seen.append((sigma, x))
        return basis[draws + len(seen) - 1]

    final = SAMPLERS[sampler.name](denoise, sigmas[0] * basis[0], sigmas, lambda: next(drawn))
    table = torch.stack([x for _, x in seen])
    return Program(
        sigmas=tuple(sigma for sigma, _ in seen),
        noise_IN=table[:, :draws],
        answers_II=table[:, draws:],
        final_noise_N=final[:draws],
        final_answers_I=final[draws:],
    )


def _count(sampler: SamplerConfig, sigmas: list[float]) -> tuple[int, int]:
    """How often a sampler calls the network, and how often it needs noise."""
    calls, draws = 0, 1

    def denoise(x: Tensor, sigma: float) -> Tensor:
        nonlocal calls
        calls += 1
        return x

    def noise() -> Tensor:
        nonlocal draws
        draws += 1
        return torch.zeros(1)

    SAMPLERS[sampler.name](denoise, torch.zeros(1), sigmas, noise)
    return calls, draws
