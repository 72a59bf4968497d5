"""The policy: observation in, action chunk out; batch in, loss out.

Legend: B batch, H history, K tokens of a step, O = H·K observation tokens, T token width, C chunk, A action
dimension, G goal width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mode_policy.config import PolicyConfig
from mode_policy.convention import UNKNOWN, Convention
from mode_policy.diffusion.edm import add_noise, masked_mean, sample_means, scalings, training_target
from mode_policy.diffusion.prefix import Prefix, hold_prefix
from mode_policy.diffusion.samplers import SAMPLERS
from mode_policy.diffusion.schedules import grid, sigma_of_uniform
from mode_policy.encoders.state import StateEncoder
from mode_policy.encoders.vision import ImageEncoder
from mode_policy.errors import CheckpointError, DataError
from mode_policy.nn.denoiser import Denoiser
from mode_policy.nn.router import Routing, load_balancing_loss, router_z_loss
from mode_policy.normalization import Normalizer, Statistics
from mode_policy.types import (
    ACTION,
    IMAGE_PREFIX,
    Batch,
    Features,
    InstructionTable,
    Observation,
    feature_kind,
)


class PolicyLoss(NamedTuple):
    """``total`` is what is minimised; the others are its terms, detached, and the routing.

    ``per_sample_B`` is the same loss for each sample: its mean over the batch is ``total``.
    """

    total: Tensor
    denoising: Tensor
    load_balance: Tensor
    router_z: Tensor
    routings: list[Routing]
    per_sample_B: Tensor


class MoDEPolicy(nn.Module):
    """A MoDE policy with its normalisation and the instructions that it knows.

    Args:
        config: architecture, diffusion and chunking.
        features: of the demonstrations; which observations the policy reads and what its actions are.
        statistics: of the demonstrations.
        instructions: known instructions, or None for a policy without language.
        convention: what the numbers of the demonstrations mean, the control rate included.

    Raises:
        CheckpointError: if the statistics do not cover the features.
        DataError: if there is nothing to observe or no action.
    """

    def __init__(
        self,
        config: PolicyConfig,
        features: Features,
        statistics: Statistics,
        instructions: InstructionTable | None = None,
        convention: Convention = UNKNOWN,
    ) -> None:
        super().__init__()
        _check(config, features, statistics, instructions)
        self.config = config
        # Sorted, as a checkpoint's description is: the order of states is the order of the encoder's inputs.
        self.features = dict(sorted(features.items()))
        self.statistics = statistics
        self.instructions = instructions
        self.convention = convention
        self.action_normalizer = Normalizer(features[ACTION], config.normalize_action)
        self.action_normalizer.fit(statistics[ACTION], ACTION)
        self.goal_dim = 1 if instructions is None else instructions.embeddings.shape[1]
        self.image_encoder: ImageEncoder | None = None
        states = config
        if config.cameras:
            condition_dim = None if instructions is None else self.goal_dim
            self.image_encoder = ImageEncoder(
                config.cameras, self.features, config.vision, config.history, condition_dim
            )
            states = replace(config, cameras=(), state_tokens=self.image_encoder.token_dim)
        self.state_encoder: StateEncoder | None = None
        if any(feature_kind(key) == "state" for key in self.features):
            self.state_encoder = StateEncoder(self.features, states)
            self.state_encoder.fit(statistics)
        encoder = self.image_encoder or self.state_encoder
        assert encoder is not None
        self.denoiser = Denoiser(
            config.denoiser,
            token_dim=encoder.token_dim,
            goal_dim=self.goal_dim,
            action_dim=self.action_dim,
            chunk=config.chunk,
            history=config.history,
        )

    @property
    def action_dim(self) -> int:
        """Number of action dimensions A."""
        return self.features[ACTION].shape[0]

    @property
    def networks(self) -> list[nn.Module]:
        """The networks that take the time: the denoiser and each camera's; each compiles as one graph."""
        return [self.denoiser, *(self.image_encoder.networks if self.image_encoder is not None else [])]

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.denoiser.out.weight.device

    def encode(
        self, observation: Observation, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return observation tokens ``(B, O, T)`` and goal embedding ``(B, G)``.

        Each step of the history gives the state's token, if there is one, then one for each camera.

        Args:
            observation: batch of B.
            generator: for the augmentation of images in training.
        """
        instruction_BG = observation.instruction
        if self.instructions is not None and instruction_BG is None:
            raise DataError(
                "this policy is conditioned on language, but the observation carries no instruction"
            )
        parts_BHKT: list[Tensor] = []
        if self.state_encoder is not None:
            parts_BHKT.append(self.state_encoder(observation.states)[:, :, None])
        if self.image_encoder is not None:
            condition_BG = None if self.instructions is None else instruction_BG
            parts_BHKT.append(self.image_encoder(observation.images, condition_BG, generator))
        tokens_BOT = torch.cat(parts_BHKT, dim=2).flatten(1, 2)
        if self.instructions is None or instruction_BG is None:
            return tokens_BOT, tokens_BOT.new_zeros(tokens_BOT.shape[0], self.goal_dim)
        return tokens_BOT, instruction_BG

    def forward(
        self,
        batch: Batch,
        *,
        sigma: Tensor | None = None,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> PolicyLoss:
        """Training loss of a batch.

        Args:
            batch: demonstrations in raw units.
            sigma: noise levels ``(B,)``; drawn from the configured density by default.
            noise: standard normal ``(B, C, A)``; drawn by default.
            generator: for all draws; the global one by default.
        """
        action_BCA = self.action_normalizer(batch.actions)
        if sigma is None:
            u_B = torch.rand(
                len(action_BCA), device=action_BCA.device, generator=generator, dtype=torch.float64
            )
            sigma = sigma_of_uniform(u_B, self.config.density, self.config.sigma_data)
        if noise is None:
            noise = torch.empty_like(action_BCA).normal_(generator=generator)
        tokens_BOT, goal_BG = self.encode(batch.observation, generator)
        s = scalings(sigma, self.config.sigma_data)
        noisy_BCA = add_noise(action_BCA, sigma, noise)
        output = self.denoiser(
            s.into * noisy_BCA, sigma, tokens_BOT, self._drop_goal(goal_BG, generator), generator
        )
        error_BCA = (output.prediction_BCA - training_target(action_BCA, noisy_BCA, s)).square()
        denoising = masked_mean(error_BCA, batch.action_is_pad)
        weights = self.config.loss
        balance = load_balancing_loss(output.routings, weights.load_balance_form)
        router_z = router_z_loss(output.routings)
        balanced, bounded = weights.load_balance * balance, weights.router_z * router_z
        total = denoising + balanced + bounded
        per_sample_B = sample_means(error_BCA, batch.action_is_pad) + balanced + bounded
        return PolicyLoss(
            total, denoising.detach(), balance.detach(), router_z.detach(), output.routings, per_sample_B
        )

    def _drop_goal(self, goal_BG: Tensor, generator: torch.Generator | None) -> Tensor:
        """Zero parts of the goal in training, so that guidance has an unconditional model to lean on."""
        p = self.config.goal_dropout
        if not self.training or p == 0 or self.instructions is None:
            return goal_BG
        shape = goal_BG.shape if self.config.goal_dropout_form == "feature" else (goal_BG.shape[0], 1)
        keep = torch.rand(shape, device=goal_BG.device, generator=generator) >= p
        return goal_BG * keep

    def denoise_fn(self, observation: Observation) -> Callable[[Tensor, float], Tensor]:
        """Return D(x; σ) for one observation: noisy normalised actions ``(B, C, A)`` and a float σ."""
        tokens_BOT, goal_BG = self.encode(observation)
        guidance = self.config.sampler.guidance

        def denoise(x_BCA: Tensor, sigma: float) -> Tensor:
            sigma_B = x_BCA.new_full((x_BCA.shape[0],), sigma)
            s = scalings(sigma_B, self.config.sigma_data)
            f_BCA = self.denoiser(s.into * x_BCA, sigma_B, tokens_BOT, goal_BG).prediction_BCA
            if guidance != 1.0:
                free_BCA = self.denoiser(
                    s.into * x_BCA, sigma_B, tokens_BOT, torch.zeros_like(goal_BG)
                ).prediction_BCA
                f_BCA = free_BCA + guidance * (f_BCA - free_BCA)
            return s.skip * x_BCA + s.out * f_BCA

        return denoise

    @torch.no_grad()
    def act(
        self,
        observation: Observation,
        *,
        noise: Tensor | Callable[[], Tensor] | None = None,
        generator: torch.Generator | None = None,
        prefix: Prefix | None = None,
    ) -> Tensor:
        """Sample an action chunk.

        Args:
            observation: batch of B observations on the policy's device.
            noise: standard normal start ``(B, C, A)`` for reproducible actions, or a function that returns
                such a tensor for the start and for each draw of a stochastic sampler; drawn by default.
            generator: for all draws that are not given.
            prefix: committed actions that the chunk continues (`mode_policy.diffusion.prefix`).

        Returns:
            Actions ``(B, C, A)`` in raw units, inside the range of the demonstrations' actions for
            ``min_max`` normalisation. Fixed actions of the prefix are returned as they are.
        """
        sampler = self.config.sampler
        sigmas = grid(sampler.schedule, sampler.steps, sampler.sigma_min, sampler.sigma_max)
        shape = (observation.batch_size, self.config.chunk, self.action_dim)

        def normal() -> Tensor:
            return torch.empty(shape, device=self.device).normal_(generator=generator)

        draw = noise if callable(noise) else normal
        start_BCA = sigmas[0] * (noise if isinstance(noise, Tensor) else draw())
        denoise = self.denoise_fn(observation)
        if prefix is not None:
            held_BCA = self.action_normalizer(prefix.actions)
            denoise = hold_prefix(denoise, held_BCA, prefix.weights, self.config.sigma_data)
        x_BCA = SAMPLERS[sampler.name](denoise, start_BCA, sigmas, draw)
        if self.config.normalize_action == "min_max":
            x_BCA = x_BCA.clamp(-1, 1)
        actions_BCA = self.action_normalizer.inverse(x_BCA)
        if prefix is not None:
            actions_BCA = torch.where(prefix.weights[..., None] == 1, prefix.actions, actions_BCA)
        return actions_BCA


def _check(
    config: PolicyConfig, features: Features, statistics: Statistics, instructions: InstructionTable | None
) -> None:
    if ACTION not in features:
        raise DataError(
            f"no {ACTION!r} among the features {sorted(features)}; a policy needs actions to learn"
        )
    kinds = {key: feature_kind(key) for key in features}
    given = [k.removeprefix(IMAGE_PREFIX) for k, kind in kinds.items() if kind == "image"]
    if missing := [name for name in config.cameras if name not in given]:
        raise DataError(f"policy.cameras names {missing}, but the dataset's cameras are {sorted(given)}")
    if unused := [name for name in given if name not in config.cameras]:
        raise DataError(
            f"the features hold cameras {unused} that policy.cameras={list(config.cameras)} leaves out; add "
            "them there or leave them out of the features"
        )
    for name in config.cameras:
        shape = features[IMAGE_PREFIX + name].shape
        if len(shape) != 3 or shape[-1] != 3:
            raise DataError(f"camera {name!r} has shape {shape}; images are (height, width, 3)")
    if not config.cameras and "state" not in kinds.values():
        raise DataError(f"no observation among the features {sorted(features)}")
    uncovered = sorted(k for k, kind in kinds.items() if kind != "image" and k not in statistics)
    if uncovered:
        raise CheckpointError(f"no statistics for {uncovered}; every normalised feature needs them")
    if (instructions is None) != (config.language is None):
        raise DataError(
            f"policy.language={config.language!r} but "
            + ("no instruction embeddings were given" if instructions is None else "instructions were given")
        )
    if instructions is not None and instructions.encoder != config.language:
        raise DataError(
            f"instructions were embedded by {instructions.encoder!r}, the policy uses {config.language!r}; "
            "set policy.language to the former or embed the dataset anew"
        )
