"""The training loop.

All randomness of a step (data order, noise, dropout, routing) is a function of the seed and its number;
a run that was interrupted and resumed is, bounded by steps and on CPU, bitwise the run that was not.
"""

from __future__ import annotations

import copy
import math
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors.torch import save_file

from mode_policy.checkpoint import load_policy, load_strictly, load_training_state, save_checkpoint
from mode_policy.config import to_dict
from mode_policy.diffusion.schedules import sigma_of_uniform
from mode_policy.errors import CheckpointError, ConfigError, TrainingDivergedError
from mode_policy.files import link_atomically, replacing
from mode_policy.nn.router import expert_shares
from mode_policy.normalization import statistics_to_json
from mode_policy.policy import MoDEPolicy, PolicyLoss
from mode_policy.training.config import TrainerConfig
from mode_policy.training.interrupt import DeferredInterrupt
from mode_policy.training.metrics import MetricsLog, read_metrics
from mode_policy.training.optimizer import load_optimizer_tensors, optimizer_tensors, parameter_groups
from mode_policy.training.schedule import ema_decay, tri_stage
from mode_policy.types import Batch


class Progress(Protocol):
    """What shows a person how far a run is."""

    def __call__(self, share: float, record: dict[str, float]) -> None:
        """Take the finished share of the run (0 … 1) and the newest metrics."""
        ...


@dataclass(frozen=True)
class TrainingSummary:
    """What a run came to."""

    steps: int
    seconds: float
    samples_per_second: float
    loss: float
    validation_loss: float | None
    checkpoint: Path
    best_checkpoint: Path | None


