"""The network with the noise level as a tensor, so that one body serves every step of a loop.

Written out, a graph of ten steps names each weight ten times, and runtimes that rearrange weights for their
products keep ten copies. As a loop it names them once. Which expert runs differs from step to step: each
stands in a branch that is taken where the routing asks for it.

Legend: B samples (guidance counted), S sequence, D width, E = 3D or 2H, H hidden width, N experts, K active
experts, A heads, P width of a head, C chunk, I calls of the network, M draws of noise, O observation tokens,
V rows of the plan's tables, T noise levels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._higher_order_ops.scan import scan

from mode_policy.export.program import sampler_program
from mode_policy.inference.network import PlannedNetwork, sum_of
from mode_policy.inference.plan import InferencePlan
from mode_policy.inference.tables import LayerTables
from mode_policy.inference.weights import ExpertWeights, LayerWeights
from mode_policy.nn.block import MoDEBlock


class LoopExpert(nn.Module):
    """One expert, transposed so that tokens are multiplied from the left as they are."""

    up_DE: Tensor
    bias_E: Tensor
    down_HD: Tensor

    def __init__(self, up_ED: Tensor, bias_E: Tensor, down_DH: Tensor) -> None:
        super().__init__()
        # Cloned: a recorded loop refuses inputs that share memory, as rows of one table do.
        _hold(self, up_DE=_transposed(up_ED), bias_E=bias_E.detach().clone(), down_HD=_transposed(down_DH))

    def forward(self, v_BSD: Tensor) -> Tensor:
        """Apply the expert."""
        return _run(v_BSD, self.up_DE, self.bias_E, self.down_HD)

    def where(self, asked: Tensor, v_BSD: Tensor) -> Tensor:
        """Apply the expert if a bool scalar says so, else return zeros."""
        operands = (v_BSD, self.up_DE, self.bias_E, self.down_HD)
        out_BSD: Tensor = torch.cond(asked, _run, _skip, operands)
        return out_BSD


class LoopLayer(nn.Module):
    """One layer's tables (see `LayerTables`) and its weights, transposed."""

    qkv_DE: Tensor
    proj_DD: Tensor
    qkv_bias_VE: Tensor
    shift_VD: Tensor | None
    expert_VK: Tensor
    weight_VK: Tensor

    def __init__(self, tables: LayerTables, weights: LayerWeights) -> None:
        super().__init__()
        _hold(
            self,
            qkv_DE=_transposed(tables.qkv_weight_ED),
            proj_DD=_transposed(weights.projection_DD.value),
            qkv_bias_VE=tables.qkv_bias_VE,
            shift_VD=tables.shift_VD,
            expert_VK=tables.expert_VK,
            weight_VK=tables.weight_VK,
        )
        self.experts = _experts(weights.experts)
        self.shared = [] if weights.shared is None else _experts(weights.shared)
        self.registered = nn.ModuleList([*self.experts, *self.shared])


class LoopState(nn.Module):
    """Every tensor of a plan that the loop's body reads: `torch.export` finds those of modules, no others."""

    factors_T3: Tensor
    noise_TD: Tensor
    out_weight_AD: Tensor

    def __init__(self, plan: InferencePlan) -> None:
        super().__init__()
        factors = [(level.skip, level.out, level.into) for level in plan.levels]
        _hold(
            self,
            factors_T3=torch.tensor(factors, dtype=torch.float64, device=plan.policy.device).float(),
            noise_TD=plan.noise_TD,
            out_weight_AD=plan.out_weight_AD,
        )
        self.layers = [LoopLayer(tables, plan.weights(i)) for i, tables in enumerate(plan.layers)]
        self.registered = nn.ModuleList(self.layers)


