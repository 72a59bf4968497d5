"""Configuration of the image encoders."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

#: Smaller images shrink to a single pixel before the last stage. (There, torch 2.11's bf16 gradients on CPUs
#: are undefined: a 3x3 convolution with stride 2 leaves out the weights that only see its padding.)
Pixels = Annotated[int, Field(ge=32)]
Shift = Annotated[int, Field(ge=0)]
NetworkName = Literal["resnet18", "resnet34", "resnet50"]


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class VisionConfig:
    """The image encoders: one network for each camera, all of the same kind.

    ``size``, ``shift`` and ``crop`` are one number for all cameras or one for each, in the order of
    `PolicyConfig.cameras`.

    Attributes:
        network: depth of the residual network.
        width: channels of its first stage; 64 is the standard network, less is smaller and faster.
        film: where the instruction modulates the features: ``stage`` is after each of the four stages
            (authors' ResNet-34 and -50), ``block`` inside each block (authors' ResNet-18).
        weights: initial weights of a new training: ``imagenet`` (torchvision's, downloaded once), ``none``
            (random), or the path of a state dict with torchvision's names.
        size: shorter side of the network's input in pixels, before ``crop``; images are resized to it. At
            least 32.
        shift: training moves each image by up to so many pixels in each direction (random shift).
        crop: side of a square that is cut out, at random in training and from the centre otherwise.
        color: strength of random brightness, contrast and saturation in training; 0.3 draws from 0.7 … 1.3.
        normalize: mean and standard deviation that inputs are normalised by; the authors use CLIP's.
        upside_down: show the networks each image upside down (its rows in OpenGL's order), as the authors'
            LIBERO policies saw them. Observations stay upright.
    """

    network: NetworkName = "resnet18"
    width: Annotated[int, Field(ge=4)] = 64
    film: Literal["stage", "block"] = "stage"
    weights: str = "none"
    size: Pixels | tuple[Pixels, ...] = 224
    shift: Shift | tuple[Shift, ...] = 0
    crop: Pixels | tuple[Pixels, ...] | None = None
    color: Annotated[float, Field(ge=0, lt=1)] = 0.0
    normalize: Literal["clip", "imagenet"] = "clip"
    upside_down: bool = False

    @model_validator(mode="after")
    def _check(self) -> VisionConfig:
        if self.film == "block" and self.network != "resnet18":
            raise ValueError(f"film=block exists for resnet18 only; {self.network} needs film=stage")
        if self.weights == "imagenet" and self.width != 64:
            raise ValueError(f"weights=imagenet needs the standard width=64, not {self.width}")
        return self

    def of_cameras(self, number: int) -> list[CameraInput]:
        """Return each camera's input.

        Raises:
            ValueError: if a list has another length, or a crop is larger than its image.
        """
        sizes = _spread("size", self.size, number)
        shifts = _spread("shift", self.shift, number)
        crops = _spread("crop", self.crop, number)
        for size, crop in zip(sizes, crops, strict=True):
            if crop is not None and crop > size:
                raise ValueError(f"vision.crop={crop} is larger than vision.size={size}")
        return [CameraInput(size=s, shift=d, crop=c) for s, d, c in zip(sizes, shifts, crops, strict=True)]


@dataclass(frozen=True, kw_only=True)
class CameraInput:
    """What one camera's network sees; see `VisionConfig`."""

    size: int
    shift: int = 0
    crop: int | None = None


def _spread[T: int | None](name: str, value: T | tuple[T, ...], number: int) -> list[T]:
    """Return one value a camera."""
    if not isinstance(value, tuple):
        return [value] * number
    if len(value) != number:
        raise ValueError(
            f"vision.{name} has {len(value)} values for {number} cameras; give one a camera, or one number"
        )
    return list(value)
