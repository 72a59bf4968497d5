"""Initial weights of image encoders: ImageNet's through torchvision, a file's, or random ones."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.error import URLError

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mode_policy.encoders.film_resnet import ResNet
from mode_policy.encoders.vision_config import VisionConfig
from mode_policy.errors import ConfigError

if TYPE_CHECKING:
    from mode_policy.encoders.vision import ImageEncoder


def load_initial_weights(encoder: ImageEncoder) -> str:
    """Give each camera's network the weights that ``VisionConfig.weights`` names; return what was done.

    FiLM layers keep their initial values: no published network has them.

    Raises:
        ConfigError: if the weights cannot be had, or are another network's.
    """
    config = encoder.config
    if config.weights == "none":
        return "random weights"
    state, source = _initial_weights(config)
    for network in encoder.networks:
        network.resnet.load_state_dict(state)  # type: ignore[union-attr]
    return f"weights from {source}"


def check_initial_weights(config: VisionConfig) -> None:
    """Find out whether `load_initial_weights` will succeed, before the long work that comes first.

    Raises:
        ConfigError: as it does.
    """
    if config.weights != "none":
        _initial_weights(config)


def _initial_weights(config: VisionConfig) -> tuple[dict[str, Tensor], str]:
    """Return the tensors of one network and where they are from; ConfigError if they do not fit it."""
    if config.weights == "imagenet":
        state, source = imagenet(config.network)
    else:
        state, source = from_file(Path(config.weights).expanduser()), config.weights
    # The classifier is not part of the encoder.
    state = {k: v for k, v in state.items() if not k.startswith("fc.")}
    with torch.device("meta"):
        own = ResNet(config.network, config.width).state_dict()
    wrong = [k for k in own if k not in state or state[k].shape != own[k].shape]
    wrong += [k for k in state if k not in own]
    if wrong:
        raise ConfigError(
            f"the weights of {source} are not those of {config.network} with width {config.width}: "
            f"{len(wrong)} tensors differ, first {sorted(wrong)[0]!r}"
        )
    return state, source


def imagenet(network: str) -> tuple[Mapping[str, Tensor], str]:
    """Return torchvision's best ImageNet weights of a network and their name; downloaded once, then cached.

    Raises:
        ConfigError: if torchvision is not installed or the download fails.
    """
    try:
        from torchvision.models import get_model_weights
    except ImportError as error:
        raise ConfigError("vision.weights=imagenet needs: pip install 'mode-policy[vision]'") from error
    weights = get_model_weights(network).DEFAULT
    try:
        state = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (URLError, OSError, RuntimeError) as error:
        raise ConfigError(
            f"{weights} could not be downloaded from {weights.url} ({error}); connect once so that it is "
            f"cached below {torch.hub.get_dir()}, give a copy with policy.vision.weights=<file>, or start "
            "from random weights with policy.vision.weights=none"
        ) from error
    return state, f"torchvision {weights}"


def from_file(path: Path) -> dict[str, Tensor]:
    """Read a state dict from ``.safetensors`` or a file of ``torch.save``; nothing in it is executed.

    Raises:
        ConfigError: if it is absent, unreadable, or holds more than tensors.
    """
    if not path.is_file():
        raise ConfigError(
            f"there is no file vision.weights={path}; use imagenet, none, or the path of a state dict"
        )
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, OSError, EOFError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(f"{path} is no state dict that can be read safely: {reason}") from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ConfigError(f"{path} holds more than the tensors of one network; save its state dict alone")
    return state
