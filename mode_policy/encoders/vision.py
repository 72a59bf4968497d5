"""Image encoder: each camera's picture at each time step becomes one token.

Legend: B batch, H history, K cameras, N = B·H images, G condition width, T token width.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mode_policy.encoders import images as image_functions
from mode_policy.encoders.film_resnet import FiLMResNet
from mode_policy.encoders.vision_config import CameraInput, VisionConfig
from mode_policy.errors import DataError
from mode_policy.types import IMAGE_PREFIX, Features


class ImageEncoder(nn.Module):
    """A FiLM-ResNet for each camera.

    Takes uint8 images as cameras deliver them; resizing, augmentation (in training mode only) and
    normalisation happen here, on the images' device.

    Args:
        cameras: names below ``observation.images.``, in the order of their tokens.
        features: of the dataset; each camera's is ``(height, width, 3)``.
        config: of the networks.
        history: H.
        condition_dim: G, width of the embedded instruction; None for a policy without language.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        cameras: tuple[str, ...],
        features: Features,
        config: VisionConfig,
        history: int,
        condition_dim: int | None,
    ) -> None:
        super().__init__()
        self.keys = [IMAGE_PREFIX + name for name in cameras]
        self.shapes = [features[key].shape for key in self.keys]
        self.inputs = config.of_cameras(len(cameras))
        self.config = config
        self.history = history
        self.networks = nn.ModuleList(FiLMResNet(config, condition_dim) for _ in cameras)
        self.token_dim = 8 * config.width * (4 if config.network == "resnet50" else 1)
        mean, std = image_functions.NORMALIZATION[config.normalize]
        self.register_buffer("mean", torch.tensor(mean), persistent=False)
        self.register_buffer("std", torch.tensor(std), persistent=False)

    def forward(
        self,
        images: Mapping[str, Tensor],
        condition_BG: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Map uint8 images ``(B, H, height, width, 3)`` to tokens ``(B, H, K, T)``.

        Args:
            images: feature key → images; those of other cameras are ignored.
            condition_BG: embedded instruction.
            generator: for the augmentation in training.

        Raises:
            DataError: if a camera is missing, or its images have another type, layout or size.
        """
        condition_NG = None if condition_BG is None else condition_BG.repeat_interleave(self.history, 0)
        tokens_BHT = []
        for key, shape, camera, network in zip(
            self.keys, self.shapes, self.inputs, self.networks, strict=True
        ):
            check_images(images, key, self.history, shape)
            pixels_N3hw = self.prepare(images[key].flatten(0, 1), camera, generator)
            tokens_BHT.append(network(pixels_N3hw, condition_NG).unflatten(0, (-1, self.history)))
        return torch.stack(tokens_BHT, dim=2)

    def prepare(
        self, image_Nhw3: Tensor, camera: CameraInput, generator: torch.Generator | None = None
    ) -> Tensor:
        """Turn raw images into the input of a camera's network, ``(N, 3, size, size)``."""
        x = image_functions.from_camera(image_Nhw3, self.config.upside_down)
        x = image_functions.resize(x, camera.size)
        if self.training and camera.shift:
            x = image_functions.random_shift(x, camera.shift, self.history, generator)
        if camera.crop is not None and self.training:
            x = image_functions.random_crop(x, camera.crop, self.history, generator)
        elif camera.crop is not None:
            x = image_functions.center_crop(x, camera.crop)
        x = x.float() / 255
        if self.training and self.config.color:
            x = image_functions.random_color(x, self.config.color, self.history, generator)
        return image_functions.normalize(x, self.mean, self.std)


def check_images(images: Mapping[str, Tensor], key: str, history: int, shape: tuple[int, ...]) -> None:
    """Hold a camera's images to what the policy was made for.

    Raises:
        DataError: naming the camera, what is wrong, and what to change.
    """
    if key not in images:
        raise DataError(
            f"the observation has no camera {key!r} (it has {sorted(images)}), which the policy was trained "
            "with; give the camera that name, or train without it by policy.cameras=…"
        )
    x = images[key]
    if x.dtype != torch.uint8:
        raise DataError(
            f"{key!r} is {x.dtype}; images are uint8 with values 0 … 255: scale and convert, the policy "
            "normalises them itself"
        )
    if x.ndim == 5 and x.shape[2] == 3 and x.shape[-1] != 3:
        raise DataError(
            f"{key!r} has shape {tuple(x.shape)}, which is channel-first; images are (batch, history, "
            "height, width, 3): use .permute(0, 1, 3, 4, 2)"
        )
    if x.ndim != 5 or x.shape[1] != history or tuple(x.shape[2:]) != tuple(shape):
        raise DataError(
            f"{key!r} has shape {tuple(x.shape)}; the policy needs (batch, {history}, "
            f"{', '.join(map(str, shape))}): render or resize the images to that size"
        )
