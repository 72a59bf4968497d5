"""Root-mean-square normalisation as the authors of MoDE write it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """``x / max(‖x‖ / √d, ε) · gain`` over the last axes, which have the shape of the gain's last axis.

    A clamp and no ε inside the root, unlike `torch.nn.RMSNorm`: published checkpoints were trained so.

    Args:
        shape: of the gain; only its last axis is normalised, the others (if any) broadcast against the input,
            so that one call can normalise queries and keys with gains of their own.
    """

    def __init__(self, *shape: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.gain = nn.Parameter(torch.ones(shape))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last axis of ``x``; shape is kept."""
        normed: Tensor = _RMSNorm.apply(x, self.gain, self.eps)
        return normed


class _RMSNorm(torch.autograd.Function):
    """Half the passes over memory that autograd's chain of division, clamp and norm would take."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, eps: float) -> Tensor:
        rms = torch.linalg.vector_norm(x, dim=-1, keepdim=True) * x.shape[-1] ** -0.5
        unit = x / rms.clamp(min=eps)
        ctx.save_for_backward(unit, rms, gain)
        ctx.eps = eps
        return unit * gain

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        unit, rms, gain = ctx.saved_tensors
        dgain = (grad * unit).sum_to_size(gain.shape)
        dunit = grad * gain
        # Below ε the divisor is a constant: no term for its change.
        along = (dunit * unit).mean(-1, keepdim=True) * (rms > ctx.eps)
        return torch.addcmul(dunit, unit, along, value=-1).div_(rms.clamp(min=ctx.eps)), dgain, None
