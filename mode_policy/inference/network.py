"""The denoiser as a plan runs it: tables instead of routers and noise embeddings, only the chosen experts.

Plain tensor operations that run on any device and compile into one graph: which experts run is read from the
    plan
on the host, where noise alone decides; otherwise by gathering.

Legend: B batch, S sequence, D width, H hidden width, K active experts, C chunk, A action dimension, O
    observation
tokens.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mode_policy.inference.plan import InferencePlan, LayerTables, bank_of
from mode_policy.nn.block import MoDEBlock
from mode_policy.nn.experts import SwiGLUExperts


class PlannedNetwork:
    """F(x; σ) and D(x; σ) of a plan's policy.

    Args:
        plan: Its tables; the experts' choice is copied to the host once.
    """

    def __init__(self, plan: InferencePlan) -> None:
        self.plan = plan
        # Python numbers where all samples share their experts: nothing to look up while the loop runs.
        self._experts = None if plan.uses_goal else [layer.expert_VK.tolist() for layer in plan.layers]

    def prefix(self, tokens_BOT: Tensor) -> Tensor:
        """Return what no step changes: embedded goal and observation tokens ``(B, 1 + O, D)``."""
        denoiser = self.plan.policy.denoiser
        if self.plan.guided:
            tokens_BOT = torch.cat([tokens_BOT, tokens_BOT])
        steps = denoiser.position[1 : 1 + denoiser.history].repeat_interleave(
            tokens_BOT.shape[1] // denoiser.history, 0
        )
        goal_B1D = (self.plan.goal_BD + denoiser.position[0])[:, None]
        return torch.cat([goal_B1D, denoiser.observation_embedding(tokens_BOT) + steps], dim=1)

    def denoise(self, x_BCA: Tensor, sigma: float, prefix_BSD: Tensor) -> Tensor:
        """Return D(x; σ), with classifier-free guidance where the sampler asks for it.

        Raises:
            PlanError: if the plan does not know this noise level.
        """
        index = self.plan.level(sigma)
        level = self.plan.levels[index]
        scaled_BCA = level.into * x_BCA
        if self.plan.guided:
            both = self.predict(torch.cat([scaled_BCA, scaled_BCA]), index, prefix_BSD)
            given_BCA, free_BCA = both.chunk(2)
            f_BCA = free_BCA + self.plan.sampler.guidance * (given_BCA - free_BCA)
        else:
            f_BCA = self.predict(scaled_BCA, index, prefix_BSD)
        return level.skip * x_BCA + level.out * f_BCA

    def predict(self, scaled_BCA: Tensor, level: int, prefix_BSD: Tensor) -> Tensor:
        """Return F for noisy actions times c_in, ``(B, C, A)``."""
        plan, denoiser = self.plan, self.plan.policy.denoiser
        x_BSD = self.tokens(scaled_BCA, level, prefix_BSD)
        row = plan.row(level)
        for i, (block, tables) in enumerate(zip(denoiser.blocks, plan.layers, strict=True)):
            assert isinstance(block, MoDEBlock)
            last = denoiser.chunk if i == len(plan.layers) - 1 else x_BSD.shape[1]
            u_BSD = x_BSD[:, -last:] + self._attention(block, tables, x_BSD, row, last)
            v_BSD = _unit(u_BSD) * block.expert_norm.gain
            mixed_BSD = self._experts_of(i, block, v_BSD, level, row)
            x_BSD = (v_BSD if block.residual == "normed" else u_BSD) + mixed_BSD
        return F.linear(_unit(x_BSD), plan.out_weight_AD, denoiser.out.bias)

    def tokens(self, scaled_BCA: Tensor, level: int, prefix_BSD: Tensor) -> Tensor:
        """Return the sequence ``[noise] + goal + observation + actions``, ``(B, S, D)``."""
        denoiser = self.plan.policy.denoiser
        parts = [prefix_BSD, denoiser.action_embedding(scaled_BCA) + denoiser.position[denoiser.history :]]
        if denoiser.config.noise_token:
            parts.insert(0, self.plan.noise_TD[level].expand(len(scaled_BCA), 1, -1))
        return torch.cat(parts, dim=1)

    def chosen(self, layer: int, level: int) -> list[int]:
        """Return the experts of a layer at a noise level, where noise alone decides."""
        assert self._experts is not None
        return self._experts[layer][level]

    def _attention(
        self, block: MoDEBlock, tables: LayerTables, x_BSD: Tensor, row: Tensor | int, last: int
    ) -> Tensor:
        attention = block.attention
        B, S, D = x_BSD.shape
        if tables.shift_VD is not None:
            x_BSD = x_BSD + _per_sample(tables.shift_VD[row])
        bias = _per_sample(tables.qkv_bias_VE[row])
        qkv_BSE = F.linear(_unit(x_BSD), tables.qkv_weight_ED) + bias
        q_BASP, k_BASP, v_BASP = qkv_BSE.view(B, S, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4)
        gain_2P = attention.qk_norm.gain[:, 0]
        q_BASP, k_BASP = _unit(q_BASP) * gain_2P[0], _unit(k_BASP) * gain_2P[1]
        y_BASP = F.scaled_dot_product_attention(q_BASP, k_BASP, v_BASP, is_causal=True)
        return F.linear(y_BASP.transpose(1, 2).reshape(B, S, D)[:, -last:], attention.proj.weight)

    def _experts_of(
        self, layer: int, block: MoDEBlock, v_BSD: Tensor, level: int, row: Tensor | int
    ) -> Tensor:
        """Weighted sum of the chosen experts, and of the shared one where there is one."""
        bank, tables = bank_of(block), self.plan.layers[layer]
        weight_K = tables.weight_VK[row]
        if self._experts is not None:
            chosen = self.chosen(layer, level)
            out_BSD = sum_of([weight_K[k] * _expert(bank, n, v_BSD) for k, n in enumerate(chosen)])
        else:
            # Each sample its own experts: all of them run, and a sample takes what its routing says.
            share_BN = torch.zeros(
                len(v_BSD), len(bank.up_weight_NED), device=v_BSD.device, dtype=v_BSD.dtype
            )
            share_BN = share_BN.scatter(1, tables.expert_VK[row], weight_K)
            out_BSD = sum_of(
                [share_BN[:, n, None, None] * _expert(bank, n, v_BSD) for n in range(share_BN.shape[1])]
            )
        if block.shared is not None:
            assert isinstance(block.shared, SwiGLUExperts)
            out_BSD = out_BSD + _expert(block.shared, 0, v_BSD)
        return out_BSD


def _unit(x: Tensor, eps: float = 1e-6) -> Tensor:
    """``x / max(rms(x), ε)``: `mode_policy.nn.norm.RMSNorm` without its gain."""
    rms = torch.linalg.vector_norm(x, dim=-1, keepdim=True) * x.shape[-1] ** -0.5
    return x / rms.clamp(min=eps)


def _per_sample(rows: Tensor) -> Tensor:
    """A table's rows, to be added to ``(B, S, …)``: one row for all, or one for each sample."""
    return rows if rows.ndim == 1 else rows[:, None]


def _expert(bank: SwiGLUExperts, n: int, x_BSD: Tensor) -> Tensor:
    linear_BSH, gate_BSH = F.linear(x_BSD, bank.up_weight_NED[n], bank.up_bias_NE[n]).chunk(2, dim=-1)
    return F.linear(linear_BSH * F.silu(gate_BSH), bank.down_weight_NDH[n])


def sum_of(terms: list[Tensor]) -> Tensor:
    """Add tensors from left to right."""
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total
