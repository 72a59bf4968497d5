"""The configuration of a published policy: read off the shapes of its tensors.

What shapes do not tell comes from the settings that were saved with the weights, else it is as in the
released models; whoever imports can override it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor

from mode_policy.config import PolicyConfig, build, flatten
from mode_policy.encoders.film_resnet import BLOCKS
from mode_policy.errors import CheckpointError, ConfigError

#: Settings of the authors' agent and network that this package does not have otherwise.
FIXED = {
    "use_proprio": False,
    "use_perceiver": False,
    "model.inner_model.use_proprio": False,
    "model.inner_model.goal_conditioned": True,
    "model.inner_model.causal": True,
    "model.inner_model.cond_router": True,
    "model.inner_model.linear_output": True,
    "model.inner_model.use_custom_attn_mask": False,
    "model.inner_model.goal_seq_len": 1,
    "model.inner_model.obs_seq_len": 1,
    "language_goal.model_name": "ViT-B/32",
}

#: ours → theirs, where shapes do not decide
SETTINGS = {
    "execute": "multistep",
    "sigma_data": "sigma_data",
    "goal_dropout": "model.inner_model.goal_drop",
    "density.name": "sigma_sample_density_type",
    "density.sigma_min": "sigma_min",
    "density.sigma_max": "sigma_max",
    "sampler.name": "sampler_type",
    "sampler.steps": "num_sampling_steps",
    "sampler.schedule": "noise_scheduler",
    "sampler.sigma_min": "sigma_min",
    "sampler.sigma_max": "sigma_max",
    "loss.load_balance": "entropy_gamma",
    "loss.router_z": "router_z_delta",
    "denoiser.noise_token": "model.inner_model.use_noise_token_as_input",
    "denoiser.attention_dropout": "model.inner_model.attn_pdrop",
    "denoiser.embedding_dropout": "model.inner_model.embed_pdrob",
    "denoiser.experts.dropout": "model.inner_model.mlp_pdrop",
    "denoiser.experts.active": "model.inner_model.top_k",
    "denoiser.router.normalize": "model.inner_model.router_normalize",
    "denoiser.router.goal": "model.inner_model.use_goal_in_routing",
}

#: as in the released models (paper, table 3, and the authors' configuration)
DEFAULTS: dict[str, Any] = {
    "language": "clip-vit-b32",
    "normalize_action": "min_max",
    "loss.load_balance": 0.0,
    "denoiser.attention_dropout": 0.3,
    "denoiser.experts.dropout": 0.1,
    "denoiser.experts.active": 2,
    "vision.normalize": "clip",
    "vision.shift": (10, 4),
}

SAMPLER_NAMES = {"dpm": "dpm_2", "dpmpp_2m_sde": "dpmpp_sde"}


@dataclass(frozen=True, kw_only=True)
class Images:
    """What the cameras of a published policy showed it.

    Attributes:
        cameras: our names of the static camera and the one in the gripper.
        resolution: side of the images that environments deliver, in pixels.
        size: side of each network's input.
        upside_down: whether the networks saw images upside down.
    """

    cameras: tuple[str, str] = ("static", "gripper")
    resolution: tuple[int, int] = (224, 224)
    size: tuple[int, int] = (224, 112)
    upside_down: bool = False


#: LIBERO's images came from its simulator upside down, the gripper's halved. The cameras have the names
#: of the published demonstrations, on which such a policy is finetuned.
PRESETS = {
    "libero": Images(cameras=("agentview", "eye_in_hand"), upside_down=True),
    "calvin": Images(size=(224, 224)),
}

#: Class names of the authors' data modules, saved in their Hydra configuration → preset.
DATA_MODULES = {"LiberoDataModule": "libero", "HulcDataModule": "calvin"}

#: (layers, width, network) → what it is
_MODELS = {
    (12, 1024, "resnet50"): "the pretrained model and its finetuned ones (paper, table 3)",
    (8, 1024, "resnet18"): "the model of LIBERO and CALVIN ABCD (paper, table 3)",
    (8, 1024, "resnet50"): "the model of CALVIN ABC (paper, table 3)",
}


def model_name(config: PolicyConfig) -> str:
    """Say which published model has these sizes."""
    sizes = (config.denoiser.num_layers, config.denoiser.dim, config.vision.network)
    return _MODELS.get(sizes, "none of the published sizes")


def preset_of(settings: Mapping[str, Any]) -> str | None:
    """Return the preset that the saved configuration names, or None."""
    return DATA_MODULES.get(str(settings.get("datamodule", "")).rsplit(".", 1)[-1])


def recognise(
    parts: Mapping[str, Mapping[str, Tensor]],
    settings: Mapping[str, Any],
    images: Images,
    overrides: Sequence[str] = (),
) -> PolicyConfig:
    """Return the configuration of a published policy.

    Raises:
        CheckpointError: if the tensors are not those of such a policy, or contradict the settings.
        ConfigError: for an override that cannot be used.
    """
    read = flatten(settings)
    for name, value in FIXED.items():
        if name in read and read[name] != value:
            raise CheckpointError(
                f"this checkpoint was trained with {name}={read[name]}; only {name}={value} can be imported"
            )
    denoiser = parts["denoiser"]
    dim, layers = shape_of(denoiser, "sigma_emb.weight")[0], _count(denoiser, "blocks.")
    heads = dim // shape_of(denoiser, "blocks.0.attn.q_norm.g")[0]
    shared = any(name.startswith("blocks.0.shared_mlp.") for name in denoiser)
    experts = _count(denoiser, "blocks.0.experts.expert_") + shared
    chunk = shape_of(denoiser, "pos_emb")[1] - 1
    shapes = {"n_layers": layers, "embed_dim": dim, "n_heads": heads, "num_experts": experts}
    for name, found in shapes.items():
        said = read.get(f"model.inner_model.{name}", found)
        if said != found:
            raise CheckpointError(f"the saved settings say {name}={said}, the tensors say {found}")
    static, gripper = (_network(parts[camera], camera) for camera in ("static", "gripper"))
    if static != gripper:
        raise CheckpointError(f"the two image encoders differ: {static} and {gripper}")
    data = DEFAULTS | {ours: read[theirs] for ours, theirs in SETTINGS.items() if theirs in read}
    if "sampler.name" in data:
        data["sampler.name"] = SAMPLER_NAMES.get(data["sampler.name"], data["sampler.name"])
    data |= {
        "chunk": chunk,
        "execute": min(data.get("execute", chunk), chunk),
        "cameras": images.cameras,
        "vision.size": images.size,
        "vision.upside_down": images.upside_down,
        **{f"vision.{name}": value for name, value in static.items()},
        "denoiser.dim": dim,
        "denoiser.num_layers": layers,
        "denoiser.num_heads": heads,
        "denoiser.experts.num": experts,
        "denoiser.experts.shared": shared,
    }
    return build(PolicyConfig, _overridden(data, overrides), "policy")


def _overridden(data: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Nest dotted names and apply ``key=value`` on top."""
    if bad := [o for o in overrides if "=" not in o]:
        raise ConfigError(f"cannot read {bad[0]!r}; settings look like sampler.steps=5")
    nested = OmegaConf.create()
    for name, value in data.items():
        OmegaConf.update(nested, name, list(value) if isinstance(value, tuple) else value)
    try:
        merged = OmegaConf.merge(nested, OmegaConf.from_dotlist(list(overrides)))
        plain = OmegaConf.to_container(merged, resolve=True)
    except (OmegaConfBaseException, ValueError) as error:
        raise ConfigError(f"cannot apply {' '.join(overrides)}: {error}") from error
    assert isinstance(plain, dict)
    return {str(k): v for k, v in plain.items()}


