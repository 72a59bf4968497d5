"""The inference plan: everything that is known before the first observation arrives, computed once.

MoDE's routers see the noise level alone, and a sampler calls the network at noise levels that its grid fixes.
So for each of these levels and each layer the plan holds which experts run and with which weights, and the
part of the attention's projection that comes from the noise embedding::

    W(g ∘ x̂ + c) + b  =  (W diag g) x̂ + (W c + b)        x̂ = x / rms(x), c the noise embedding

The bracket on the left is a weight of its own (the norm is folded into the projection), the one on the right
a row of a table. No expert is copied: engines index the stacked experts. Where the routers also look at the
goal, there is a row for each sample of the batch, and a new instruction rewrites the tables.

In the image encoders batch norms are folded into the convolutions (`mode_policy.inference.encoder`).

Legend: T distinct noise levels, B batch, V rows of the tables (T, or T·B with goals), L layers, K active
experts, D width, E = 3D, C chunk, A action dimension, O observation tokens, G goal width.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator

import torch
from torch import Tensor

from mode_policy.config import SamplerConfig
from mode_policy.diffusion.schedules import grid
from mode_policy.errors import PlanError
from mode_policy.inference.checks import blocks_of, check_mode, check_policy, check_there
from mode_policy.inference.encoder import with_folded_encoder
from mode_policy.inference.freshness import WeightsMark
from mode_policy.inference.levels import level_of, network_calls
from mode_policy.inference.tables import LayerTables, table_rows
from mode_policy.inference.weights import (
    LayerProducts,
    LayerWeights,
    Precision,
    cast,
    check_precision,
    free,
    large_weights,
    layer_weights,
    refuse_use,
    stream_type,
)
from mode_policy.nn.block import MoDEBlock
from mode_policy.policy import MoDEPolicy
from mode_policy.types import Observation


class InferencePlan:
    """Tables and folded weights of one policy for one sampler; see the module.

    Args:
        policy: In evaluation mode; it is referred to, not copied.
        sampler: Which sampler, steps and grid; the policy's own by default.
        batch: Samples per call B, guidance not counted.
        precision: Of the large weights; see `mode_policy.inference.weights`.
        consume: Free each of the policy's large weights as soon as the plan or an engine holds it in another
            form (another precision, another layout). From then on the policy acts through this plan and those
            of `for_batch` alone. Where the policy's own weights serve, nothing is freed.

    A plan stays in its process: it can be neither pickled nor deep-copied.

    Raises:
        PlanError: if a router looks at the tokens, the batch is not positive, the precision is unknown, or
            the policy is in training mode, or its weights are not float32, not finite (for 8 bits) or were
            freed.
    """

    @torch.inference_mode(False)  # whoever builds it there may act outside, and the other way round
    @torch.no_grad()
    def __init__(
        self,
        policy: MoDEPolicy,
        sampler: SamplerConfig | None = None,
        batch: int = 1,
        precision: Precision = "float32",
        consume: bool = False,
    ) -> None:
        check_policy(policy, batch)
        check_precision(precision)
        self.policy = policy
        #: Held by whoever runs this plan or one of `for_batch`: they write to the same buffers.
        self.lock = threading.Lock()
        self.sampler = sampler or policy.config.sampler
        self.precision: Precision = precision
        self.consume = consume
        self.stream = stream_type(precision, policy.device)
        self.sigmas = grid(
            self.sampler.schedule, self.sampler.steps, self.sampler.sigma_min, self.sampler.sigma_max
        )
        self.levels = [
            level_of(s, policy.config.sigma_data) for s in network_calls(self.sampler, self.sigmas)
        ]
        self._index = {level.sigma: i for i, level in enumerate(self.levels)}
        denoiser = policy.denoiser
        self.uses_goal = denoiser.config.router.goal
        self.guided = self.sampler.guidance != 1.0
        sigma_T = torch.tensor([level.sigma for level in self.levels], device=policy.device)
        self.noise_TD = denoiser.sigma_embedding(sigma_T.log()[:, None] / 4).detach()
        self.out_weight_AD = (denoiser.out.weight * denoiser.norm.gain).detach()
        blocks = blocks_of(denoiser)
        for block in blocks:
            check_there(block)
        self._cast: list[LayerWeights] = []
        #: Filled by the engine 'cpu', and shared with the plans of `for_batch`.
        self.packed: list[LayerProducts] = []
        self.layers: list[LayerTables] = []
        self._resize(batch)
        for block in blocks:
            qkv = cast(block.attention.qkv.weight * block.attention_norm.gain, precision)
            self.layers.append(LayerTables(qkv.value, qkv.scale, *self._tables(block)))
            if precision != "float32":
                self._cast.append(layer_weights(block, precision))
                if consume:
                    self.free(block)
        self._observer = with_folded_encoder(policy, self.stream)
        self._mark = WeightsMark(policy)

    def __copy__(self) -> InferencePlan:
        other = object.__new__(InferencePlan)
        other.__dict__.update(self.__dict__)
        return other

    def __getstate__(self) -> object:
        raise PlanError(
            "plans and engines are neither pickled nor deep-copied; load the policy where it is needed and "
            "make a plan there"
        )

    @torch.inference_mode(False)
    @torch.no_grad()
    def for_batch(self, batch: int) -> InferencePlan:
        """Return a plan for another batch that shares this one's weights, at next to no cost.

        Raises:
            PlanError: if the batch is not positive, or this plan's weights have changed.
        """
        check_policy(self.policy, batch)
        self.check_fresh()
        other = self.__copy__()
        other._resize(batch)
        if self.uses_goal:
            other.layers = [
                LayerTables(layer.qkv_weight_ED, layer.qkv_scale_E, *other._tables(block))
                for layer, block in zip(self.layers, blocks_of(self.policy.denoiser), strict=True)
            ]
        return other

    def _resize(self, batch: int) -> None:
        self.batch = batch
        self.rows = batch * (2 if self.guided else 1)
        self.goal_BD = self.noise_TD.new_zeros(self.rows, self.policy.denoiser.config.dim)
        self._goal_BG: Tensor | None = None

    def weights(self, layer: int) -> LayerWeights:
        """Return a layer's large weights: the policy's own tensors for the precision float32.

        Raises:
            PlanError: if they were freed for an engine that holds them in another layout.
        """
        if self._cast:
            return self._cast[layer]
        block = self.policy.denoiser.blocks[layer]
        assert isinstance(block, MoDEBlock)
        check_there(block)
        return layer_weights(block)

    def tensors(self) -> Iterator[Tensor]:
        """Yield every tensor that network calls read; a new instruction writes into them and moves none."""
        yield from (self.noise_TD, self.goal_BD, self.out_weight_AD)
        for i, tables in enumerate(self.layers):
            yield from (value for value in vars(tables).values() if value is not None)
            weights = self.weights(i)
            values = [*weights.projection_DD]
            for bank in (weights.experts, weights.shared):
                values += [] if bank is None else [*bank.up_NED, bank.bias_NE, *bank.down_NDH]
            yield from (value for value in values if value is not None)

    def free(self, block: MoDEBlock) -> None:
        """Free the large weights of one of the policy's blocks."""
        free(large_weights(block, routing=not self.uses_goal))  # tables follow the goal, where it has a say
        refuse_use(self.policy.denoiser)

    def level(self, sigma: float) -> int:
        """Return the row of a noise level.

        Raises:
            PlanError: if the sampler that this plan was made for never calls the network there.
        """
        if sigma not in self._index:
            raise PlanError(
                f"the plan knows no noise level {sigma:g}; it was made for {self.sampler.name} with "
                f"{self.sampler.steps} steps from {self.sigmas[0]:g} to {self.sigmas[-2]:g}"
            )
        return self._index[sigma]

    def check_fresh(self, values: bool = True) -> None:
        """Hold the plan to the weights that it was computed from; what engines do at every inference.

        Notices what optimizers, `torch.no_grad` arithmetic and ``load_state_dict`` change. Writing through
        ``.data`` leaves no trace: after that make a new plan, or call `verify`.

        Args:
            values: also compare some values, which waits for the device.

        Raises:
            PlanError: if they have changed since, or the policy is in training mode.
        """
        check_mode(self.policy)
        if not (self._mark.versions_hold() and (not values or self._mark.values_hold())):
            raise PlanError(
                "the policy's weights have changed since the plan was made; make a new InferencePlan"
            )

    def verify(self) -> None:
        """`check_fresh`, and compare about a thousand values of every weight that is still there.

        Raises:
            PlanError: as `check_fresh` does; names the weight.
        """
        if name := self._mark.changed():
            raise PlanError(f"{name} has changed since the plan was made; make a new InferencePlan")
        self.check_fresh()

    def encode(self, observation: Observation) -> tuple[Tensor, Tensor]:
        """Return observation tokens ``(B, O, T)`` and goal embedding ``(B, G)``; see `MoDEPolicy.encode`."""
        return self._observer.encode(observation)

    @torch.no_grad()
    def set_goal(self, goal_BG: Tensor) -> None:
        """Rewrite what depends on the instruction: the goal tokens and, if routers look at the goal, the
        tables.

        Args:
            goal_BG: ``(B, G)``.

        Raises:
            PlanError: if the batch is another.
        """
        if goal_BG.shape[0] != self.batch:
            raise PlanError(
                f"{goal_BG.shape[0]} instructions for a plan of batch {self.batch}; make another plan"
            )
        # Looking at it would make the host wait for a GPU, so there it is taken for a new one.
        known = self._goal_BG if goal_BG.device.type == "cpu" else None
        if known is not None and torch.equal(known, goal_BG):
            return
        self._goal_BG = goal_BG.clone()
        if self.guided:
            goal_BG = torch.cat([goal_BG, torch.zeros_like(goal_BG)])
        self.goal_BD.copy_(self.policy.denoiser.goal_embedding(goal_BG))
        if self.uses_goal:
            for layer, block in zip(self.layers, blocks_of(self.policy.denoiser), strict=True):
                tables = (layer.qkv_bias_VE, layer.shift_VD, layer.expert_VK, layer.weight_VK)
                for old, new in zip(tables, self._tables(block), strict=True):
                    if old is not None and new is not None:
                        old.copy_(new)

    @property
    def sequence(self) -> int:
        """Number of tokens S of a sample."""
        policy = self.policy
        cameras = 0 if policy.image_encoder is None else len(policy.image_encoder.keys)
        observed = policy.config.history * (cameras + (policy.state_encoder is not None))
        return policy.denoiser.config.noise_token + 1 + observed + policy.config.chunk

    def row(self, level: int) -> Tensor | int:
        """Return the table's row of each sample at a noise level: one for all, or one each."""
        if not self.uses_goal:
            return level
        return torch.arange(level * self.rows, (level + 1) * self.rows, device=self.policy.device)

    def used_experts(self) -> list[set[int]]:
        """Return, for each layer, the experts that some noise level runs; the others never matter here."""
        return [set(layer.expert_VK.flatten().tolist()) for layer in self.layers]

    @torch.no_grad()
    def _tables(self, block: MoDEBlock) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        """The last four fields of `LayerTables`."""
        condition_VD = self.noise_TD
        if self.uses_goal:
            condition_VD = (self.noise_TD[:, None] + self.goal_BD).flatten(0, 1)
        return table_rows(block, condition_VD)
