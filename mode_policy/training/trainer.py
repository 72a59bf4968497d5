"""The training loop.

All randomness of a step (data order, noise, dropout, routing) is a function of the seed and its number;
a run that was interrupted and resumed is, bounded by steps and on CPU, bitwise the run that was not.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import torch

from mode_policy.diffusion.schedules import sigma_of_uniform
from mode_policy.nn.block import MoDEBlock
from mode_policy.policy import MoDEPolicy, PolicyLoss
from mode_policy.training.checkpoints import Checkpoints, TrainingState
from mode_policy.training.config import TrainerConfig
from mode_policy.training.divergence import describe_divergence, find_divergence, save_batch
from mode_policy.training.interrupt import DeferredInterrupt
from mode_policy.training.loss import StepLoss, action_weights, mean_of, of_all_processes
from mode_policy.training.metrics import MetricsLog, read_metrics
from mode_policy.training.optimizer import parameter_groups
from mode_policy.training.processes import Processes
from mode_policy.training.schedule import ema_decay, tri_stage
from mode_policy.training.sharding import local, shard
from mode_policy.types import Batch


class Progress(Protocol):
    """What shows a person how far a run is."""

    def __call__(self, share: float, record: dict[str, float]) -> None:
        """Take the finished share of the run (0 … 1) and the newest record of the loss."""
        ...


@dataclass(frozen=True)
class TrainingSummary:
    """What a run came to.

    Attributes:
        steps: optimizer steps, over all resumes.
        seconds: of training, over all resumes.
        samples_per_second: windows of all processes, on average.
        loss: newest denoising loss; NaN before the first record.
        validation_loss: newest, or None without validation.
        checkpoint: the newest.
        best_checkpoint: that of the lowest validation loss, or None without validation.
    """

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
        batch: maps a step's number to its batch, or to this process's share of it.
        validation: batches of held-out windows, the same at every validation and in every process.
        folder: of the run; checkpoints go to ``folder/checkpoints``.
        about: JSON that each checkpoint carries (task, dataset, command).
        progress: is told after each record of the loss.
        processes: that train together; those of the environment by default.
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
        processes: Processes | None = None,
    ) -> None:
        self.config = config
        self.batch = batch
        self.validation = validation
        self.folder = folder
        self.about = about or {}
        self.progress = progress
        self.processes = processes or Processes(config)
        self.accelerator = self.processes.accelerator
        self.device = self.accelerator.device
        self.policy = policy.to(self.device).train()
        if config.freeze_routers:
            for block in self.policy.denoiser.blocks:
                block.router.requires_grad_(False)
        for block in self.policy.denoiser.blocks:
            cast(MoDEBlock, block).recompute = config.activation_checkpointing
        self.ema = copy.deepcopy(self.policy).eval().requires_grad_(False)
        sharded = config.sharding == "full" and self.processes.count > 1
        if sharded:
            for policy in (self.policy, self.ema):
                shard(policy, self.processes.count)
        self.optimizer = torch.optim.AdamW(
            parameter_groups(self.policy, config.weight_decay),
            lr=config.learning_rate,
            betas=config.betas,
            fused=True,
        )
        if config.compile:
            for network in self.policy.networks:
                network.compile(fullgraph=True)
        self.optimizer = self.accelerator.prepare(self.optimizer)
        self.model = self.policy if sharded else self.accelerator.prepare(self.policy)
        fixed = {"seed": config.seed, "batch_size": config.batch_size}
        self.checkpoints = Checkpoints(folder, self.policy, self.ema, self.optimizer, fixed)
        self.state = TrainingState()

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return self.state.step

    def resume(self, checkpoint: Path) -> None:
        """Continue exactly where a checkpoint was written; raises as `Checkpoints.restore` does."""
        self.state = self.checkpoints.restore(checkpoint)

    def run(self) -> TrainingSummary:
        """Train until steps or minutes are used up.

        Raises:
            TrainingDivergedError: if the loss is not finite or explodes; the batch has been saved.
            KeyboardInterrupt: after Ctrl-C or SIGTERM, when the step is done and a checkpoint is written.
        """
        log: MetricsLog | None = None
        if self.processes.main:
            self.checkpoints.remove_leftovers()
            log = MetricsLog(
                self.folder,
                tensorboard=self.config.tensorboard,
                wandb=self.config.wandb,
                trackio=self.config.trackio,
                config=asdict(self.config) | self.about,
                keep_steps=self.step or None,
            )
        try:
            with DeferredInterrupt() as interrupt:
                self._loop(log, interrupt)
        finally:
            if log is not None:
                log.close()
        losses = [r["loss"] for r in read_metrics(self.folder / "metrics.jsonl") if "loss" in r]
        return TrainingSummary(
            steps=self.step,
            seconds=self.state.seconds,
            samples_per_second=self.step * self.config.batch_size / max(self.state.seconds, 1e-9),
            loss=losses[-1] if losses else math.nan,
            validation_loss=self.state.validation_loss,
            checkpoint=self.checkpoints.last,
            best_checkpoint=self.checkpoints.best if self.state.best is not None else None,
        )

    def _loop(self, log: MetricsLog | None, interrupt: DeferredInterrupt) -> None:
        state, config = self.state, self.config
        started = time.perf_counter() - state.seconds
        losses: list[StepLoss] = []  # of the steps since the last record
        mark = time.perf_counter()
        share = self._share()
        while share < 1:
            lr = config.learning_rate * tri_stage(share, 1.0, warmup=config.warmup, hold=config.hold)
            losses.append(self._train_step(lr))
            state.seconds, stop = self.processes.agree(time.perf_counter() - started, interrupt.requested)
            # Asked once: what follows takes time, and a run must not end without its last checkpoint.
            share = self._share()
            ends = share >= 1 or stop
            record: dict[str, float] = {}
            if self._due(config.log_every, ends):
                self._stop_if_diverged(losses)
                rate = len(losses) * config.batch_size / (time.perf_counter() - mark)
                record = self._record(losses) | {"lr": lr, "samples_per_second": rate}
                losses = []
            if self.validation and self._due(config.validate_every, ends):
                record["validation_loss"] = self.validate()
            if record and log is not None:
                record |= {"step": state.step, "seconds": state.seconds}
                log.write(record)
                if self.progress is not None and "loss" in record:
                    self.progress(share, record)
            if self._due(config.checkpoint_every, ends):
                self._stop_if_diverged(losses)
                self.save()
            if not losses:
                mark = time.perf_counter()
            state.seconds = time.perf_counter() - started
            if stop:
                raise KeyboardInterrupt

    def _share(self) -> float:
        """Finished share of the run, by steps or by the clock."""
        by_steps = self.step / self.config.steps if self.config.steps else 0.0
        by_clock = self.state.seconds / (60 * self.config.minutes) if self.config.minutes else 0.0
        return max(by_steps, by_clock)

    def _due(self, every: int, ends: bool) -> bool:
        return ends or self.step % every == 0

    def _train_step(self, lr: float) -> StepLoss:
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        parts = self.batch(self.step).split(self.processes.parts)
        weights = action_weights([part.action_is_pad.to(self.device) for part in parts], self.processes)
        kept = [self._gradient(*part) for part in zip(range(len(parts)), parts, weights, strict=True)]
        self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.grad_clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.state.step += 1
        self._average()
        return mean_of(kept)

    def _gradient(self, number: int, part: Batch, weight: torch.Tensor | float) -> StepLoss:
        """Add a part's share to the gradient; processes exchange theirs once, with the last part."""
        last = number == self.processes.parts - 1
        with nullcontext() if last else self.accelerator.no_sync(self.model):
            draws = self.processes.draws(self.config.seed, self.step, number)
            with draws as generator, self.accelerator.autocast():
                loss: PolicyLoss = self.model(part.to(self.device), generator=generator)
            total, kept = of_all_processes(loss, weight, self.policy.config.loss, self.processes)
            self.accelerator.backward(total / self.processes.parts)
        return kept

    @torch.no_grad()
    def _average(self) -> None:
        decay = ema_decay(self.step, power=self.config.ema_power, maximum=self.config.ema_max)
        torch._foreach_lerp_(local(self.ema.parameters()), local(self.policy.parameters()), 1 - decay)
        # Buffers, such as an image encoder's running statistics, are averages already.
        for mean, own in zip(self.ema.buffers(), self.policy.buffers(), strict=True):
            mean.copy_(own)

    def _record(self, losses: Sequence[StepLoss]) -> dict[str, float]:
        mean = mean_of(losses)
        experts = self.policy.config.denoiser.experts
        active = experts.active - experts.shared
        return {
            "loss": mean.denoising.item(),
            "load_balance": (self.processes.sum(mean.load_balance) / self.processes.count).item(),
            "expert_share_min": (mean.shares_LN.min() / active).item(),
            "expert_share_max": (mean.shares_LN.max() / active).item(),
        }

    def _stop_if_diverged(self, recent: Sequence[StepLoss]) -> None:
        losses = [float(x.denoising) for x in recent]
        if self.state.first_loss is None and losses:
            self.state.first_loss = losses[0]
        limit = self.config.divergence * max(self.state.first_loss or 0.0, 1.0)
        finite = torch.stack([p.isfinite().all() for p in local(self.policy.parameters())]).all()
        found = find_divergence(losses, limit, not self.processes.any(not finite))
        if found is None:
            return
        index, what = found
        step = self.step - len(losses) + index
        mine = f"_process_{self.processes.rank}" if self.processes.count > 1 else ""
        path = self.folder / f"bad_batch_step_{step}{mine}.safetensors"
        save_batch(path, self.batch(step))
        self.processes.wait()
        raise describe_divergence(what, step, self.state.first_loss, path, self.checkpoints.last)

    @torch.no_grad()
    def validate(self) -> float:
        """Denoising loss of the averaged weights on the held-out windows.

        Noise levels are the midpoints of equal shares of the training density and the noise is fixed, so
        that two validations differ by the weights alone. Processes take the batches in turns.
        """
        generator = torch.Generator().manual_seed(self.config.seed)
        draws = []
        for batch in self.validation:
            n = len(batch.actions)
            u = (torch.randperm(n, generator=generator) + 0.5) / n
            draws.append((u, torch.randn(batch.actions.shape, generator=generator)))
        sums = torch.zeros(2, dtype=torch.float64, device=self.device)
        for first in range(0, len(draws), self.processes.count):
            number = first + self.processes.rank
            # Sharded weights are gathered by all: who has no batch left goes along, and counts nothing.
            counts = number < len(draws)
            taken = number if counts else -1
            batch, (u, noise) = self.validation[taken], draws[taken]
            sigma = sigma_of_uniform(u, self.policy.config.density, self.policy.config.sigma_data)
            with self.accelerator.autocast():
                loss = self.ema(
                    batch.to(self.device), sigma=sigma.to(self.device), noise=noise.to(self.device)
                )
            n = len(batch.actions) * counts
            sums += torch.stack([n * loss.denoising.double(), sums.new_tensor(n)])
        sums = self.processes.sum(sums)
        self.state.validation_loss, self.state.validated_step = (sums[0] / sums[1]).item(), self.step
        return self.state.validation_loss

    def save(self) -> None:
        """Write a checkpoint; see `Checkpoints.save`."""
        self.state.processes = self.processes.count
        self.checkpoints.save(self.state, self.about, writes=self.processes.main)
        self.processes.wait()
