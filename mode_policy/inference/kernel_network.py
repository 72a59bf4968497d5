"""The denoiser by the Triton kernels: four a layer, and one at the end of a step.

::

    norm_linear   norm, query-key-value projection, noise embedding as a table of biases
    attention     query-key norm, causal attention, output projection, residual
    expert_up     norm, first projection of the chosen experts, SiLU, product, routing weight
    expert_down   second projection of the chosen experts, residual
    step_tail     final norm, output, preconditioning, sampler update, next step's tokens

A shared expert is two more kernels in its layer, so that it need not be copied into the stack of the others.

Legend: B samples (guidance counted), S sequence, D width, G groups of samples that share the tables' rows,
T denoising steps, C chunk, A action dimension, F fixed tokens (goal and observation).
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from mode_kernels.attention import attention
from mode_kernels.expert_down import expert_down
from mode_kernels.expert_up import expert_up
from mode_kernels.launch import new_counter
from mode_kernels.norm_linear import norm_linear
from mode_kernels.step_tail import step_tail
from mode_policy.inference.network import PlannedNetwork
from mode_policy.inference.plan import InferencePlan
from mode_policy.inference.weights import ExpertWeights
from mode_policy.nn.block import MoDEBlock

#: Samplers that map (x, D) to the next x by two factors of the step: what `step_tail` computes.
FIRST_ORDER = ("ddim", "euler")


class KernelNetwork(PlannedNetwork):
    """`PlannedNetwork` by the kernels, and the whole loop of first-order samplers.

    Args:
        plan: Its tables.
    """

    def __init__(self, plan: InferencePlan) -> None:
        super().__init__(plan)
        device, width = plan.policy.device, plan.policy.denoiser.config.dim
        self._counter = new_counter(plan.rows * plan.sequence, width, device)
        groups, levels = (plan.rows if plan.uses_goal else 1), len(plan.levels)
        # Each row begins at a multiple of 16 bytes: Triton compiles other addresses anew.
        rows = torch.arange(levels * groups, dtype=torch.int32, device=device).view(levels, groups)
        self._row_TG = torch.nn.functional.pad(rows, (0, -groups % 4))[:, :groups]
        self._step_T4 = (
            torch.arange(levels, dtype=torch.int32, device=device).repeat_interleave(4).view(-1, 4)
        )
        # Of a shared expert: one row of a table, that chooses expert 0 with weight 1.
        self._first_11 = torch.zeros(1, 1, dtype=torch.int64, device=device)
        self._one_11 = torch.ones(1, 1, device=device)
        self._row_1 = torch.zeros(1, dtype=torch.int32, device=device)
        self._position_CD = plan.policy.denoiser.position[plan.policy.denoiser.history :].detach()
        self._coefficient_T5 = coefficients(plan).to(device)

    @property
    def runs_whole_chunks(self) -> bool:
        """Whether `chunk` can stand for the sampler."""
        plan = self.plan
        return plan.sampler.name in FIRST_ORDER and not plan.guided

    def chunk(self, start_BCA: Tensor, prefix_BSD: Tensor) -> Tensor:
        """Return the actions that a first-order sampler ends with, from ``σ_max`` times noise."""
        plan, denoiser = self.plan, self.plan.policy.denoiser
        x_BCA, fixed_BFD = start_BCA.contiguous(), prefix_BSD.to(plan.stream).contiguous()
        noise_TD = plan.noise_TD if denoiser.config.noise_token else None
        tokens_BSD = self.tokens(plan.levels[0].into * x_BCA, 0, prefix_BSD)
        for step in range(len(plan.levels)):
            y_BCD = self._blocks(tokens_BSD, step)
            x_BCA, tokens_BSD = step_tail(
                y_BCD,
                x_BCA,
                self._coefficient_T5,
                self._step_T4[step, :1],
                denoiser.norm.gain,
                denoiser.out.weight,
                denoiser.out.bias,
                denoiser.action_embedding.weight,
                self._position_CD,
                fixed_BFD,
                noise_TD,
                pdl=True,
            )
        return x_BCA

    def predict(self, scaled_BCA: Tensor, level: int, prefix_BSD: Tensor) -> Tensor:
        """Return F for noisy actions times c_in, ``(B, C, A)``."""
        return self.output(self._blocks(self.tokens(scaled_BCA, level, prefix_BSD), level))

    def _blocks(self, x_BSD: Tensor, level: int) -> Tensor:
        """All layers; returns the tokens of the actions."""
        blocks, row_G = self.plan.policy.denoiser.blocks, self._row_TG[level]
        for i, block in enumerate(blocks, start=1):
            assert isinstance(block, MoDEBlock)
            last = self.plan.policy.denoiser.chunk if i == len(blocks) else None
            x_BSD = self._block(i - 1, block, x_BSD, row_G, last)
        return x_BSD

    def _block(self, layer: int, block: MoDEBlock, x_BSD: Tensor, row_G: Tensor, last: int | None) -> Tensor:
        tables, weights = self.plan.layers[layer], self.plan.weights(layer)
        qkv_BSE = norm_linear(
            x_BSD,
            tables.qkv_weight_ED,
            tables.qkv_bias_VE,
            row_G,
            shift_TD=tables.shift_VD,
            scale_E=tables.qkv_scale_E,
            pdl=True,
        )
        u_BSD = attention(
            qkv_BSE,
            x_BSD,
            weights.projection_DD.value,
            block.attention.qk_norm.gain[:, 0],
            self._counter,
            block.attention.num_heads,
            last,
            weights.projection_DD.scale,
            pdl=True,
        )
        gain_D, normed = block.expert_norm.gain, block.residual == "normed"
        routing = (tables.expert_VK, tables.weight_VK, row_G)
        out_BSD = self._bank(weights.experts, u_BSD, u_BSD, gain_D, normed, *routing)
        if weights.shared is None:
            return out_BSD
        routing = (self._first_11, self._one_11, self._row_1)
        return self._bank(weights.shared, u_BSD, out_BSD, gain_D, False, *routing)

    def _bank(
        self,
        bank: ExpertWeights,
        u_BSD: Tensor,
        residual_BSD: Tensor,
        gain_D: Tensor,
        normed: bool,
        expert_TK: Tensor,
        route_TK: Tensor,
        row_G: Tensor,
    ) -> Tensor:
        """``residual + Σₖ weightₖ · expertₖ(norm(u))``; with ``normed`` the residual is normed, too."""
        up, down = bank.up_NED, bank.down_NDH
        hidden_BSKH, inverse_R = expert_up(
            u_BSD, up.value, bank.bias_NE, expert_TK, route_TK, row_G, gain_D, up.scale, pdl=True
        )
        norm = (inverse_R, gain_D) if normed else (None, None)
        out_BSD: Tensor = expert_down(
            hidden_BSKH,
            residual_BSD,
            down.value,
            expert_TK,
            row_G,
            self._counter,
            *norm,
            down.scale,
            pdl=True,
        )
        return out_BSD


def coefficients(plan: InferencePlan) -> Tensor:
    """The factors of `step_tail` for each step of a first-order sampler, rounded from double precision.

    Returns:
        ``(T, 5)``: c_skip, c_out, keep = σ'/σ, move = 1 − σ'/σ, and c_in of the next step.
    """
    rows = []
    for level, (sigma, after) in zip(plan.levels, itertools.pairwise(plan.sigmas), strict=False):
        keep, into = after / sigma, (after**2 + plan.policy.config.sigma_data**2) ** -0.5
        rows.append((level.skip, level.out, keep, 1 - keep, into))
    return torch.tensor(rows, dtype=torch.float64).float()
