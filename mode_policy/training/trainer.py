"""The training loop.

All randomness of a step (data order, noise, dropout, routing) is a function of the seed and the step's
number,
so a run that was interrupted and resumed is, bounded by steps and on CPU, bitwise the run that was not.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from torch import Tensor

from mode_policy.checkpoint import load_policy, load_strictly, load_training_state, save_checkpoint
from mode_policy.diffusion.schedules import sigma_of_uniform
from mode_policy.errors import CheckpointError, TrainingDivergedError
from mode_policy.files import link_atomically
from mode_policy.nn.router import expert_shares
from mode_policy.policy import MoDEPolicy, PolicyLoss
from mode_policy.training.config import TrainerConfig
from mode_policy.training.metrics import MetricsLog
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
        self.newest_validation: float | None = None

    # --- the run ------------------------------------------------------------------------------------------

    def run(self) -> TrainingSummary:
        """Train until steps or minutes are used up.

        Raises:
            TrainingDivergedError: if the loss is not finite or explodes; the batch has been saved.
            KeyboardInterrupt: after a checkpoint was written.
        """
        log = MetricsLog(
            self.folder,
            tensorboard=self.config.tensorboard,
            wandb=self.config.wandb,
            config=asdict(self.config) | self.about,
            keep_steps=self.step or None,
        )
        started = time.perf_counter() - self.seconds
        rate = math.nan
        losses: list[PolicyLoss] = []
        mark = (self.step, time.perf_counter())
        mean = math.nan
        try:
            while (share := self._share()) < 1:
                losses.append(self._train_step(share))
                self.seconds = time.perf_counter() - started
                done = self._share() >= 1
                if done or self.step % self.config.log_every == 0:
                    record = self._record(losses, share)
                    self._stop_if_diverged([float(x.denoising) for x in losses])
                    mean = record["loss"]
                    rate = (self.step - mark[0]) * self.config.batch_size / (time.perf_counter() - mark[1])
                    record |= {"seconds": self.seconds, "samples_per_second": rate}
                    if self.validation and (done or self.step % self.config.validate_every == 0):
                        record["validation_loss"] = self.validate()
                    if self.accelerator.is_main_process:
                        log.write(record)
                    if self.progress is not None:
                        self.progress(self._share(), record)
                    losses.clear()
                    mark = (self.step, time.perf_counter())
                if done or self.step % self.config.checkpoint_every == 0:
                    self.save()
                self.seconds = time.perf_counter() - started
        except KeyboardInterrupt:
            self.save()
            raise
        finally:
            log.close()
        checkpoints = self.folder / "checkpoints"
        return TrainingSummary(
            steps=self.step,
            seconds=self.seconds,
            samples_per_second=rate,
            loss=mean,
            validation_loss=self.newest_validation,
            checkpoint=checkpoints / "last",
            best_checkpoint=checkpoints / "best" if self.best is not None else None,
        )

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
            "step": self.step,
            "loss": torch.stack([x.denoising for x in losses]).mean().item(),
            "load_balance": torch.stack([x.load_balance for x in losses]).mean().item(),
            "expert_share_min": (shares_LN.min() / active).item(),
            "expert_share_max": (shares_LN.max() / active).item(),
            "lr": self.config.learning_rate
            * tri_stage(share, 1.0, warmup=self.config.warmup, hold=self.config.hold),
        }

    def _stop_if_diverged(self, losses: list[float]) -> None:
        if self.first_loss is None:
            self.first_loss = losses[0]
        limit = self.config.divergence * max(self.first_loss, 1.0)
        bad = [i for i, x in enumerate(losses) if not x <= limit]
        if not bad:
            return
        step = self.step - len(losses) + bad[0]
        path = self.folder / f"bad_batch_step_{step}.safetensors"
        batch = self.batch(step)
        tensors = {"actions": batch.actions, "action_is_pad": batch.action_is_pad, **batch.observation.states}
        save_file({k: v.cpu().contiguous() for k, v in tensors.items()}, path)
        kept = self.folder / "checkpoints" / "last"
        raise TrainingDivergedError(
            f"the loss became {losses[bad[0]]:.4g} at step {step} (it began at {self.first_loss:.4g}). "
            f"The batch is in {path}; "
            + (
                f"the last good checkpoint is {kept}. "
                if kept.exists()
                else "no checkpoint had been written. "
            )
            + "Look at the batch for outliers, lower trainer.learning_rate or trainer.grad_clip."
        )

    # --- validation and checkpoints -----------------------------------------------------------------------

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
        self.newest_validation = total / count
        return self.newest_validation

    def save(self) -> None:
        """Write a checkpoint, point ``last`` (and ``best``) at it, and drop those nothing points at."""
        if not self.accelerator.is_main_process:
            return
        folder = self.folder / "checkpoints"
        path = folder / f"step_{self.step:07d}"
        improved = self.newest_validation is not None and (
            self.best is None or self.newest_validation < self.best[0]
        )
        if improved and self.newest_validation is not None:
            self.best = (self.newest_validation, self.step)
        if not path.exists():
            save_checkpoint(
                path,
                self.ema,
                self.policy.state_dict(),
                about=self.about | {"step": self.step, "validation_loss": self.newest_validation},
                optimizer=optimizer_tensors(self.optimizer),
                progress={
                    "step": self.step,
                    "seconds": self.seconds,
                    "first_loss": self.first_loss,
                    "best": self.best,
                    "validation_loss": self.newest_validation,
                    "seed": self.config.seed,
                    "batch_size": self.config.batch_size,
                    "world_size": self.accelerator.num_processes,
                },
            )
        link_atomically(folder / "last", path)
        if improved:
            link_atomically(folder / "best", path)
        keep = {(folder / name).resolve() for name in ("last", "best")}
        for old in folder.glob("step_*"):
            if old.resolve() not in keep:
                remove_folder(old)

    def resume(self, checkpoint: Path) -> None:
        """Continue exactly where a checkpoint was written.

        Raises:
            CheckpointError: if it is of another architecture, batch size, seed or number of processes.
        """
        sources: tuple[tuple[Literal["ema", "raw"], MoDEPolicy], ...] = (
            ("ema", self.ema),
            ("raw", self.policy),
        )
        for weights, module in sources:
            load_strictly(module, load_policy(checkpoint, weights=weights).state_dict(), str(checkpoint))
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
        load_optimizer_tensors(self.optimizer, tensors)
        self.step = progress["step"]
        self.seconds = progress["seconds"]
        self.first_loss = progress["first_loss"]
        self.best = tuple(progress["best"]) if progress["best"] else None
        self.newest_validation = progress["validation_loss"]


def _accelerator(config: TrainerConfig) -> Accelerator:
    cuda = torch.cuda.is_available() and config.device != "cpu"
    bf16 = config.precision == "bf16" or (
        config.precision == "auto" and cuda and torch.cuda.is_bf16_supported()
    )
    return Accelerator(cpu=not cuda, mixed_precision="bf16" if bf16 else "no")


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed torch's global generators as a pure function of run, step and process."""
    torch.manual_seed(int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> 1))


def parameter_groups(policy: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Split parameters into those that decay (matrices) and those that do not (norms, biases, positions)."""
    decay: list[torch.nn.Parameter] = []
    keep: list[torch.nn.Parameter] = []
    for name, p in policy.named_parameters():
        if p.requires_grad:
            matrix = p.ndim >= 2 and not name.endswith(("up_bias_NE", "position"))
            (decay if matrix else keep).append(p)
    return [{"params": decay, "weight_decay": weight_decay}, {"params": keep, "weight_decay": 0.0}]


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Flatten an optimizer's state into named tensors, for safetensors."""
    state = optimizer.state_dict()["state"]
    return {f"{i}.{name}": torch.as_tensor(v) for i, entry in state.items() for name, v in entry.items()}


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Invert `optimizer_tensors`."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def remove_folder(path: Path) -> None:
    """Remove a checkpoint that nothing points at."""
    import shutil

    shutil.rmtree(path)
