"""Configuration of the programs; see ``conf/train.yaml`` and ``conf/evaluate.yaml`` for the defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

from mode_datasets.adapt import AdaptConfig
from mode_datasets.published import CATALOGUE
from mode_policy.config import PolicyConfig
from mode_policy.convention import Orientation
from mode_policy.errors import did_you_mean
from mode_policy.evaluation.shards import parse_shard
from mode_policy.training.config import TrainerConfig

_frozen = ConfigDict(extra="forbid")


@dataclass(frozen=True, kw_only=True, config=_frozen)
class TaskConfig:
    """What is learnt and where it is tested.

    Attributes:
        name: of the task, e.g. in titles and folders.
        suite: of `mode_envs`, whose environments the policy is evaluated in; None for demonstrations alone.
        tasks: names of a subset of the suite; None for all of it.
        instruction: what demonstrations of another layout show, where no suite says it.
    """

    name: str
    suite: str | None = None
    tasks: tuple[str, ...] | None = None
    instruction: str | None = None


@dataclass(frozen=True, kw_only=True, config=_frozen)
class PartConfig:
    """A further store of a mixture.

    Attributes:
        path: of the store.
        weight: its share of the batches, relative to the others'.
        any_rate: mix it in though its control rate is another, as the paper's pretraining does.
        adapt: how to read it.
    """

    path: str
    weight: Annotated[float, Field(gt=0)] = 1.0
    any_rate: bool = False
    adapt: AdaptConfig = AdaptConfig()


@dataclass(frozen=True, kw_only=True, config=_frozen)
class DatasetConfig:
    """Where demonstrations come from, and what of them is used.

    Attributes:
        source: ``scripted`` lets scripted experts demonstrate the task, once; ``published`` fetches published
            demonstrations, once; ``path`` is a store there is. A store that exists is used by each of them.
        path: of the store; None for one in ``folder`` that is named after what is in it.
        folder: for stores, and for what they are made of.
        published: name in `mode_datasets.published.CATALOGUE`.
        layout: ``native`` is ours; ``replay_buffer`` is diffusion_policy's zarr format 2, read in place.
        url: where the published data can be downloaded, for messages.
        keys: of a replay buffer: feature key → name of the array.
        features: of a replay buffer: feature key → fields of `mode_policy.types.Feature`, ``shape`` at least.
        convention: of a replay buffer: fields of `mode_policy.convention.Convention`, ``fps`` at least.
        image_orientation: of a replay buffer's images.
        licence: of a replay buffer, for the record.
        episodes: demonstrations to collect of each task.
        cameras: whose pictures collected demonstrations have.
        size: height and width of those pictures.
        noise: standard deviation of the disturbance of the experts' executed actions, in units of half the
            action range.
        no_ops_below: collected steps with less motion than this, as a share of the action range, in which
            nothing else happens are left out, see `mode_envs.no_ops`; 0 keeps all.
        allow_incomplete: go on with the demonstrations there are where a scripted expert failed too often.
        seed: root of the collected episodes' seeds.
        state_keys: features that the policy reads; None for all.
        adapt: how to read demonstrations of another convention, see `mode_datasets.adapt`.
        mixture: further stores that are mixed in, see `mode_datasets.mixture`.
        weight: share of the batches from this store, relative to those of the mixture.
        balance_tasks: draw all tasks equally often, however many demonstrations they have.
        task_weights: name of a task → how much more (or less) often than otherwise it is drawn.
        workers: processes that make batches ahead of training; 0 makes them in between.
        cache_gb: images are held in memory if they fit into so many gigabytes.
        validation_fraction: share of each task's episodes that is held out.
    """

    source: Literal["scripted", "published", "path"] = "path"
    path: str | None = None
    folder: str = "datasets/store"
    published: str | None = None
    layout: Literal["native", "replay_buffer"] = "native"
    url: str | None = None
    keys: dict[str, str] = Field(default_factory=dict)
    features: dict[str, dict[str, Any]] = Field(default_factory=dict)
    convention: dict[str, Any] = Field(default_factory=dict)
    image_orientation: Orientation = "upright"
    licence: str | None = None
    episodes: Annotated[int, Field(ge=1)] = 40
    cameras: tuple[str, ...] = ()
    size: Annotated[int, Field(ge=32)] = 128
    noise: Annotated[float, Field(ge=0)] = 0.0
    no_ops_below: Annotated[float, Field(ge=0, lt=1)] = 0.0
    allow_incomplete: bool = False
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    state_keys: tuple[str, ...] | None = None
    adapt: AdaptConfig = AdaptConfig()
    mixture: tuple[PartConfig, ...] = ()
    weight: Annotated[float, Field(gt=0)] = 1.0
    balance_tasks: bool = False
    task_weights: dict[str, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)
    workers: Annotated[int, Field(ge=0)] = 0
    cache_gb: Annotated[float, Field(ge=0)] = 4.0
    validation_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.05

    @model_validator(mode="after")
    def _check(self) -> DatasetConfig:
        if self.source == "path" and self.path is None:
            raise ValueError("source=path needs the store's place: path=…")
        if self.published is not None and self.published not in CATALOGUE:
            raise ValueError(
                f"unknown published data {self.published!r}.{did_you_mean(self.published, CATALOGUE)}"
            )
        if self.source == "published" and self.published is None:
            raise ValueError(
                "source=published, but no data are published for this task; use path or scripted"
            )
        return self


@dataclass(frozen=True, kw_only=True, config=_frozen)
class EvaluationConfig:
    """How rollouts are made.

    Attributes:
        episodes: starts of each task; 0 only trains.
        repeats: rollouts from each start, with other noise for the policy; None for the benchmark's own
            number: 3 where it publishes initial states, else 1.
        seed: root of the rollouts' seeds, apart from those of the demonstrations.
        lanes: environments in flight, in one batch of inference.
        workers: processes that they are spread over; 0 for none but this one, None for one a core.
        videos: rollouts of each task to film, where pictures can be made.
        video_size: height and width of a picture in pixels.
        weights: of the checkpoint: averaged (``ema``) or as the optimizer left them (``raw``).
    """

    episodes: Annotated[int, Field(ge=0)] = 20
    repeats: Annotated[int | None, Field(ge=1)] = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 100000
    lanes: Annotated[int, Field(ge=1)] = 20
    workers: Annotated[int | None, Field(ge=0)] = None
    videos: Annotated[int, Field(ge=0)] = 1
    video_size: Annotated[int, Field(ge=16)] = 240
    weights: Literal["ema", "raw"] = "ema"


@dataclass(frozen=True, kw_only=True, config=_frozen)
class TrainConfig:
    """Everything of ``train.py``.

    Attributes:
        task: what is learnt.
        dataset: what it is learnt from.
        policy: what learns.
        trainer: how.
        evaluation: how what was learnt is measured.
        run_dir: folder of the run; in a multirun Hydra chooses one for each.
        resume: folder of a run to continue, or None.
        init_from: checkpoint whose weights training starts from (`mode_policy.training.finetune`), or None.
    """

    task: TaskConfig
    dataset: DatasetConfig
    policy: PolicyConfig
    trainer: TrainerConfig
    evaluation: EvaluationConfig
    run_dir: Annotated[str, Field(min_length=1)]
    resume: str | None = None
    init_from: str | None = None

    @model_validator(mode="after")
    def _check(self) -> TrainConfig:
        if self.task.suite is None and self.evaluation.episodes:
            raise ValueError(
                "task.suite names no environments to evaluate in; train only, with evaluation.episodes=0"
            )
        return self


@dataclass(frozen=True, kw_only=True, config=_frozen)
class EvaluateConfig(EvaluationConfig):
    """Everything of ``evaluate.py``: how rollouts are made, and of what.

    Attributes:
        checkpoint: its folder, or a run's for its newest one.
        task: a suite, a task or several of them; None for what the checkpoint was trained on.
        shard: ``"0/4"`` to ``"3/4"`` on four machines, each of which makes its part of the rollouts; then
            ``mode-merge`` puts the parts together.
        execute: actions of a chunk that are executed; None for the checkpoint's own number.
        sampler: fields of `SamplerConfig` that differ from the checkpoint's; None for its own.
        device: ``auto`` is a GPU where there is one.
        output: folder for the results; None for one beside the checkpoint.
    """

    checkpoint: str
    task: str | tuple[str, ...] | None = None
    shard: str | None = None
    execute: Annotated[int | None, Field(ge=1)] = None
    sampler: dict[str, Any] = Field(default_factory=dict)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    output: str | None = None

    @model_validator(mode="after")
    def _check(self) -> EvaluateConfig:
        if not Path(self.checkpoint).expanduser().exists():
            raise ValueError(
                f"there is nothing at {self.checkpoint!r}; give a run's folder or a checkpoint's"
            )
        if self.shard is not None:
            parse_shard(self.shard)
        if self.episodes < 1:
            raise ValueError("episodes=0 evaluates nothing; ask for at least one rollout a task")
        return self
