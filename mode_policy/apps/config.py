"""Configuration of the programs; see ``conf/train.yaml`` and ``conf/evaluate.yaml`` for the defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

from mode_policy.config import PolicyConfig
from mode_policy.training.config import TrainerConfig

_frozen = ConfigDict(extra="forbid")


@dataclass(frozen=True, kw_only=True, config=_frozen)
class TaskConfig:
    """What is learnt and where it is tested: a suite of ``mode_envs`` and the subset of its tasks, or all."""

    name: str
    suite: str
    tasks: tuple[str, ...] | None = None


@dataclass(frozen=True, kw_only=True, config=_frozen)
class DatasetConfig:
    """Where demonstrations come from; the keys are described in ``conf/train.yaml``."""

    source: Literal["collect", "path"] = "path"
    path: str
    layout: Literal["native", "replay_buffer"] = "native"
    url: str | None = None
    keys: dict[str, str] = Field(default_factory=dict)
    features: dict[str, dict[str, Any]] = Field(default_factory=dict)
    fps: Annotated[float, Field(gt=0)] | None = None
    licence: str | None = None
    episodes: Annotated[int, Field(ge=1)] = 40
    noise: Annotated[float, Field(ge=0)] = 0.0
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    state_keys: tuple[str, ...] | None = None
    validation_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.05


@dataclass(frozen=True, kw_only=True, config=_frozen)
class EvaluationConfig:
    """How rollouts are made; the keys are described in ``conf/train.yaml``."""

    episodes: Annotated[int, Field(ge=0)] = 20
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 100000
    lanes: Annotated[int, Field(ge=1)] = 20
    workers: Annotated[int | None, Field(ge=0)] = None
    videos: Annotated[int, Field(ge=0)] = 1
    video_size: Annotated[int, Field(ge=16)] = 240
    weights: Literal["ema", "raw"] = "ema"


@dataclass(frozen=True, kw_only=True, config=_frozen)
class TrainConfig:
    """Everything of ``train.py``."""

    task: TaskConfig
    dataset: DatasetConfig
    policy: PolicyConfig
    trainer: TrainerConfig
    evaluation: EvaluationConfig
    run_dir: str
    resume: str | None = None


@dataclass(frozen=True, kw_only=True, config=_frozen)
class EvaluateConfig(EvaluationConfig):
    """Everything of ``evaluate.py``: how rollouts are made, and of what."""

    checkpoint: str
    task: str | tuple[str, ...] | None = None
    execute: Annotated[int | None, Field(ge=1)] = None
    sampler: dict[str, Any] = Field(default_factory=dict)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    output: str | None = None

    @model_validator(mode="after")
    def _check(self) -> EvaluateConfig:
        if not Path(self.checkpoint).exists():
            raise ValueError(
                f"there is nothing at {self.checkpoint!r}; give a run's folder or a checkpoint's"
            )
        if self.episodes < 1:
            raise ValueError("episodes=0 evaluates nothing; ask for at least one rollout a task")
        return self