def _network(tensors: Mapping[str, Tensor], camera: str) -> dict[str, Any]:
    """Return the network, its width and its form of modulation."""
    stage = any(name.startswith("resnet.") for name in tensors)
    prefix = "resnet." if stage else ""
    if f"{prefix}conv1.weight" not in tensors:
        raise CheckpointError(
            f"there is no image encoder for the {camera} camera: {prefix}conv1.weight is missing"
        )
    width = shape_of(tensors, f"{prefix}conv1.weight")[0]
    depth = tuple(_count(tensors, f"{prefix}layer{i}.") for i in (1, 2, 3, 4))
    bottleneck = f"{prefix}layer1.0.conv3.weight" in tensors
    for name, blocks in BLOCKS.items():
        if blocks == depth and (name == "resnet50") == bottleneck:
            return {"network": name, "width": width, "film": "stage" if stage else "block"}
    raise CheckpointError(f"the {camera} camera's network has {depth} blocks, which is no known network")


def shape_of(tensors: Mapping[str, Tensor], name: str) -> tuple[int, ...]:
    """Return a tensor's shape.

    Raises:
        CheckpointError: if there is no such tensor, or it is no matrix where one is expected.
    """
    if name not in tensors:
        raise CheckpointError(f"this is no MoDE checkpoint: it lacks {name!r}")
    shape = tuple(tensors[name].shape)
    if not name.endswith(".g") and len(shape) < 2:
        raise CheckpointError(f"{name!r} has shape {shape}; a flattened or cut checkpoint cannot be imported")
    return shape


def _count(tensors: Mapping[str, Tensor], prefix: str) -> int:
    """Return how many numbers follow ``prefix``."""
    return len({n.removeprefix(prefix).split(".")[0] for n in tensors if n.startswith(prefix)})
