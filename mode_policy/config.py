"""Configuration as frozen dataclasses: they own validation, Hydra's YAML only fills them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from typing import Annotated, Any, Literal, get_args, get_type_hints

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from mode_policy.diffusion.samplers import SAMPLERS
from mode_policy.diffusion.schedules import SCHEDULES
from mode_policy.encoders.vision_config import VisionConfig
from mode_policy.errors import ConfigError, did_you_mean
from mode_policy.normalization import NormalizationMode

FORBID_EXTRA = ConfigDict(extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True, kw_only=True, config=FORBID_EXTRA)
class RouterConfig:
    """Attributes of the noise-conditioned router.

    Attributes:
        num_layers: 2 as in the authors' code and published checkpoints, 1 as in the paper.
        temperature: divides the logits.
        normalize: rescale the chosen probabilities to sum to 1.
        goal: add the goal embedding to the router's input (and to the tokens' condition, as in the code).
    """

    num_layers: Literal[1, 2] = 2
    temperature: Annotated[float, Field(gt=0)] = 1.0
    normalize: bool = True
    goal: bool = False


@dataclass(frozen=True, kw_only=True, config=FORBID_EXTRA)
class ExpertsConfig:
    """Attributes of the expert bank.

    Attributes:
        num: number of experts, the shared one included.
        active: experts that run for a sample, the shared one included.
        shared: one of them is always on and not routed.
        dropout: on the experts' hidden units.
    """

    num: Annotated[int, Field(ge=1)] = 4
    active: Annotated[int, Field(ge=1)] = 2
    shared: bool = False
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0

    @model_validator(mode="after")
    def _check(self) -> ExpertsConfig:
        if self.active > self.num:
            raise ValueError(f"active={self.active} experts of num={self.num}; lower `active` or raise `num`")
        if self.shared and self.active < 2:
            raise ValueError("a shared expert counts as active: use active >= 2, or shared=false")
        return self


@dataclass(frozen=True, kw_only=True, config=FORBID_EXTRA)
class DenoiserConfig:
    """Sizes and options of the denoising transformer.

    Attributes:
        dim: width; a multiple of ``num_heads``.
        residual: form of the block, see `mode_policy.nn.block`.
        noise_token: put the noise embedding first in the sequence.
    """

    dim: Annotated[int, Field(ge=1)] = 1024
    num_layers: Annotated[int, Field(ge=1)] = 8
    num_heads: Annotated[int, Field(ge=1)] = 8
    residual: Literal["normed", "prenorm", "paper"] = "normed"
    noise_token: bool = True
    attention_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    embedding_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    router: RouterConfig = RouterConfig()
    experts: ExpertsConfig = ExpertsConfig()

    @model_validator(mode="after")
    def _check(self) -> DenoiserConfig:
        if self.dim % self.num_heads:
            raise ValueError(f"dim={self.dim} is not a multiple of num_heads={self.num_heads}")
        return self


@dataclass(frozen=True, kw_only=True, config=FORBID_EXTRA)
class DensityConfig:
    """Training density of σ, see `mode_policy.diffusion.schedules`.

    Attributes:
        loc: mean of ln σ; None for ln σ_data.
        scale: scale of ln σ.
    """

    name: Literal["loglogistic", "loguniform", "lognormal"] = "loglogistic"
    loc: float | None = None
    scale: Annotated[float, Field(ge=0.05)] = 0.5
    sigma_min: Annotated[float, Field(gt=0)] = 0.001
    sigma_max: Annotated[float, Field(gt=0)] = 80.0

    @model_validator(mode="after")
    def _check(self) -> DensityConfig:
        if self.sigma_min >= self.sigma_max:
            raise ValueError(f"sigma_min={self.sigma_min} must be below sigma_max={self.sigma_max}")
        return self


@dataclass(frozen=True, kw_only=True, config=FORBID_EXTRA)
class SamplerConfig:
    """How actions are denoised; printed with every score.

    Attributes:
        name: one of `mode_policy.diffusion.samplers.SAMPLERS`.
        steps: number of noise levels before the final 0.
        schedule: one of `mode_policy.diffusion.schedules.SCHEDULES`.
        guidance: weight of classifier-free guidance; 1 is off.
    """

    name: str = "ddim"
    steps: Annotated[int, Field(ge=1)] = 10
    schedule: str = "exponential"
    sigma_min: Annotated[float, Field(gt=0)] = 0.001
    sigma_max: Annotated[float, Field(gt=0)] = 80.0
    guidance: float = 1.0

    @model_validator(mode="after")
    def _check(self) -> SamplerConfig:
        if self.name not in SAMPLERS:
            raise ValueError(f"unknown sampler {self.name!r}.{did_you_mean(self.name, SAMPLERS)}")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"unknown schedule {self.schedule!r}.{did_you_mean(self.schedule, SCHEDULES)}")
        if self.sigma_min >= self.sigma_max:
            raise ValueError(f"sigma_min={self.sigma_min} must be below sigma_max={self.sigma_max}")
        return self


@dataclass(frozen=True, kw_only=True, config=FORBID_EXTRA)
class LossConfig:
    """Weights of the training loss.

    Attributes:
        load_balance: γ of the paper; 0.01 from scratch, 0 when finetuning.
        router_z: weight of the router z-loss.
    """

    load_balance: Annotated[float, Field(ge=0)] = 0.01
    load_balance_form: Literal["code", "paper"] = "code"
    router_z: Annotated[float, Field(ge=0)] = 0.0


@dataclass(frozen=True, kw_only=True, config=FORBID_EXTRA)
class PolicyConfig:
    """Everything that defines a MoDE policy but its weights, features and statistics.

    Attributes:
        chunk: actions predicted at once.
        execute: actions of a chunk that are executed before the next inference.
        history: observations that the policy sees, the newest included.
        state_tokens: width of the state encoder's output tokens.
        state_hidden: hidden widths of the state encoder's MLP; empty for the plain normalised vector.
        cameras: names below ``observation.images.`` that the policy sees, in the order of their tokens; with
            cameras, the state's token takes the width of theirs and ``state_tokens`` stays None.
        vision: image encoders; without effect where there are no cameras.
        language: text encoder whose embeddings condition the policy; None without language.
        goal_dropout: probability of dropping the goal in training.
        goal_dropout_form: ``"feature"`` drops each feature on its own (authors' code), ``"vector"`` all.
        normalize_state: normalisation of the states.
        normalize_action: normalisation of the actions; ``min_max`` also keeps them in the data's range.
        sigma_data: σ_d of EDM.
    """

    chunk: Annotated[int, Field(ge=1)] = 10
    execute: Annotated[int, Field(ge=1)] = 10
    history: Annotated[int, Field(ge=1)] = 1
    state_hidden: tuple[Annotated[int, Field(ge=1)], ...] = ()
    state_tokens: Annotated[int, Field(ge=1)] | None = None
    cameras: tuple[str, ...] = ()
    vision: VisionConfig = VisionConfig()
    language: str | None = "minilm-l6-v2"
    goal_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    goal_dropout_form: Literal["feature", "vector"] = "feature"
    normalize_state: NormalizationMode = "mean_std"
    normalize_action: NormalizationMode = "min_max"
    sigma_data: Annotated[float, Field(gt=0)] = 0.5
    density: DensityConfig = DensityConfig()
    sampler: SamplerConfig = SamplerConfig()
    loss: LossConfig = LossConfig()
    denoiser: DenoiserConfig = DenoiserConfig()

    @model_validator(mode="after")
    def _check(self) -> PolicyConfig:
        if self.execute > self.chunk:
            raise ValueError(f"execute={self.execute} actions of a chunk of {self.chunk}; lower `execute`")
        if self.state_hidden and self.state_tokens is None and not self.cameras:
            raise ValueError("state_hidden needs the width of the output, state_tokens")
        if self.state_tokens is not None and self.cameras:
            raise ValueError("with cameras, the state's token has the width of theirs: set state_tokens=null")
        if len(set(self.cameras)) < len(self.cameras):
            raise ValueError(f"cameras={list(self.cameras)} names one twice")
        if self.cameras:
            self.vision.of_cameras(len(self.cameras))
        return self


def build[T](cls: type[T], data: Mapping[str, Any], where: str = "") -> T:
    """Build a configuration dataclass from plain data, recursively.

    Args:
        cls: the dataclass.
        data: nested mappings, as in YAML or JSON.
        where: prefix of names in messages, e.g. ``"model"``.

    Raises:
        ConfigError: naming each unknown key (with the closest known one) or value out of range.
    """
    try:
        return TypeAdapter(cls).validate_python(dict(data))
    except ValidationError as error:
        lines = []
        for e in error.errors():
            path = ".".join(str(part) for part in ([where] if where else []) + list(e["loc"]))
            if e["type"] == "unexpected_keyword_argument":
                message = f"unknown key.{did_you_mean(str(e['loc'][-1]), _keys(cls, e['loc'][:-1]))}"
            elif e["type"] == "missing_keyword_only":
                message = "missing"
            else:
                message = e["msg"].removeprefix("Value error, ")
                message += "" if isinstance(e["input"], dict) else f" (got {e['input']!r})"
            lines.append(f"{path}: {message}" if path else message)
        raise ConfigError("\n".join(lines)) from None


def _keys(cls: Any, path: tuple[Any, ...]) -> list[str]:
    """Names of the fields of the dataclass that ``path`` leads to from ``cls``."""
    for part in path:
        if isinstance(part, str):
            cls = get_type_hints(cls).get(part)
        cls = next((inner for inner in (cls, *get_args(cls)) if is_dataclass(inner)), None)
    return [f.name for f in fields(cls)] if is_dataclass(cls) else []


def to_dict(config: Any) -> dict[str, Any]:
    """Return nested plain data that `build` turns into an equal configuration."""
    return asdict(config)


def flatten(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested data under dotted names, e.g. ``denoiser.experts.num``."""
    found: dict[str, Any] = {}
    for key, value in data.items():
        found |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found