class LoopNetwork(PlannedNetwork):
    """`PlannedNetwork` whose noise levels are tensors.

    Args:
        plan: of precision float32; its weights are copied, as runtimes want them transposed.
    """

    def __init__(self, plan: InferencePlan) -> None:
        super().__init__(plan)
        self.state = LoopState(plan)

    def denoise_at(self, x_BCA: Tensor, level_1: Tensor, prefix_BSD: Tensor) -> Tensor:
        """Return D(x; σ) at a level, int64 ``(1,)``; see `PlannedNetwork.denoise`."""
        skip, out, into = self.state.factors_T3[level_1].unbind(1)
        scaled_BCA = into * x_BCA
        if self.plan.guided:
            both = self.predict_at(torch.cat([scaled_BCA, scaled_BCA]), level_1, prefix_BSD)
            given_BCA, free_BCA = both.chunk(2)
            f_BCA = free_BCA + self.plan.sampler.guidance * (given_BCA - free_BCA)
        else:
            f_BCA = self.predict_at(scaled_BCA, level_1, prefix_BSD)
        return skip * x_BCA + out * f_BCA

    def predict_at(self, scaled_BCA: Tensor, level_1: Tensor, prefix_BSD: Tensor) -> Tensor:
        """Return F for noisy actions times c_in, ``(B, C, A)``."""
        denoiser = self.plan.policy.denoiser
        parts = [prefix_BSD, denoiser.action_embedding(scaled_BCA) + denoiser.position[denoiser.history :]]
        if denoiser.config.noise_token:
            parts.insert(0, self.state.noise_TD[level_1].expand(len(scaled_BCA), 1, -1))
        x_BSD = torch.cat(parts, dim=1)
        row = level_1
        if self.plan.uses_goal:
            row = level_1 * self.plan.rows + torch.arange(self.plan.rows, device=level_1.device)
        for i, block in enumerate(denoiser.blocks):
            assert isinstance(block, MoDEBlock)
            last = denoiser.chunk if i == len(denoiser.blocks) - 1 else x_BSD.shape[1]
            u_BSD = x_BSD[:, -last:] + self._attention(i, block, x_BSD, row, last)
            v_BSD = _unit(u_BSD) * block.expert_norm.gain
            x_BSD = (v_BSD if block.residual == "normed" else u_BSD) + self._mixture(i, v_BSD, row)
        return F.linear(_unit(x_BSD), self.state.out_weight_AD, denoiser.out.bias)

    def _attention(self, layer: int, block: MoDEBlock, x_BSD: Tensor, row: Tensor, last: int) -> Tensor:  # type: ignore[override]
        tables, weights = self._tables(layer), self.state.layers[layer]
        B, S, D = x_BSD.shape
        shifted_BSD = x_BSD if tables.shift_VD is None else x_BSD + tables.shift_VD[row][:, None]
        qkv_BSE = _unit(shifted_BSD) @ weights.qkv_DE + tables.qkv_bias_VE[row][:, None]
        qkv = qkv_BSE.view(B, S, 3, block.attention.num_heads, -1).permute(2, 0, 3, 1, 4)
        q_BASP, k_BASP, v_BASP = qkv.unbind(0)
        gain_2P = block.attention.qk_norm.gain[:, 0]
        y_BASP = F.scaled_dot_product_attention(
            _unit(q_BASP) * gain_2P[0], _unit(k_BASP) * gain_2P[1], v_BASP, is_causal=True
        )
        return y_BASP.transpose(1, 2).reshape(B, S, D)[:, -last:] @ weights.proj_DD

    def _mixture(self, layer: int, v_BSD: Tensor, row: Tensor) -> Tensor:
        """Weighted sum of the chosen experts, and of the shared one where there is one."""
        tables, weights = self._tables(layer), self.state.layers[layer]
        weight_RK = tables.weight_VK[row]
        share_RN = weight_RK.new_zeros(len(row), len(weights.experts)).scatter(
            1, tables.expert_VK[row], weight_RK
        )
        parts = [
            share_RN[:, n, None, None] * expert.where((share_RN[:, n] > 0).any(), v_BSD)
            for n, expert in enumerate(weights.experts)
        ]
        return sum_of([*parts, *(expert(v_BSD) for expert in weights.shared)])

    def _tables(self, layer: int) -> LayerTables | LoopLayer:
        """A layer's tables: those of the instruction, where it has a say, else the recorded ones."""
        return self.plan.layers[layer] if self.plan.uses_goal else self.state.layers[layer]


