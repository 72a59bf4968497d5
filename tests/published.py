"""Weights of the golden cases, and networks that carry them."""

import json
import zlib
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from mode_policy.config import DenoiserConfig, build
from mode_policy.encoders.film_resnet import FiLMResNet
from mode_policy.encoders.vision_config import VisionConfig
from mode_policy.nn.denoiser import Denoiser
from mode_policy.published import encoder_from_published, from_published

GOLDEN = Path(__file__).parent / "golden"
CASES = (
    "default",
    "top1",
    "unnormalised",
    "eight_experts_top3",
    "shared_expert",
    "goal_in_routing",
    "no_noise_token",
)


def draw(name: str, shape: list[int]) -> torch.Tensor:
    """Draw one tensor as a pure function of its name: normal, scaled by the role that the name tells."""
    x = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape, dtype=np.float32)
    leaf = name.split(".")[-1]
    if leaf == "num_batches_tracked":
        return torch.zeros(shape, dtype=torch.int64)
    if leaf == "running_var":
        x = 1 + 0.1 * np.abs(x)
    elif leaf in ("bias", "running_mean"):
        x = 0.1 * x
    elif leaf == "g" or len(shape) == 1:
        x = 1 + 0.1 * x
    elif leaf == "pos_emb":
        x = 0.5 * x
    elif len(shape) == 4:
        x = x * np.float32((2 / np.prod(shape[1:])) ** 0.5)
    else:
        gain = 3 if ".router." in name else 1
        x = x * np.float32(gain / shape[1] ** 0.5)
    return torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32))


def spec(case: str, part: str = "denoiser") -> dict:
    return json.loads((GOLDEN / f"{part}_{case}.spec.json").read_text())


def golden(case: str, part: str = "denoiser") -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / f"{part}_{case}.safetensors")


def published_weights(case: str, part: str = "denoiser") -> dict[str, torch.Tensor]:
    return {name: draw(name, shape) for name, shape in spec(case, part)["tensors"].items()}


def film_resnet(case: str) -> FiLMResNet:
    """Our image encoder with the published weights of a golden case, in evaluation mode."""
    config = VisionConfig(network=case)
    model = FiLMResNet(config, condition_dim=512)
    model.load_state_dict(encoder_from_published(published_weights(case, "film"), config), strict=True)
    return model.eval()


def denoiser(case: str) -> Denoiser:
    """Our denoiser with the published weights of a golden case, in evaluation mode."""
    c = spec(case)["config"]
    config = build(
        DenoiserConfig,
        {
            "dim": c["embed_dim"],
            "num_layers": c["n_layers"],
            "num_heads": c["n_heads"],
            "noise_token": c.get("use_noise_token_as_input", True),
            "router": {
                "normalize": c.get("router_normalize", True),
                "goal": c.get("use_goal_in_routing", False),
            },
            "experts": {
                "num": c.get("num_experts", 4),
                "active": c.get("top_k", 2),
                "shared": c.get("use_shared_expert", False),
            },
        },
    )
    model = Denoiser(
        config,
        token_dim=c["obs_dim"],
        goal_dim=c["goal_dim"],
        action_dim=c["action_dim"],
        chunk=c["action_seq_len"],
    )
    model.load_state_dict(from_published(published_weights(case), config), strict=True)
    return model.eval()
