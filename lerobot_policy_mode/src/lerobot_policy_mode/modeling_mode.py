"""`mode_policy.policy.MoDEPolicy` as a policy of LeRobot.

Legend: B batch, H history, C chunk, A action dimension.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from huggingface_hub import ModelCard
from lerobot.policies.pretrained import PreTrainedPolicy
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from lerobot_policy_mode import batches
from lerobot_policy_mode.card import with_description
from lerobot_policy_mode.configuration_mode import ModeConfig
from lerobot_policy_mode.demonstrations import observed_keys, read_demonstrations
from lerobot_policy_mode.figures import figures
from lerobot_policy_mode.instructions import Instructions
from lerobot_policy_mode.realtime import left_over_prefix
from mode_policy.checkpoint import load_strictly
from mode_policy.diffusion.prefix import Prefix
from mode_policy.errors import CheckpointError
from mode_policy.nn.block import MoDEBlock
from mode_policy.policy import MoDEPolicy
from mode_policy.training.optimizer import parameter_groups
from mode_policy.training.schedule import ema_decay
from mode_policy.types import IMAGE_PREFIX, Observation, feature_kind


class ModePolicy(PreTrainedPolicy):
    """A MoDE policy, its average over training, and the instructions that it knows.

    ``model`` is what the optimizer trains; ``ema`` is its average, which acts and validates.

    Args:
        config: whose features LeRobot has filled in; the policy adds what the data set said.
        dataset_stats: statistics of the data set.
        dataset_meta: of the data set.

    Raises:
        DataError: if features do not fit, or statistics are missing.
        ConfigError: if a setting cannot be used.
    """

    config_class = ModeConfig
    name = "mode"
    _fsdp_wrap_modules = [MoDEBlock.__name__]  # noqa: RUF012 - as LeRobot declares it

    config: ModeConfig
    ema_updates: Tensor

    def __init__(
        self,
        config: ModeConfig,
        dataset_stats: Mapping[str, Mapping[str, Any]] | None = None,
        dataset_meta: Any = None,
        **_: Any,
    ) -> None:
        super().__init__(config)
        config.validate_features()
        known = read_demonstrations(config, dataset_stats, dataset_meta)
        self.keys = observed_keys(config)
        cameras = tuple(k.removeprefix(IMAGE_PREFIX) for k in self.keys if feature_kind(k) == "image")
        self.instructions: Instructions | None = None
        if config.language is not None:
            self.instructions = Instructions(config.language, known.instructions, known.width)
        table = None if self.instructions is None else self.instructions.table()
        self.model = MoDEPolicy(
            config.policy_config(cameras), known.features, known.statistics, table, known.convention
        )
        if config.freeze_routers:
            for block in self.model.denoiser.blocks:
                block.router.requires_grad_(False)
        self.ema: MoDEPolicy | None = self._copy() if config.ema else None
        self.register_buffer("ema_updates", torch.zeros((), dtype=torch.int64))
        config.cameras = list(cameras)
        config.input_features = {key: config.input_features[key] for key in self.keys.values()}
        # How many instructions the weights that may be loaded now have; the data set's new ones come after.
        self._recorded = len((config.demonstrations or {}).get("instructions", ()))
        config.demonstrations = known.to_json() | {"width": 0 if table is None else table.embeddings.shape[1]}
        self.reset()

    @property
    def acting(self) -> MoDEPolicy:
        """The network that acts: the average where there is one."""
        return self.model if self.ema is None else self.ema

    # Training

    def get_optim_params(self) -> list[dict[str, Any]]:
        """Matrices with weight decay, everything else without."""
        return parameter_groups(self.model, self.config.optimizer_weight_decay)

    def forward(
        self, batch: Mapping[str, Any], reduction: Literal["mean", "none"] = "mean"
    ) -> tuple[Tensor, dict[str, float]]:
        """Return the loss of a batch and figures to log.

        In training mode it is the loss of the weights that are trained, else that of their average.

        Args:
            batch: from LeRobotDataset; positions that ``action_is_pad`` marks have no part in the loss.
            reduction: "none" for the loss of each sample ``(B,)``, whose mean is the loss of the batch.

        Raises:
            DataError: if something is missing or has another shape.
        """
        if reduction not in ("mean", "none"):
            raise ValueError(f"reduction is {reduction!r}; it is 'mean' or 'none'")
        network = self.model if self.training else self.acting
        seen = self._observe(batches.observed(batch, self.keys, self.model.features), batch)
        data = batches.training_batch(batch, seen, self.config.chunk_size, self.model.action_dim)
        with self._precision():
            loss = network(data)
        return loss.total if reduction == "mean" else loss.per_sample_B, figures(loss)

    @torch.no_grad()
    def update(self) -> None:
        """Average the weights; LeRobot calls it after each step of the optimizer."""
        if self.ema is None:
            return
        self.ema_updates += 1
        decay = ema_decay(int(self.ema_updates), power=self.config.ema_power, maximum=self.config.ema_max)
        torch._foreach_lerp_(list(self.ema.parameters()), list(self.model.parameters()), 1 - decay)
        # Buffers, such as an image encoder's running statistics, are averages already.
        for mean, own in zip(self.ema.buffers(), self.model.buffers(), strict=True):
            mean.copy_(own)

    def train(self, mode: bool = True) -> ModePolicy:
        """Set the mode; the average is never trained, nor running statistics beside adapters."""
        super().train(mode)
        if self.ema is not None:
            self.ema.eval()
        if self.config.use_peft:
            # What is saved then is the adapters alone.
            for module in self.model.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    # Acting

    def reset(self) -> None:
        """Begin an episode."""
        self._history: deque[dict[str, Tensor]] = deque(maxlen=self.config.n_obs_steps)
        self._queue: deque[Tensor] = deque()

    @torch.no_grad()
    def select_action(self, batch: Mapping[str, Any], noise: Tensor | None = None) -> Tensor:
        """Return the next action ``(B, A)``, raw units; a new chunk is sampled when the last is used up.

        Before the first observation there is none: it then stands for the history.
        """
        now = batches.observed(batch, self.keys, self.model.features)
        self._history.extend([now] * (1 if self._history else self.config.n_obs_steps))
        if not self._queue:
            values = {key: torch.stack([step[key] for step in self._history], 1) for key in now}
            chunk_BCA = self._act(self._observe(values, batch), noise)
            self._queue.extend(chunk_BCA[:, : self.config.n_action_steps].unbind(1))
        return self._queue.popleft()

    @torch.no_grad()
    def predict_action_chunk(
        self,
        batch: Mapping[str, Any],
        noise: Tensor | None = None,
        inference_delay: int | None = None,
        prev_chunk_left_over: Tensor | None = None,
        execution_horizon: int | None = None,
    ) -> Tensor:
        """Return an action chunk ``(B, C, A)``, raw units.

        Args:
            batch: observations ``(B, …)`` or ``(B, H, …)``.
            noise: standard normal start ``(B, C, A)``; drawn by default.
            inference_delay: leading actions of the chunk that will have been executed when it arrives.
            prev_chunk_left_over: actions ``(T, A)`` or ``(B, T, A)`` of the chunk before that are not
                executed yet; the new chunk continues them (`lerobot_policy_mode.realtime`).
            execution_horizon: up to where it does; by default as ``rtc_config`` says.

        Raises:
            DataError: if an observation is missing, has another shape or lacks its history.
        """
        values = batches.observed(batch, self.keys, self.model.features)
        seen = self._observe(values, batch)
        prefix = left_over_prefix(
            prev_chunk_left_over,
            inference_delay or 0,
            execution_horizon,
            self.config.rtc_config,
            shape=(seen.batch_size, self.config.chunk_size, self.model.action_dim),
            device=self.model.device,
        )
        return self._act(seen, noise, prefix)

    def supports_rtc(self) -> bool:
        """Real-time chunking hands over single observations."""
        return self.config.n_obs_steps == 1

    def _act(self, seen: Observation, noise: Tensor | None, prefix: Prefix | None = None) -> Tensor:
        with self._precision():
            return self.acting.act(seen, noise=noise, prefix=prefix).float()

    def _observe(self, values: Mapping[str, Tensor], batch: Mapping[str, Any]) -> Observation:
        complete = batches.with_history(values, self.model.features, self.config.n_obs_steps)
        return batches.observation(complete, batches.tasks_of(batch), self.instructions)

    def _precision(self) -> AbstractContextManager[Any]:
        if self.config.dtype == "float32":
            return nullcontext()
        return torch.autocast(self.model.device.type, dtype=torch.bfloat16)

    # Weights

    def _copy(self) -> MoDEPolicy:
        return copy.deepcopy(self.model).eval().requires_grad_(False)

    def _take_average(self) -> None:
        """Go on from the averaged weights."""
        if self.ema is not None:
            self.model.load_state_dict(self.ema.state_dict())
            self.ema_updates.zero_()

    @classmethod
    def _load_as_safetensor(
        cls, model: ModePolicy, model_file: str, map_location: str, strict: bool
    ) -> ModePolicy:
        """Load weights; whatever LeRobot asks for, every name and every shape must match.

        Raises:
            CheckpointError: listing what differs, or if the file is damaged.
        """
        try:
            state = load_file(model_file)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{model_file} cannot be read: {error}") from error
        model.adopt(state, str(model_file))
        return model

    def adopt(self, state: dict[str, Tensor], source: str) -> None:
        """Take the weights of a checkpoint, strictly.

        A checkpoint with an average may be loaded without one (``--policy.ema=false``): its average is then
        what is loaded. One without may be loaded with one, which begins there.

        Raises:
            CheckpointError: listing what differs.
        """
        averaged = {k: v for k, v in state.items() if k.startswith("ema.")}
        if self.ema is None and averaged:
            state = {k: v for k, v in state.items() if k not in averaged}
            state |= {k.replace("ema.", "model.", 1): v for k, v in averaged.items()}
        elif self.ema is not None and not averaged:
            state |= {k.replace("model.", "ema.", 1): v for k, v in state.items() if k.startswith("model.")}
        name = "instructions.embeddings"
        if self.instructions is not None and name in state and len(state[name]) == self._recorded:
            own = self.instructions.embeddings[self._recorded :]
            state[name] = torch.cat([state[name], own.to(state[name])])
        load_strictly(self, state, source)
        if self.instructions is not None:
            self.instructions.loaded(self._recorded)
        if self.config.restart_average:
            self._take_average()
            self.config.restart_average = False  # a run that is resumed goes on

    def _get_default_peft_targets(self) -> dict[str, Any]:
        """Adapt attention and the routed experts."""
        return {
            "target_modules": ["attention.qkv", "attention.proj"],
            "target_parameters": ["experts.up_weight_NED", "experts.down_weight_NDH"],
        }

    def wrap_with_peft(self, *args: Any, **kwargs: Any) -> Any:
        """Adapters begin at the averaged weights, and are not averaged themselves."""
        self._take_average()
        self.ema = None
        self.config.ema = False
        return super().wrap_with_peft(*args, **kwargs)

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """LeRobot's card, with a description of this policy."""
        return with_description(super().generate_model_card(*args, **kwargs), self)
