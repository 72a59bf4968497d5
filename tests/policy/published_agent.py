"""Files in the formats in which MoDE's authors publish: of the golden cases, and of a small agent."""

import functools
import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file

from mode_policy.config import build
from mode_policy.encoders.film_resnet import FiLMResNet
from mode_policy.encoders.vision_config import VisionConfig
from mode_policy.nn.denoiser import Denoiser, DenoiserConfig
from mode_policy.published import encoder_to_published, to_published
from mode_policy.published_config import Images
from mode_policy.published_files import PublishedFile
from tests.published import published_weights, spec

State = dict[str, torch.Tensor]

#: Sizes of an agent that is quickly written and read.
SMALL = {"embed_dim": 16, "n_layers": 2, "n_heads": 2, "obs_dim": 32, "goal_dim": 12, "action_dim": 7}

#: A few of CLIP's tensors, as Lightning keeps them beside the rest.
CLIP = {
    "language_goal.clip_rn50.positional_embedding": torch.zeros(77, 8),
    "language_goal.clip_rn50.transformer.resblocks.0.ln_1.weight": torch.ones(8, dtype=torch.float16),
    "language_goal.clip_rn50.logit_scale": torch.tensor(4.6),
}


@functools.cache
def _golden_weights(case: str) -> State:
    return published_weights(case, "agent")


def golden_file(case: str, state: State | None = None) -> PublishedFile:
    """A golden case, as if read from a file."""
    config = spec(case, "agent")["config"]
    return PublishedFile(
        Path(case), state or golden_weights(case), settings=settings(config, config["steps"])
    )


def golden_weights(case: str) -> State:
    """All tensors of a golden case but CLIP's."""
    return dict(_golden_weights(case))


def golden_images(case: str, **changes: Any) -> Images:
    """What a golden case's cameras showed."""
    side = {"resnet18": 64, "resnet50": 80}[case]
    sizes = spec(case, "agent")["config"]["sizes"]
    return Images(**{"resolution": (side, side), "size": tuple(sizes)} | changes)


def small_weights(seed: int = 0) -> State:
    """All tensors of the small agent but CLIP's."""
    torch.manual_seed(seed)
    config = build(DenoiserConfig, {"dim": 16, "num_layers": 2, "num_heads": 2})
    denoiser = Denoiser(config, token_dim=32, goal_dim=12, action_dim=7, chunk=10)
    inner = to_published(denoiser.state_dict(), config) | {"gripper_embed.weight": torch.zeros(16, 32)}
    state = {f"model.inner_model.{k}": v for k, v in inner.items()}
    vision = VisionConfig(width=4, film="block")
    for camera in ("static", "gripper"):
        theirs = encoder_to_published(FiLMResNet(vision, 12).state_dict(), vision)
        state |= {f"{camera}_resnet.{k}": v for k, v in theirs.items()}
    return state


def settings(sizes: dict[str, Any], steps: int = 10) -> dict[str, Any]:
    """Arguments of the authors' agent, as its configuration gives them."""
    return {
        "sampler_type": "ddim",
        "num_sampling_steps": steps,
        "sigma_data": 0.5,
        "sigma_min": 0.001,
        "sigma_max": 80,
        "noise_scheduler": "exponential",
        "sigma_sample_density_type": "loglogistic",
        "multistep": 10,
        "entropy_gamma": 0.01,
        "use_proprio": False,
        "model": {
            "_target_": "mode.models.edm_diffusion.score_wrappers.GCDenoiser",
            "inner_model": {
                "_target_": "mode.models.networks.modedit.MoDeDiT",
                "goal_conditioned": True,
                "obs_seq_len": 1,
                "top_k": 2,
                "attn_pdrop": 0.3,
                "use_shared_expert": False,
                **{k: v for k, v in sizes.items() if k in SMALL},
            },
        },
        "language_goal": {"model_name": "ViT-B/32"},
    }


def safetensors(folder: Path, state: State | None = None) -> Path:
    """A repository of the hub: weights, and the settings as JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    state = small_weights() if state is None else state
    save_file({k: v.contiguous() for k, v in state.items()}, folder / "model_cleaned.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_config": settings(SMALL)}))
    return folder


def lightning(path: Path, ema: State | None = None, **changes: Any) -> Path:
    """A Lightning checkpoint in the middle of a training."""
    state = OrderedDict(small_weights() | CLIP)
    # Lightning keeps the constructor's arguments: containers of OmegaConf among plain values.
    arguments = {
        k: OmegaConf.create({"root": v, "other": "${root.lr}"}).root if isinstance(v, dict) else v
        for k, v in settings(SMALL).items()
    }
    arguments["optimizer"] = OmegaConf.create({"betas": [0.9, 0.95], "lr": "${model.lr}"})
    averaged = {} if ema is None else {"ema_weights": [(ema | CLIP)[name] for name in state]}
    data = {
        "epoch": 14,
        "global_step": 15000,
        "pytorch-lightning_version": "2.0.8",
        "state_dict": state,
        "loops": {"fit_loop": {"epoch_progress": {"total": {"ready": 15}}}},
        "callbacks": {
            "ModelCheckpoint{'monitor': 'eval_lh/avg_seq_len'}": {
                "best_model_score": torch.tensor(0.9),
                "dirpath": path.parent,
            },
            "EMA": {"cur_step": 15000} | averaged,
        },
        "optimizer_states": [{"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 1e-4}]}],
        "lr_schedulers": [{"config": OmegaConf.create({"phase_ratio": "(0.02, 0.08, 0.9)"})}],
        "hparams_name": "kwargs",
        "hyper_parameters": arguments,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(data | changes, path)
    return path
