"""``--policy.type=mode``: the configuration as LeRobot reads it from command lines and JSON.

What defines the network are the dataclasses of `mode_policy.config` themselves, so each setting has one name
in both worlds: ``policy.sampler.steps=5`` of ``mode-train`` is ``--policy.sampler.steps=5`` of
``lerobot-train``. Three carry the names that LeRobot gives them: ``n_obs_steps``, ``chunk_size`` and
``n_action_steps``.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Literal

from lerobot.configs import NormalizationMode, PreTrainedConfig
from lerobot.optim import AdamWConfig, LRSchedulerConfig
from lerobot.policies.rtc.configuration_rtc import RTCConfig
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from mode_policy.config import (
    DenoiserConfig,
    DensityConfig,
    LossConfig,
    PolicyConfig,
    SamplerConfig,
    build,
    to_dict,
)
from mode_policy.encoders.vision_config import VisionConfig
from mode_policy.errors import ConfigError, DataError
from mode_policy.normalization import NormalizationMode as Normalization
from mode_policy.training.schedule import tri_stage
from mode_policy.types import ACTION

#: Settings of `PolicyConfig` that LeRobot has a name for.
NAMES = {"history": "n_obs_steps", "chunk": "chunk_size", "execute": "n_action_steps"}

#: LeRobot's kinds of features, none of which it shall normalise.
KINDS = ("VISUAL", "STATE", "ENV", "ACTION")


@LRSchedulerConfig.register_subclass("mode_tri_stage")
@dataclass
class TriStageSchedulerConfig(LRSchedulerConfig):
    """Linear warm-up, hold, cosine: the authors' schedule (`mode_policy.training.schedule.tri_stage`).

    Attributes:
        num_warmup_steps: Steps of warm-up; None for the share ``warmup`` of the run.
        warmup: Share of the run with rising learning rate.
        hold: Share of the run at the peak.
    """

    num_warmup_steps: int | None = None
    warmup: float = 0.02
    hold: float = 0.08

    def build(self, optimizer: Optimizer, num_training_steps: int) -> LambdaLR:
        """Return the schedule of an optimizer whose learning rate is the peak."""
        steps = self.num_warmup_steps
        warmup = self.warmup if steps is None else steps / num_training_steps
        if not 0 <= warmup + self.hold < 1:
            raise ConfigError(
                f"warm-up ({warmup:g} of the run) and hold ({self.hold:g}) leave no part of "
                f"{num_training_steps} steps for the decay; lower scheduler.num_warmup_steps or "
                f"scheduler.hold"
            )
        return LambdaLR(
            optimizer,
            lambda step: tri_stage(step, num_training_steps, warmup=max(warmup, 1e-9), hold=self.hold),
        )


@PreTrainedConfig.register_subclass("mode")
@dataclass
class ModeConfig(PreTrainedConfig):
    """Everything that defines a MoDE policy and its training in LeRobot.

    Attributes not described here are those of `mode_policy.config.PolicyConfig`.

    Attributes:
        n_obs_steps: Observations that the policy sees, the newest included (`PolicyConfig.history`).
        chunk_size: Actions predicted at once (`PolicyConfig.chunk`).
        n_action_steps: Actions of a chunk that are executed before the next inference
            (`PolicyConfig.execute`).
        cameras: Feature keys of the images that the policy sees, in the order of their tokens; None for all.
        state_keys: Feature keys of the vectors that the policy sees; None for all that are observed.
        normalization_mapping: Of LeRobot's normaliser: the identity, as the policy normalises itself.
        dtype: ``bfloat16`` computes under autocast, in training and inference; weights stay float32.
        ema: Average the weights over training; the averaged ones act and validate.
        ema_power: Decay of the average is 1 − step^(−ema_power).
        ema_max: Largest decay of the average.
        restart_average: Start from the averaged weights of the checkpoint and average anew (finetuning).
        freeze_routers: Do not train the routers (finetuning as in the paper, with ``loss.load_balance=0``).
        optimizer_lr: Peak of the learning rate.
        optimizer_weight_decay: On matrices; norms, biases and positions have none.
        rtc_config: Set by ``lerobot-rollout --inference.type=rtc``.
        demonstrations: What the training data said: features, statistics, convention, instructions. The
            policy fills it in when it is made; a checkpoint acts without its data set.
    """

    n_obs_steps: int = 1
    chunk_size: int = 10
    n_action_steps: int = 10
    normalization_mapping: dict[str, NormalizationMode] = field(
        default_factory=lambda: dict.fromkeys(KINDS, NormalizationMode.IDENTITY)
    )

    cameras: list[str] | None = None
    state_keys: list[str] | None = None
    state_hidden: tuple[int, ...] = ()
    state_tokens: int | None = None
    vision: VisionConfig = field(default_factory=VisionConfig)
    language: str | None = "minilm-l6-v2"
    goal_dropout: float = 0.1
    goal_dropout_form: Literal["feature", "vector"] = "feature"
    normalize_state: Normalization = "mean_std"
    normalize_action: Normalization = "min_max"
    sigma_data: float = 0.5
    density: DensityConfig = field(default_factory=DensityConfig)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    denoiser: DenoiserConfig = field(default_factory=DenoiserConfig)

    dtype: Literal["float32", "bfloat16"] = "float32"
    ema: bool = True
    ema_power: float = 2 / 3
    ema_max: float = 0.9999
    restart_average: bool = False
    freeze_routers: bool = False
    optimizer_lr: float = 1e-4
    optimizer_betas: tuple[float, float] = (0.9, 0.95)
    optimizer_eps: float = 1e-8
    optimizer_weight_decay: float = 0.05
    optimizer_grad_clip_norm: float = 1.0
    scheduler_warmup: float = 0.02
    scheduler_hold: float = 0.08

    rtc_config: RTCConfig | None = None
    demonstrations: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        wrong = {k: m for k, m in self.normalization_mapping.items() if m != NormalizationMode.IDENTITY}
        if wrong:
            raise ConfigError(
                f"policy.normalization_mapping has {wrong}, but a MoDE policy normalises by itself; use "
                "--policy.normalize_state and --policy.normalize_action (mean_std, min_max, quantile, "
                "identity)"
            )

    def policy_config(self, cameras: tuple[str, ...]) -> PolicyConfig:
        """Return the policy's own configuration.

        Args:
            cameras: names below ``observation.images.``, in the order of their tokens.

        Raises:
            ConfigError: naming each setting that cannot be used.
        """
        given = {f.name: getattr(self, NAMES.get(f.name, f.name)) for f in fields(PolicyConfig)}
        plain = {k: to_dict(v) if hasattr(v, "__dataclass_fields__") else v for k, v in given.items()}
        return build(PolicyConfig, plain | {"cameras": cameras}, "policy")

    @classmethod
    def of_policy(cls, config: PolicyConfig, **changes: Any) -> ModeConfig:
        """Invert `policy_config`; ``changes`` are LeRobot's own settings and the cameras' keys."""
        given = {NAMES.get(f.name, f.name): getattr(config, f.name) for f in fields(PolicyConfig)}
        return cls(**given | changes)

    @property
    def observation_delta_indices(self) -> list[int]:
        """Steps of the observations, relative to the newest."""
        return list(range(1 - self.n_obs_steps, 1))

    @property
    def action_delta_indices(self) -> list[int]:
        """Steps of the chunk's actions, relative to the newest observation."""
        return list(range(self.chunk_size))

    @property
    def reward_delta_indices(self) -> None:
        """No rewards are read."""

    def get_optimizer_preset(self) -> AdamWConfig:
        """AdamW as the authors use it."""
        return AdamWConfig(
            lr=self.optimizer_lr,
            betas=self.optimizer_betas,
            eps=self.optimizer_eps,
            weight_decay=self.optimizer_weight_decay,
            grad_clip_norm=self.optimizer_grad_clip_norm,
        )

    def get_scheduler_preset(self) -> TriStageSchedulerConfig:
        """Three stages, whose lengths are shares of the run."""
        return TriStageSchedulerConfig(warmup=self.scheduler_warmup, hold=self.scheduler_hold)

    def validate_features(self) -> None:
        """Hold the features to what a policy needs.

        Raises:
            DataError: if there is no action, or nothing to observe.
        """
        if self.action_feature is None:
            given = sorted(self.output_features or {})
            raise DataError(
                f"the policy needs a feature {ACTION!r}, and the actions are {given}; rename the data set's"
            )
        if not self.input_features:
            raise DataError(
                "the policy observes nothing: the data set needs observation.state or "
                "observation.images.<camera>"
            )
