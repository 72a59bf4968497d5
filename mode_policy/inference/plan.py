"""The inference plan: everything that is known before the first observation arrives, computed once.

MoDE's routers see the noise level alone, and a sampler calls the network at noise levels that its grid fixes.
So for each of these levels and each layer the plan holds which experts run and with which weights, and the
part of the attention's projection that comes from the noise embedding::

    W(g ∘ x̂ + c) + b  =  (W diag g) x̂ + (W c + b)        x̂ = x / rms(x), c the noise embedding

The bracket on the left is a weight of its own (the norm is folded into the projection), the one on the right
a row of a table. No expert is copied: engines index the stacked experts. Where the routers also look at the
goal, there is a row for each sample of the batch, and a new instruction rewrites the tables.

Legend: T distinct noise levels, B batch, V rows of the tables (T, or T·B with goals), L layers, K active
    experts,
D width, E = 3D, C chunk, A action dimension, O observation tokens, G goal width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mode_policy.config import SamplerConfig
from mode_policy.diffusion.samplers import SAMPLERS
from mode_policy.diffusion.schedules import grid
from mode_policy.errors import PlanError
from mode_policy.nn.block import MoDEBlock
from mode_policy.nn.denoiser import Denoiser
from mode_policy.nn.experts import SwiGLUExperts
from mode_policy.policy import MoDEPolicy


@dataclass(frozen=True, eq=False)
class LayerTables:
    """What one layer knows beforehand, a row for each noise level (and sample, where goals matter).

    Attributes:
        qkv_weight_ED: query, key and value projection with the norm's gain folded in.
        qkv_bias_VE: its bias with the noise embedding's part.
        shift_VD: noise embedding that is added before the norm (residual form ``paper``), else None.
        expert_VK: int64 numbers of the experts that run, best first.
        weight_VK: their weights.
    """

    qkv_weight_ED: Tensor
    qkv_bias_VE: Tensor
    shift_VD: Tensor | None
    expert_VK: Tensor
    weight_VK: Tensor


@dataclass(frozen=True)
class Level:
    """A noise level, and EDM's preconditioning there in double precision (arXiv 2206.00364, table 1)."""

    sigma: float
    skip: float
    out: float
    into: float


class InferencePlan:
    """Tables and folded weights of one policy for one sampler; see the module.

    Args:
        policy: In evaluation mode; it is referred to, not copied.
        sampler: Which sampler, steps and grid; the policy's own by default.
        batch: Samples per call B, guidance not counted.

    Raises:
        PlanError: if a router looks at the tokens, the batch is not positive, or the policy is in training
            mode.
    """

    def __init__(self, policy: MoDEPolicy, sampler: SamplerConfig | None = None, batch: int = 1) -> None:
        _check(policy, batch)
        self.policy = policy
        self.sampler = sampler or policy.config.sampler
        self.batch = batch
        self.sigmas = grid(
            self.sampler.schedule, self.sampler.steps, self.sampler.sigma_min, self.sampler.sigma_max
        )
        self.levels = [_level(s, policy.config.sigma_data) for s in network_calls(self.sampler, self.sigmas)]
        self._index = {level.sigma: i for i, level in enumerate(self.levels)}
        denoiser = policy.denoiser
        self.uses_goal = denoiser.config.router.goal
        self.guided = self.sampler.guidance != 1.0
        self.rows = batch * (2 if self.guided else 1)
        sigma_T = torch.tensor([level.sigma for level in self.levels], device=policy.device)
        self.noise_TD = denoiser.sigma_embedding(sigma_T.log()[:, None] / 4).detach()
        self.goal_BD = self.noise_TD.new_zeros(self.rows, denoiser.config.dim)
        gain_1D = denoiser.norm.gain
        self.out_weight_AD = (denoiser.out.weight * gain_1D).detach()
        self.layers = [self._layer(block) for block in _blocks(denoiser)]
        self._mark = WeightsMark(policy)

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

    def check_fresh(self) -> None:
        """Hold the plan to the weights that it was computed from.

        Raises:
            PlanError: if they have changed since.
        """
        if not self._mark.holds():
            raise PlanError(
                "the policy's weights have changed since the plan was made; make a new InferencePlan"
            )

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
        if self.guided:
            goal_BG = torch.cat([goal_BG, torch.zeros_like(goal_BG)])
        embedded_BD = self.policy.denoiser.goal_embedding(goal_BG)
        self.goal_BD.copy_(embedded_BD)
        if self.uses_goal:
            for old, block in zip(self.layers, _blocks(self.policy.denoiser), strict=True):
                new = self._layer(block)
                for name in ("qkv_bias_VE", "shift_VD", "expert_VK", "weight_VK"):
                    if (buffer := getattr(old, name)) is not None:
                        buffer.copy_(getattr(new, name))

    def row(self, level: int) -> Tensor | int:
        """Return the table's row of each sample at a noise level: one for all, or one each."""
        if not self.uses_goal:
            return level
        return torch.arange(level * self.rows, (level + 1) * self.rows, device=self.policy.device)

    def used_experts(self) -> list[set[int]]:
        """Return, for each layer, the experts that some noise level runs; the others never matter here."""
        return [set(layer.expert_VK.flatten().tolist()) for layer in self.layers]

    @torch.no_grad()
    def _layer(self, block: MoDEBlock) -> LayerTables:
        condition_VD = self.noise_TD
        if self.uses_goal:
            condition_VD = (self.noise_TD[:, None] + self.goal_BD).flatten(0, 1)
        qkv, gain_D = block.attention.qkv, block.attention_norm.gain
        paper = block.residual == "paper"
        bias_VE = qkv.bias.expand(len(condition_VD), -1) if paper else qkv(condition_VD)
        routing = block.router(condition_VD, condition_VD[:, None])
        return LayerTables(
            qkv_weight_ED=(qkv.weight * gain_D).detach(),
            qkv_bias_VE=bias_VE.clone(),
            shift_VD=condition_VD.clone() if paper else None,
            expert_VK=routing.expert_RK,
            weight_VK=routing.weight_RK,
        )


