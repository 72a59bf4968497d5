"""From raw images to the input of a network: resizing, augmentation, normalisation. Pure functions.

Images are ``(N, 3, h, w)`` in *channels-last* memory, which is how cameras deliver them and what convolutions
like best; `from_camera` makes that view without copying.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

#: mean and standard deviation of the channels, for values in 0 … 1
NORMALIZATION = {
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}

#: weights of red, green and blue in luminance (ITU-R BT.601)
LUMINANCE = (0.299, 0.587, 0.114)


def from_camera(image_Nhw3: Tensor, upside_down: bool = False) -> Tensor:
    """Return a channel-first view of images as cameras deliver them."""
    image = image_Nhw3.flip(1) if upside_down else image_Nhw3
    return image.permute(0, 3, 1, 2)


def resize(image_N3hw: Tensor, side: int) -> Tensor:
    """Resize so that the shorter side is ``side``, keeping the aspect; values stay 0 … 255.

    Bilinear with antialiasing and rounding to whole values, as torchvision's ``Resize`` on uint8 images does.
    """
    height, width = image_N3hw.shape[2:]
    if min(height, width) == side:
        return image_N3hw
    size = (side, side * width // height) if height <= width else (side * height // width, side)
    resized = F.interpolate(image_N3hw.float(), size, mode="bilinear", antialias=True, align_corners=False)
    return resized.round()


def window(image_N3hw: Tensor, top_N: Tensor, left_N: Tensor, height: int, width: int) -> Tensor:
    """Cut a window out of each image; what lies outside repeats the border."""
    n = torch.arange(len(image_N3hw), device=image_N3hw.device)
    rows_Nh = top_N[:, None] + torch.arange(height, device=n.device)
    columns_Nw = left_N[:, None] + torch.arange(width, device=n.device)
    rows_Nh = rows_Nh.clamp(0, image_N3hw.shape[2] - 1)
    columns_Nw = columns_Nw.clamp(0, image_N3hw.shape[3] - 1)
    # Indexed with channels last, so that a pixel is copied as a whole.
    pixels = image_N3hw.permute(0, 2, 3, 1)[n[:, None, None], rows_Nh[:, :, None], columns_Nw[:, None, :]]
    return pixels.permute(0, 3, 1, 2)


def random_shift(
    image_N3hw: Tensor, pixels: int, repeat: int = 1, generator: torch.Generator | None = None
) -> Tensor:
    """Move each image by up to ``pixels`` in both directions, repeating the border (DrQ-v2's random shift).

    Args:
        image_N3hw: images.
        pixels: largest shift.
        repeat: so many successive images (the history of one sample) are moved alike.
        generator: for the draws.
    """
    top_N, left_N = _random(image_N3hw, (-pixels, -pixels), (pixels, pixels), repeat, generator)
    return window(image_N3hw, top_N, left_N, image_N3hw.shape[2], image_N3hw.shape[3])


def random_crop(
    image_N3hw: Tensor, side: int, repeat: int = 1, generator: torch.Generator | None = None
) -> Tensor:
    """Cut a random square out of each image; see `random_shift` for the arguments."""
    height, width = image_N3hw.shape[2:]
    top_N, left_N = _random(image_N3hw, (0, 0), (height - side, width - side), repeat, generator)
    return window(image_N3hw, top_N, left_N, side, side)


def center_crop(image_N3hw: Tensor, side: int) -> Tensor:
    """Cut the central square out of each image."""
    top, left = ((n - side) // 2 for n in image_N3hw.shape[2:])
    return image_N3hw[:, :, top : top + side, left : left + side]


def _random(
    image_N3hw: Tensor,
    low: tuple[int, int],
    high: tuple[int, int],
    repeat: int,
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor]:
    """Draw whole numbers from ``low`` to ``high``, both included, for rows and columns."""
    n, device = len(image_N3hw) // repeat, image_N3hw.device
    top, left = (
        torch.randint(a, b + 1, (n,), device=device, generator=generator).repeat_interleave(repeat)
        for a, b in zip(low, high, strict=True)
    )
    return top, left


def random_color(
    image_N3hw: Tensor, strength: float, repeat: int = 1, generator: torch.Generator | None = None
) -> Tensor:
    """Change brightness, then contrast, then saturation by factors from 1 ± ``strength``; values 0 … 1."""
    n = len(image_N3hw) // repeat
    # One row an image: training over several processes draws row by row.
    draw_N3 = torch.rand(n, 3, device=image_N3hw.device, generator=generator).repeat_interleave(repeat, 0)
    brightness, contrast, saturation = (1 + strength * (2 * draw_N3 - 1)).T[:, :, None, None, None]
    x = image_N3hw * brightness
    x = torch.lerp(luminance(x).mean((2, 3), keepdim=True), x, contrast)
    return torch.lerp(luminance(x), x, saturation).clamp(0, 1)


def luminance(image_N3hw: Tensor) -> Tensor:
    """Return the grey image ``(N, 1, h, w)``."""
    return (image_N3hw * image_N3hw.new_tensor(LUMINANCE)[:, None, None]).sum(1, keepdim=True)


def normalize(image_N3hw: Tensor, mean_3: Tensor, std_3: Tensor) -> Tensor:
    """Map values in 0 … 1 to zero mean and unit deviation of each channel."""
    return (image_N3hw - mean_3[:, None, None]) / std_3[:, None, None]
