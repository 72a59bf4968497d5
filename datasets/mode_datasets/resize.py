"""Images of another size."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def resized(frames: Tensor, height: int, width: int) -> Tensor:
    """Resize frames, uint8 ``(n, H, W, 3)``, to ``(n, height, width, 3)``; bilinear, without aliasing."""
    if tuple(frames.shape[1:3]) == (height, width):
        return frames
    x = F.interpolate(
        frames.permute(0, 3, 1, 2).float(),
        size=(height, width),
        mode="bilinear",
        antialias=True,
        align_corners=False,
    )
    return x.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
