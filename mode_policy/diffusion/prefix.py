"""Real-time chunking without a backward pass: a chunk that continues actions which are already committed.

While a chunk is computed, the robot executes the end of the one before. Those actions are fixed, and the
new chunk has to agree with them (Black et al. 2025, arXiv 2506.07339). The samplers need not know: the
denoiser that they call is wrapped, so that it answers with the committed actions where those are fixed.

Let w in [0, 1] say how firmly a position of the chunk is committed. A committed action a' is taken as an
observation of the clean action, with variance s² = σ_d²(1 − w)/w. With EDM's Gaussian posterior of
variance r² = σ²σ_d²/(σ² + σ_d²) around D(x; σ), the mean given both is::

    D' = D + k(a' − D),    k = r²/(r² + s²) = wg/(wg + 1 − w),    g = σ²/(σ² + σ_d²)

This is the guidance of RTC (pseudo-inverse guidance, its eq. 2–4) with the Jacobian of D replaced by the
identity, hence no backward pass. Where w = 1, k = 1 at every σ: the sampler then moves x along a' + σn with
the noise n that it began with, so the network sees re-noised committed actions at each step, and the
last step returns a' itself. Where 0 < w < 1, k is w at high noise and vanishes with σ: the old plan decides
on the rough course, the new observation on the details.

Legend: B batch, C chunk, A action dimension.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mode_policy.diffusion.samplers import Denoise
from mode_policy.errors import DataError

MaskForm = Literal["exponential", "linear", "none"]


@dataclass(frozen=True, kw_only=True)
class Prefix:
    """Committed actions that a new chunk continues.

    Attributes:
        actions: ``(B, C, A)``, raw units; what stands where the weight is 0 has no effect.
        weights: ``(B, C)`` in [0, 1]: 1 is fixed, 0 is free.

    Raises:
        DataError: if the shapes do not fit or a value is not finite or out of range.
    """

    actions: Tensor
    weights: Tensor

    def __post_init__(self) -> None:
        if self.actions.ndim != 3 or self.weights.shape != self.actions.shape[:2]:
            raise DataError(
                f"a prefix of actions {tuple(self.actions.shape)} and weights {tuple(self.weights.shape)}; "
                "expected (B, C, A) and (B, C)"
            )
        if not bool(self.actions.isfinite().all()) or not bool(
            ((self.weights >= 0) & (self.weights <= 1)).all()
        ):
            raise DataError("a prefix holds actions that are not finite, or weights outside of [0, 1]")


def soft_mask(chunk: int, fixed: int, overlap: int, form: MaskForm = "exponential") -> list[float]:
    """Return how firmly each position of a chunk is committed (RTC, eq. 5).

    Args:
        chunk: positions of the chunk.
        fixed: leading positions that will have been executed when the chunk arrives: weight 1.
        overlap: positions that the previous chunk has actions for; from there on the weight is 0.
        form: how the weight falls from ``fixed`` to ``overlap``; "none" drops at once.

    Returns:
        ``chunk`` weights, not increasing.
    """
    fixed, overlap = min(fixed, chunk), min(overlap, chunk)
    weights = [1.0] * fixed + [0.0] * (chunk - fixed)
    for i in range(fixed, overlap):
        c = (overlap - i) / (overlap - fixed + 1)
        if form == "exponential":
            weights[i] = c * math.expm1(c) / (math.e - 1)
        elif form == "linear":
            weights[i] = c
    return weights


def hold_prefix(denoise: Denoise, prefix_BCA: Tensor, weights_BC: Tensor, sigma_data: float) -> Denoise:
    """Wrap D(x; σ) so that it respects committed actions, as the module describes.

    Args:
        denoise: D(x; σ).
        prefix_BCA: committed actions in the normalised units of x.
        weights_BC: how firmly.
        sigma_data: σ_d.
    """
    w_BC1 = weights_BC[..., None]

    def held(x_BCA: Tensor, sigma: float) -> Tensor:
        g = sigma**2 / (sigma**2 + sigma_data**2)
        k_BC1 = w_BC1 * g / (w_BC1 * g + (1 - w_BC1))  # exactly 1 where w is
        return torch.lerp(denoise(x_BCA, sigma), prefix_BCA, k_BC1)

    return held
