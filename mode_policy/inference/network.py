"""The denoiser as a plan runs it: tables instead of routers and noise embeddings, only the chosen experts.

Plain tensor operations that run on any device and compile into one graph: which experts run is read from the
plan on the host, where noise alone decides; otherwise by gathering. Norms, the sampler and everything small
are computed in float32; in other precisions than float32 the large products are not.

Legend: B batch, S sequence, D width, H hidden width, K active experts, C chunk, A action dimension,
O observation tokens.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mode_policy.inference.plan import InferencePlan
from mode_policy.inference.weights import BankProducts, LayerProducts, Matrix
from mode_policy.nn.block import MoDEBlock


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
        for i, block in enumerate(denoiser.blocks):
            assert isinstance(block, MoDEBlock)
            last = denoiser.chunk if i == len(plan.layers) - 1 else x_BSD.shape[1]
            u_BSD = x_BSD[:, -last:] + self._attention(i, block, x_BSD, row, last)
            v_BSD = _unit(u_BSD, block.expert_norm.gain)
            mixed_BSD = self._experts_of(i, v_BSD, level, row)
            x_BSD = (v_BSD if block.residual == "normed" else u_BSD) + mixed_BSD
        return self.output(x_BSD)

    def output(self, x_BCD: Tensor) -> Tensor:
        """Return F from what the last block returned for the actions."""
        return F.linear(_unit(x_BCD.float()), self.plan.out_weight_AD, self.plan.policy.denoiser.out.bias)

    def tokens(self, scaled_BCA: Tensor, level: int, prefix_BSD: Tensor) -> Tensor:
        """Return the sequence ``[noise] + goal + observation + actions``, ``(B, S, D)``."""
        denoiser = self.plan.policy.denoiser
        parts = [prefix_BSD, denoiser.action_embedding(scaled_BCA) + denoiser.position[denoiser.history :]]
        if denoiser.config.noise_token:
            parts.insert(0, self.plan.noise_TD[level].expand(len(scaled_BCA), 1, -1))
        return torch.cat(parts, dim=1).to(self.plan.stream)

    def chosen(self, layer: int, level: int) -> list[int]:
        """Return the experts of a layer at a noise level, where noise alone decides."""
        assert self._experts is not None
        return self._experts[layer][level]

    def _attention(self, layer: int, block: MoDEBlock, x_BSD: Tensor, row: Tensor | int, last: int) -> Tensor:
        tables, num_heads = self.plan.layers[layer], block.attention.num_heads
        B, S, D = x_BSD.shape
        shifted_BSD = x_BSD if tables.shift_VD is None else x_BSD + _per_sample(tables.shift_VD[row])
        unit_BSD = _unit(shifted_BSD).to(x_BSD.dtype)
        products = self.products(layer)
        qkv_BSE = (products.qkv.apply(unit_BSD) + _per_sample(tables.qkv_bias_VE[row])).to(x_BSD.dtype)
        q_BASP, k_BASP, v_BASP = qkv_BSE.view(B, S, 3, num_heads, -1).permute(2, 0, 3, 1, 4)
        gain_2P = block.attention.qk_norm.gain[:, 0]
        q_BASP, k_BASP = _unit(q_BASP, gain_2P[0]), _unit(k_BASP, gain_2P[1])
        y_BASP = F.scaled_dot_product_attention(q_BASP, k_BASP, v_BASP, is_causal=True)
        y_BSD = y_BASP.transpose(1, 2).reshape(B, S, D)
        return products.projection.apply(y_BSD[:, -last:])

    def products(self, layer: int) -> LayerProducts:
        """Return a layer's large products."""
        tables, weights = self.plan.layers[layer], self.plan.weights(layer)
        return LayerProducts(
            Matrix(tables.qkv_weight_ED, tables.qkv_scale_E),
            weights.projection_DD,
            BankProducts(*weights.experts),
            None if weights.shared is None else BankProducts(*weights.shared),
        )

    def _experts_of(self, layer: int, v_BSD: Tensor, level: int, row: Tensor | int) -> Tensor:
        """Weighted sum of the chosen experts, and of the shared one where there is one."""
        tables, products = self.plan.layers[layer], self.products(layer)
        bank, shared, weight_K = products.experts, products.shared, tables.weight_VK[row]
        if self._experts is not None:
            chosen = self.chosen(layer, level)
            out_BSD = sum_of([weight_K[k] * _expert(bank, n, v_BSD) for k, n in enumerate(chosen)])
        else:
            # Each sample its own experts: all of them run, and a sample takes what its routing says.
            share_BN = weight_K.new_zeros(len(v_BSD), len(bank.bias_NE)).scatter(
                1, tables.expert_VK[row], weight_K
            )
            share_N_B11 = share_BN.to(v_BSD.dtype).t()[:, :, None, None]
            out_BSD = sum_of([share * _expert(bank, n, v_BSD) for n, share in enumerate(share_N_B11)])
        return out_BSD if shared is None else out_BSD + _expert(shared, 0, v_BSD)


def _unit(x: Tensor, gain: Tensor | None = None, eps: float = 1e-6) -> Tensor:
    """``x / max(rms(x), ε) · gain``, `mode_policy.nn.norm.RMSNorm`; in float32, rounded at the end."""
    wide = x.float()
    rms = torch.linalg.vector_norm(wide, dim=-1, keepdim=True) * x.shape[-1] ** -0.5
    unit = wide / rms.clamp(min=eps)
    return (unit if gain is None else unit * gain).to(x.dtype)


def _per_sample(rows: Tensor) -> Tensor:
    """A table's rows, to be added to ``(B, S, …)``: one row for all, or one for each sample."""
    return rows if rows.ndim == 1 else rows[:, None]


def _expert(bank: BankProducts, n: int, x_BSD: Tensor) -> Tensor:
    linear_BSH, gate_BSH = bank.up.expert(n).apply(x_BSD, bank.bias_NE[n]).chunk(2, dim=-1)
    return bank.down.expert(n).apply(linear_BSH * F.silu(gate_BSH))


def sum_of(terms: list[Tensor]) -> Tensor:
    """Add tensors from left to right."""
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total