def network_calls(sampler: SamplerConfig, sigmas: list[float]) -> list[float]:
    """Return the distinct noise levels at which a sampler calls the network, in the order of their first
    call.

    Found by running the sampler on a single number: its scalars depend on the grid alone.
    """
    seen: dict[float, None] = {}

    def record(x: Tensor, sigma: float) -> Tensor:
        seen[sigma] = None
        return x

    SAMPLERS[sampler.name](record, torch.zeros(1), sigmas, lambda: torch.zeros(1))
    return list(seen)


class WeightsMark:
    """Tells whether a policy's weights are still those that it saw.

    Changes in place raise a tensor's version; PyTorch's fused optimizers change weights without, but
    they change all of them, so a few values of every layer are compared, too.
    """

    def __init__(self, policy: MoDEPolicy) -> None:
        self.policy = policy
        self.version = self._version()
        self.probe = self._probe().clone()

    def holds(self) -> bool:
        """Whether nothing has changed."""
        return self._version() == self.version and torch.equal(self._probe(), self.probe)

    def _version(self) -> int:
        return sum(p._version for p in self.policy.parameters())

    @torch.no_grad()
    def _probe(self) -> Tensor:
        denoiser = self.policy.denoiser
        parts: list[Tensor] = [denoiser.out.bias]
        for block in _blocks(denoiser):
            parts += [block.attention.qkv.bias[:1], bank_of(block).up_bias_NE[0, :1]]
        return torch.cat([p.float() for p in parts])


def _level(sigma: float, sigma_data: float) -> Level:
    total = sigma**2 + sigma_data**2
    return Level(sigma, sigma_data**2 / total, sigma * sigma_data / total**0.5, total**-0.5)


def _blocks(denoiser: Denoiser) -> list[MoDEBlock]:
    return [block for block in denoiser.blocks if isinstance(block, MoDEBlock)]


def bank_of(block: MoDEBlock) -> SwiGLUExperts:
    """Return a block's experts.

    Raises:
        PlanError: if they are of a form that plans do not know.
    """
    if not isinstance(block.experts, SwiGLUExperts):
        raise PlanError(
            f"plans know no experts of type {type(block.experts).__name__}; call the policy itself"
        )
    return block.experts


def _check(policy: MoDEPolicy, batch: int) -> None:
    if batch < 1:
        raise PlanError(f"batch={batch}; give the number of samples per call, at least 1")
    if policy.training:
        raise PlanError("the policy is in training mode, where routers draw; call policy.eval() first")
    for i, block in enumerate(_blocks(policy.denoiser)):
        bank_of(block)
        if block.router.scope == "token":
            raise PlanError(
                f"the router of layer {i} looks at the tokens ({type(block.router).__name__}, scope "
                "'token'), so its choice is not known beforehand; call the policy itself"
            )