class Trainer:
    """Trains a policy; see `TrainerConfig`.

    Args:
        policy: to train, on any device.
        config: of the run.
        batch: maps a step's number to its batch.
        validation: batches of held-out windows, the same at every validation.
        folder: of the run; checkpoints go to ``folder/checkpoints``.
        about: JSON that each checkpoint carries (task, dataset, command).
        progress: is told after each record.
    """

    def __init__(
        self,
        policy: MoDEPolicy,
        config: TrainerConfig,
        batch: Callable[[int], Batch],
        validation: Sequence[Batch],
        folder: Path,
        *,
        about: dict[str, Any] | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.config = config
        self.batch = batch
        self.validation = validation
        self.folder = folder
        self.about = about or {}
        self.progress = progress
        self.accelerator = _accelerator(config)
        self.device = self.accelerator.device
        self.policy = policy.to(self.device).train()
        if config.freeze_routers:
            for block in self.policy.denoiser.blocks:
                block.router.requires_grad_(False)
        self.ema = copy.deepcopy(self.policy).eval().requires_grad_(False)
        self.optimizer = torch.optim.AdamW(
            parameter_groups(self.policy, config.weight_decay),
            lr=config.learning_rate,
            betas=config.betas,
            fused=True,
        )
        if config.compile:
            self.policy.denoiser.compile(fullgraph=True)
        self.model, self.optimizer = self.accelerator.prepare(self.policy, self.optimizer)
        self.step = 0
        self.seconds = 0.0
        self.first_loss: float | None = None
        self.best: tuple[float, int] | None = None
        self.validation_loss: float | None = None
        self.validated_step = -1

    def run(self) -> TrainingSummary:
        """Train until steps or minutes are used up.

        Raises:
            TrainingDivergedError: if the loss is not finite or explodes; the batch has been saved.
            KeyboardInterrupt: after Ctrl-C or SIGTERM, when the step is done and a checkpoint is written.
        """
        log = MetricsLog(
            self.folder,
            tensorboard=self.config.tensorboard,
            wandb=self.config.wandb,
            config=asdict(self.config) | self.about,
            keep_steps=self.step or None,
        )
        try:
            with DeferredInterrupt() as interrupt:
                self._loop(log, interrupt)
        finally:
            log.close()
        checkpoints = self.folder / "checkpoints"
        losses = [r["loss"] for r in read_metrics(log.path) if "loss" in r]
        return TrainingSummary(
            steps=self.step,
            seconds=self.seconds,
            samples_per_second=self.step * self.config.batch_size / max(self.seconds, 1e-9),
            loss=losses[-1] if losses else math.nan,
            validation_loss=self.validation_loss,
            checkpoint=checkpoints / "last",
            best_checkpoint=checkpoints / "best" if self.best is not None else None,
        )

    def _loop(self, log: MetricsLog, interrupt: DeferredInterrupt) -> None:
        started = time.perf_counter() - self.seconds
        losses: list[PolicyLoss] = []  # of the steps since the last record
        mark = time.perf_counter()
        while (share := self._share()) < 1:
            losses.append(self._train_step(share))
            self.seconds = time.perf_counter() - started
            ends = self._share() >= 1 or interrupt.requested

            def due(every: int, ends: bool = ends) -> bool:
                return ends or self.step % every == 0

            record: dict[str, float] = {}
            if due(self.config.log_every):
                self._stop_if_diverged(losses)
                rate = len(losses) * self.config.batch_size / (time.perf_counter() - mark)
                record = self._record(losses, share) | {"samples_per_second": rate}
                losses = []
            if self.validation and due(self.config.validate_every):
                record["validation_loss"] = self.validate()
            if record:
                record |= {"step": self.step, "seconds": self.seconds}
                if self.accelerator.is_main_process:
                    log.write(record)
                if self.progress is not None:
                    self.progress(self._share(), record)
            if due(self.config.checkpoint_every):
                self._stop_if_diverged(losses)
                self.save()
            if not losses:
                mark = time.perf_counter()
            self.seconds = time.perf_counter() - started
            if interrupt.requested:
                raise KeyboardInterrupt

    def _share(self) -> float:
        """Finished share of the run, by steps or by the clock."""
        by_steps = self.step / self.config.steps if self.config.steps else 0.0
        by_clock = self.seconds / (60 * self.config.minutes) if self.config.minutes else 0.0
        return max(by_steps, by_clock)

    def _train_step(self, share: float) -> PolicyLoss:
        seed_step(self.config.seed, self.step, self.accelerator.process_index)
        batch = self.batch(self.step).to(self.device)
        lr = self.config.learning_rate * tri_stage(
            share, 1.0, warmup=self.config.warmup, hold=self.config.hold
        )
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        with self.accelerator.autocast():
            loss: PolicyLoss = self.model(batch)
        self.accelerator.backward(loss.total)
        self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.grad_clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        self._average()
        return loss._replace(total=loss.total.detach())

    @torch.no_grad()
    def _average(self) -> None:
        decay = ema_decay(self.step, power=self.config.ema_power, maximum=self.config.ema_max)
        raw = [p.detach() for p in self.policy.parameters()]
        torch._foreach_lerp_(list(self.ema.parameters()), raw, 1 - decay)

    def _record(self, losses: Iterable[PolicyLoss], share: float) -> dict[str, float]:
        losses = list(losses)
        shares_LN = torch.stack([expert_shares(x.routings) for x in losses]).mean(0)
        active = losses[0].routings[0].expert_RK.shape[1]
        return {
            "loss": torch.stack([x.denoising for x in losses]).mean().item(),
            "load_balance": torch.stack([x.load_balance for x in losses]).mean().item(),
            "expert_share_min": (shares_LN.min() / active).item(),
            "expert_share_max": (shares_LN.max() / active).item(),
            "lr": self.config.learning_rate
            * tri_stage(share, 1.0, warmup=self.config.warmup, hold=self.config.hold),
        }

    def _stop_if_diverged(self, recent: Sequence[PolicyLoss]) -> None:
        losses = [float(x.denoising) for x in recent]
        if self.first_loss is None and losses:
            self.first_loss = losses[0]
        limit = self.config.divergence * max(self.first_loss or 0.0, 1.0)
        bad = [i for i, x in enumerate(losses) if not x <= limit]
        finite = all(bool(p.isfinite().all()) for p in self.policy.parameters())
        if not bad and finite:
            return
        at = bad[0] if bad else len(losses) - 1
        step = self.step - len(losses) + at
        path = self.folder / f"bad_batch_step_{step}.safetensors"
        batch = self.batch(step)
        tensors = {"actions": batch.actions, "action_is_pad": batch.action_is_pad, **batch.observation.states}
        if batch.observation.instruction is not None:
            tensors["instruction"] = batch.observation.instruction
        with replacing(path) as partial:
            save_file({k: v.cpu().contiguous() for k, v in tensors.items()}, partial)
        kept = self.folder / "checkpoints" / "last"
        what = f"the loss became {losses[at]:.4g}" if bad else "the weights became non-finite"
        raise TrainingDivergedError(
            f"{what} at step {step} (the loss began at {self.first_loss:.4g}). The batch is in {path}; "
            + (
                f"the last good checkpoint is {kept}. "
                if kept.exists()
                else "no checkpoint had been written. "
            )
            + "Look at the batch for outliers, lower trainer.learning_rate or trainer.grad_clip."
        )

    @torch.no_grad()
    def validate(self) -> float:
        """Denoising loss of the averaged weights on the held-out windows.

        Noise levels are the midpoints of equal shares of the training density and the noise is fixed, so
        that two validations differ by the weights alone.
        """
        generator = torch.Generator().manual_seed(self.config.seed)
        total, count = 0.0, 0
        for batch in self.validation:
            n = len(batch.actions)
            u = (torch.randperm(n, generator=generator) + 0.5) / n
            noise = torch.randn(batch.actions.shape, generator=generator)
            sigma = sigma_of_uniform(u, self.policy.config.density, self.policy.config.sigma_data)
            with self.accelerator.autocast():
                loss = self.ema(
                    batch.to(self.device), sigma=sigma.to(self.device), noise=noise.to(self.device)
                )
            total, count = total + n * float(loss.denoising), count + n
        self.validation_loss, self.validated_step = total / count, self.step
        return self.validation_loss

    def save(self) -> None:
        """Write a checkpoint, point ``last`` (and ``best``) at it, and drop those nothing points at."""
        if not self.accelerator.is_main_process:
            return
        folder = self.folder / "checkpoints"
        path = folder / f"step_{self.step:07d}"
        # Only a validation of these very weights says whether they are the best.
        if self.validation_loss is not None and self.validated_step == self.step:
            self.best = min(self.best or (math.inf, 0), (self.validation_loss, self.step))
        if not path.exists():
            save_checkpoint(
                path,
                self.ema,
                self.policy.state_dict(),
                about=self.about | {"step": self.step, "validation_loss": self.validation_loss},
                optimizer=optimizer_tensors(self.optimizer, self.policy),
                progress={
                    "step": self.step,
                    "seconds": self.seconds,
                    "first_loss": self.first_loss,
                    "best": self.best,
                    "validation_loss": self.validation_loss,
                    "seed": self.config.seed,
                    "batch_size": self.config.batch_size,
                    "world_size": self.accelerator.num_processes,
                },
            )
        link_atomically(folder / "last", path)
        if self.best is not None and self.best[1] == self.step:
            link_atomically(folder / "best", path)
        keep = {(folder / name).resolve() for name in ("last", "best")}
        for old in folder.glob("step_*"):
            if old.resolve() not in keep:
                shutil.rmtree(old)

    def resume(self, checkpoint: Path) -> None:
        """Continue exactly where a checkpoint was written.

        Raises:
            CheckpointError: if it is of another architecture, batch size, seed or number of processes.
        """
        saved = load_policy(checkpoint)
        check_same_policy(saved, self.policy, checkpoint)
        load_strictly(self.ema, saved.state_dict(), str(checkpoint))
        load_strictly(self.policy, load_policy(checkpoint, weights="raw").state_dict(), str(checkpoint))
        tensors, progress = load_training_state(checkpoint)
        for name, own in (
            ("seed", self.config.seed),
            ("batch_size", self.config.batch_size),
            ("world_size", self.accelerator.num_processes),
        ):
            if progress[name] != own:
                raise CheckpointError(
                    f"{checkpoint} was trained with {name}={progress[name]}, this run has {own}; an exact "
                    f"resume needs the same {name}"
                )
        load_optimizer_tensors(self.optimizer, self.policy, tensors)
        self.step = progress["step"]
        self.seconds = progress["seconds"]
        self.first_loss = progress["first_loss"]
        self.best = tuple(progress["best"]) if progress["best"] else None
        self.validation_loss = progress["validation_loss"]


def check_same_policy(saved: MoDEPolicy, policy: MoDEPolicy, checkpoint: Path) -> None:
    """Hold a policy to the one that a checkpoint continues; only the sampler may differ.

    Raises:
        CheckpointError: naming what differs.
    """
    ours, theirs = (flat(to_dict(replace(p.config, sampler=policy.config.sampler))) for p in (policy, saved))
    differ = [f"{k}={theirs[k]}, now {ours[k]}" for k in ours if ours[k] != theirs[k]]
    if saved.features != policy.features:
        differ.append("the dataset's features")
    elif statistics_to_json(saved.statistics) != statistics_to_json(policy.statistics):
        differ.append("the dataset's statistics")
    if differ:
        shown = "; ".join(differ[:5])
        raise CheckpointError(
            f"{checkpoint} was made for another architecture or dataset: {shown}. "
            "Undo the change or start a new run"
        )


def flat(data: dict[str, Any], prefix: str = "policy.") -> dict[str, Any]:
    """Flatten nested configuration to dotted names."""
    found: dict[str, Any] = {}
    for key, value in data.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


def _accelerator(config: TrainerConfig) -> Accelerator:
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("trainer.device=cuda, but torch finds no GPU; use trainer.device=cpu or auto")
    cuda = torch.cuda.is_available() and config.device != "cpu"
    bf16 = config.precision == "bf16" or (
        config.precision == "auto" and cuda and torch.cuda.is_bf16_supported()
    )
    # Accelerate remembers the first precision of a process; sweeps may ask for another.
    AcceleratorState._reset_state(reset_partial_state=True)
    return Accelerator(cpu=not cuda, mixed_precision="bf16" if bf16 else "no")


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed torch's global generators as a pure function of run, step and process."""
    torch.manual_seed(int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> 1))
