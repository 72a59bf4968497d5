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
_TYPE = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}

#: Numbers of a weight that are rounded at a time.
_PART = 2**22


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
    inputs = weight.shape[-1]
    rows = weight.reshape(-1, inputs)
    value = torch.empty(rows.shape, dtype=_TYPE[format], device=weight.device)
    scale = torch.empty(len(rows), device=weight.device)
    # Some channels at a time: what is computed in between is then small beside the weight.
    step = max(1, _PART // max(1, inputs))
    for first in range(0, len(rows), step):
        part = slice(first, first + step)
        largest = rows[part].abs().amax(-1).float()
        if not largest.isfinite().all():  # as a maximum is where one of its entries is not
            raise ValueError(f"a weight {tuple(weight.shape)} has entries that are not finite")
        scale[part] = torch.where(largest > 0, largest / _LARGEST[format], 1.0)
        scaled = rows[part].float() / scale[part, None]
        value[part] = (scaled.round_() if format == "int8" else scaled).clamp_(
            -_LARGEST[format], _LARGEST[format]
        )
    return Quantised(value.view(weight.shape), scale.view(weight.shape[:-1]))


def dequantize(quantised: Quantised, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return the weights that a kernel computes with."""
    return (quantised.value.to(torch.float32) * quantised.scale[..., None]).to(dtype)
