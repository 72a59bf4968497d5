"""Weight-only quantisation: 8-bit weights with a float32 scale for each output channel.

Activations stay as they are. A kernel widens the weights in registers and multiplies by the scale once per
output, so memory delivers half the bytes of bfloat16. ``int8`` runs on every GPU, ``fp8`` (e4m3) from compute
capability 8.9 on.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

Format = Literal["int8", "fp8"]
_LARGEST = {"int8": 127.0, "fp8": torch.finfo(torch.float8_e4m3fn).max}


class Quantised(NamedTuple):
    """Weights ``value · scale[..., None]``.

    Attributes:
        value: int8 or float8_e4m3fn, of the weight's shape ``(…, outputs, inputs)``.
        scale: float32 ``(…, outputs)``, positive.
    """

    value: Tensor
    scale: Tensor


def quantize(weight: Tensor, format: Format) -> Quantised:
    """Round a weight ``(…, outputs, inputs)`` to 8 bits, so that each channel's largest entry is exact.

    The error of an entry is at most half a step: ``scale / 2`` for int8, for fp8 1/16 of the entry or
    ``scale · 2⁻¹⁰``, whichever is larger.

    Raises:
        ValueError: for an unknown format or weights that are not finite.
    """
    if format not in _LARGEST:
        raise ValueError(f"unknown format {format!r}; use one of {', '.join(_LARGEST)}")
    if not weight.isfinite().all():
        raise ValueError(f"a weight {tuple(weight.shape)} has entries that are not finite")
    largest = weight.abs().amax(-1).float()
    scale = torch.where(largest > 0, largest / _LARGEST[format], 1.0)
    scaled = weight.float() / scale[..., None]
    if format == "int8":
        return Quantised(scaled.round().clamp(-127, 127).to(torch.int8), scale)
    return Quantised(scaled.clamp(-_LARGEST["fp8"], _LARGEST["fp8"]).to(torch.float8_e4m3fn), scale)


def dequantize(quantised: Quantised, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return the weights that a kernel computes with."""
    return (quantised.value.to(torch.float32) * quantised.scale[..., None]).to(dtype)
