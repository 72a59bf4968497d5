"""Configuration of a training run."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from mode_policy.config import FORBID_EXTRA


@dataclass(frozen=True, kw_only=True, config=FORBID_EXTRA)
class TrainerConfig:
    """How a policy is trained.

    A run ends after ``steps`` or after ``minutes`` of training, whichever comes first; the learning rate
    follows the same clock. Only a run that is bounded by steps is reproducible to the bit.

    Attributes:
        steps: optimizer steps, or None.
        minutes: wall-clock minutes of training (validation and checkpoints included), or None.
        batch_size: windows in a step, over all processes.
        accumulate: parts in which each process goes through its share of a step, for batches that do not
            fit in memory. A step stays the same but that experts are balanced over each part.
        learning_rate: peak of the three-stage schedule.
        weight_decay: on matrices; norms, biases and positions have none.
        betas: of AdamW.
        warmup: share of the run with rising learning rate.
        hold: share of the run at the peak.
        grad_clip: largest gradient norm.
        ema_power: decay of the averaged weights is 1 − step^(−ema_power).
        ema_max: largest decay of the averaged weights.
        freeze_routers: do not train the routers (finetuning as in the paper).
        precision: ``bf16`` autocasts; ``auto`` is bf16 on a GPU that has it, else float32.
        device: ``auto``, ``cpu`` or ``cuda``.
        devices: processes (on GPUs, one each) that this machine trains with; without a launcher, the program
            starts them itself.
        sharding: ``none`` keeps the whole state in each process (DDP), ``full`` a share of weights, averages,
            gradients and optimizer (FSDP2), for policies that do not fit.
        activation_checkpointing: compute activations again in the backward pass: less memory, about a third
            more time.
        compile: compile the denoiser with `torch.compile`; several processes then draw noise each on their
            own, and not what one would.
        log_every: steps between records of metrics.
        validate_every: steps between validations.
        checkpoint_every: steps between checkpoints.
        validation_batches: batches of ``batch_size`` windows that a validation looks at.
        divergence: stop when the loss exceeds this multiple of that of the first step, or of 1 if that is
            smaller.
        seed: of weights, data order and noise.
        tensorboard: write TensorBoard events.
        wandb: Weights & Biases project, or None.
        trackio: trackio project, or None.
    """

    steps: Annotated[int | None, Field(ge=1)] = None
    minutes: Annotated[float | None, Field(gt=0)] = None
    batch_size: Annotated[int, Field(ge=1)] = 512
    accumulate: Annotated[int, Field(ge=1)] = 1
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.95)
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.02
    hold: Annotated[float, Field(ge=0, lt=1)] = 0.08
    grad_clip: Annotated[float, Field(gt=0)] = 1.0
    ema_power: Annotated[float, Field(gt=0)] = 2 / 3
    ema_max: Annotated[float, Field(ge=0, lt=1)] = 0.9999
    freeze_routers: bool = False
    precision: Literal["auto", "float32", "bf16"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    devices: Annotated[int | None, Field(ge=1)] = None
    sharding: Literal["none", "full"] = "none"
    activation_checkpointing: bool = False
    compile: bool = False
    log_every: Annotated[int, Field(ge=1)] = 50
    validate_every: Annotated[int, Field(ge=1)] = 500
    checkpoint_every: Annotated[int, Field(ge=1)] = 1000
    validation_batches: Annotated[int, Field(ge=0)] = 4
    divergence: Annotated[float, Field(gt=1)] = 10.0
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    tensorboard: bool = True
    wandb: str | None = None
    trackio: str | None = None

    @model_validator(mode="after")
    def _check(self) -> TrainerConfig:
        if self.steps is None and self.minutes is None:
            raise ValueError("nothing says when to stop: give trainer.steps=… or trainer.minutes=…")
        if self.warmup + self.hold >= 1:
            raise ValueError(
                f"warmup={self.warmup} and hold={self.hold} leave no part of the run for the decay"
            )
        return self
