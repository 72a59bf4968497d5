"""Configuration of a training run."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class TrainerConfig:
    """How a policy is trained.

    A run ends after ``steps`` or after ``minutes`` of training, whichever comes first; the learning rate
    follows the same clock. Only a run that is bounded by steps is reproducible to the bit.

    Attributes:
        steps: optimizer steps, or None.
        minutes: wall-clock minutes of training (validation and checkpoints included), or None.
        batch_size: windows in a step, over all processes.
        learning_rate: peak of the three-stage schedule.
        weight_decay: on matrices; norms, biases and positions have none.
        warmup: share of the run with rising learning rate.
        hold: share of the run at the peak.
        grad_clip: largest gradient norm.
        ema_power: decay of the averaged weights is 1 − step^(−ema_power).
        ema_max: largest decay of the averaged weights.
        freeze_routers: do not train the routers (finetuning as in the paper).
        precision: ``bf16`` autocasts; ``auto`` is bf16 on a GPU that has it, else float32.
        device: ``auto``, ``cpu`` or ``cuda``.
        compile: compile the denoiser with `torch.compile`.
        log_every: steps between records of metrics.
        validate_every: steps between validations.
        checkpoint_every: steps between checkpoints.
        validation_batches: batches of ``batch_size`` windows that a validation looks at.
        divergence: stop when the loss exceeds this multiple of its first record.
        seed: of weights, data order and noise.
        tensorboard: write TensorBoard events.
        wandb: Weights & Biases project, or None.
    """

    steps: int | None = Field(None, ge=1)
    minutes: float | None = Field(None, gt=0)
    batch_size: int = Field(512, ge=1)
    learning_rate: float = Field(1e-4, gt=0)
    weight_decay: float = Field(0.05, ge=0)
    betas: tuple[float, float] = (0.9, 0.95)
    warmup: float = Field(0.02, ge=0, lt=1)
    hold: float = Field(0.08, ge=0, lt=1)
    grad_clip: float = Field(1.0, gt=0)
    ema_power: float = Field(2 / 3, gt=0)
    ema_max: float = Field(0.9999, ge=0, lt=1)
    freeze_routers: bool = False
    precision: Literal["auto", "float32", "bf16"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    compile: bool = False
    log_every: int = Field(50, ge=1)
    validate_every: int = Field(500, ge=1)
    checkpoint_every: int = Field(1000, ge=1)
    validation_batches: int = Field(4, ge=0)
    divergence: float = Field(10.0, gt=1)
    seed: int = 0
    tensorboard: bool = True
    wandb: str | None = None

    @model_validator(mode="after")
    def _check(self) -> TrainerConfig:
        if self.steps is None and self.minutes is None:
            raise ValueError("nothing says when to stop: give trainer.steps=… or trainer.minutes=…")
        if self.warmup + self.hold >= 1:
            raise ValueError(
                f"warmup={self.warmup} and hold={self.hold} leave no part of the run for the decay"
            )
        return self