def looped(
    network: PlannedNetwork, tokens_BOT: Tensor, noise_MBCA: Tensor, held_BCA: Tensor, weights_BC: Tensor
) -> Tensor:
    """The sampling loop by a table of numbers, `sampler_program`: the body is the same at every step."""
    assert isinstance(network, LoopNetwork)
    plan = network.plan
    program = sampler_program(plan.sampler, plan.sigmas)
    calls, sigma_data = len(program.sigmas), plan.policy.config.sigma_data
    fixed_BSD = network.prefix(tokens_BOT)

    def numbers(table: Tensor) -> Tensor:
        return table.float().to(tokens_BOT.device)

    shown_IBCA = torch.tensordot(numbers(program.noise_IN), noise_MBCA, 1)
    level_I1 = torch.tensor([[plan.level(s)] for s in program.sigmas], device=tokens_BOT.device)
    # hold_prefix, with its g as a number of the step
    gain_I = numbers(torch.tensor([s**2 / (s**2 + sigma_data**2) for s in program.sigmas]).double())
    w_BC1 = weights_BC[..., None]

    def step(answers_IBCA: Tensor, xs: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        level_1, mix_I, here_I, shown_BCA, gain = xs
        x_BCA = shown_BCA + (mix_I[:, None, None, None] * answers_IBCA).sum(0)
        k_BC1 = w_BC1 * gain / (w_BC1 * gain + (1 - w_BC1))
        answer_BCA = torch.lerp(network.denoise_at(x_BCA, level_1, fixed_BSD), held_BCA, k_BC1)
        return answers_IBCA + here_I[:, None, None, None] * answer_BCA, gain.clone()

    xs = (
        level_I1,
        numbers(program.answers_II),
        torch.eye(calls, device=tokens_BOT.device),
        shown_IBCA,
        gain_I,
    )
    start_IBCA = torch.zeros_like(shown_IBCA)
    answers_IBCA, _ = scan(step, start_IBCA, xs)
    final_BCA = torch.tensordot(numbers(program.final_answers_I), answers_IBCA, 1)
    return final_BCA + torch.tensordot(numbers(program.final_noise_N), noise_MBCA, 1)


def _run(v_BSD: Tensor, up_DE: Tensor, bias_E: Tensor, down_HD: Tensor) -> Tensor:
    linear_BSH, gate_BSH = (v_BSD @ up_DE + bias_E).chunk(2, dim=-1)
    return (linear_BSH * F.silu(gate_BSH)) @ down_HD


def _skip(v_BSD: Tensor, up_DE: Tensor, bias_E: Tensor, down_HD: Tensor) -> Tensor:
    return torch.zeros_like(v_BSD)


def _unit(x: Tensor, eps: float = 1e-6) -> Tensor:
    """``x / max(rms(x), ε)`` over the last axis."""
    scale = x.shape[-1] ** 0.5
    return F.normalize(x, dim=-1, eps=eps * scale) * scale


def _transposed(weight: Tensor) -> Tensor:
    return weight.detach().t().contiguous()


def _experts(bank: ExpertWeights) -> list[LoopExpert]:
    return [
        LoopExpert(*rows) for rows in zip(bank.up_NED.value, bank.bias_NE, bank.down_NDH.value, strict=True)
    ]


def _hold(module: nn.Module, **tensors: Tensor | None) -> None:
    for name, tensor in tensors.items():
        module.register_buffer(name, tensor)
