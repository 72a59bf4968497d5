"""Variance-exploding diffusion with the preconditioning of Karras et al. 2022 (EDM, arXiv 2206.00364).

A noisy action is ``x = a + σn``; the denoiser is ``D(x; σ) = c_skip·x + c_out·F(c_in·x; ln(σ)/4)``.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Scalings(NamedTuple):
    """c_skip, c_out and c_in of EDM, table 1."""

    skip: Tensor
    out: Tensor
    into: Tensor


def scalings(sigma_B: Tensor, sigma_data: float) -> Scalings:
    """Return the three coefficients, each ``(B, 1, 1)``, ready to multiply actions ``(B, C, A)``."""
    sigma = sigma_B[:, None, None]
    total = sigma.square() + sigma_data**2
    return Scalings(sigma_data**2 / total, sigma * sigma_data / total.sqrt(), total.rsqrt())


def training_target(action_BCA: Tensor, noisy_BCA: Tensor, s: Scalings) -> Tensor:
    """What F should predict: ``(a − c_skip·x) / c_out``, of unit variance for data of deviation σ_data."""
    return (action_BCA - s.skip * noisy_BCA) / s.out


def masked_mean(value_BCA: Tensor, is_pad_BC: Tensor) -> Tensor:
    """Mean over batch, chunk and action dimension of the entries that are not padding."""
    keep_BC1 = (~is_pad_BC).unsqueeze(-1).to(value_BCA.dtype)
    return (value_BCA * keep_BC1).sum() / (keep_BC1.sum() * value_BCA.shape[-1]).clamp(min=1)


def sample_means(value_BCA: Tensor, is_pad_BC: Tensor) -> Tensor:
    """Each sample's part of `masked_mean`, ``(B,)``, times B, so that the mean of them is the masked mean."""
    keep_BC1 = (~is_pad_BC).unsqueeze(-1).to(value_BCA.dtype)
    entries = (keep_BC1.sum() * value_BCA.shape[-1]).clamp(min=1)
    return (value_BCA * keep_BC1).sum((1, 2)) * (len(value_BCA) / entries)


def add_noise(action_BCA: Tensor, sigma_B: Tensor, noise_BCA: Tensor) -> Tensor:
    """Return ``a + σn``."""
    return torch.addcmul(action_BCA, noise_BCA, sigma_B[:, None, None])
