"""The network of native code for processors: every product is ``weights @ columns``, tokens as columns.

At batch 1 a chunk multiplies large weights by a handful of tokens. Written the usual way, ``tokens @
weightsᵀ``, the library's product packs the weights anew each time; written as ``weights @ columns`` with the
columns padded to a multiple of 16, it streams them once: about twice as fast on two threads, and as fast on
one. So activations are kept feature by feature, ``(D, R)``, all the way through, and the code needs no second
copy of a weight.

Legend: R = B·S columns (tokens), padded to a multiple of 16; B batch, S sequence, D width, E = 3D or 2H,
H hidden width, K active experts, A heads, P width of a head, C chunk.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mode_policy.inference.network import PlannedNetwork
from mode_policy.inference.weights import ExpertWeights
from mode_policy.nn.block import MoDEBlock

#: Columns are padded to a multiple of this: the width of the library's inner kernel.
COLUMNS = 16


class ColumnNetwork(PlannedNetwork):
    """`PlannedNetwork` with tokens as columns; of plans in float32 whose routers look at the noise alone."""

    def predict(self, scaled_BCA: Tensor, level: int, prefix_BSD: Tensor) -> Tensor:
        """Return F for noisy actions times c_in, ``(B, C, A)``."""
        plan, denoiser = self.plan, self.plan.policy.denoiser
        x_BSD = self.tokens(scaled_BCA, level, prefix_BSD)
        B, S, D = x_BSD.shape
        x_DR = x_BSD.new_zeros(D, -(-B * S // COLUMNS) * COLUMNS)
        x_DR[:, : B * S] = x_BSD.reshape(B * S, D).t()
        for i, block in enumerate(denoiser.blocks):
            assert isinstance(block, MoDEBlock)
            weights, weight_VK = plan.weights(i), plan.layers[i].weight_VK
            y_DR = self._heads(i, block, x_DR, level, B, S)
            u_DR = torch.addmm(x_DR, weights.projection_DD.value, y_DR)
            v_DR = _unit(u_DR).mul_(block.expert_norm.gain[:, None])
            x_DR = v_DR if block.residual == "normed" else u_DR
            for k, n in enumerate(self.chosen(i, level)):
                hidden_HR = _hidden(weights.experts, n, v_DR).mul_(weight_VK[level, k])
                x_DR = torch.addmm(x_DR, weights.experts.down_NDH.value[n], hidden_HR)
            if weights.shared is not None:
                hidden_HR = _hidden(weights.shared, 0, v_DR)
                x_DR = torch.addmm(x_DR, weights.shared.down_NDH.value[0], hidden_HR)
        y_DR = _unit(x_DR)
        y_BDC = y_DR[:, : B * S].view(D, B, S).transpose(0, 1)[:, :, -denoiser.chunk :]
        return F.linear(y_BDC.transpose(1, 2), plan.out_weight_AD, denoiser.out.bias)

    def _heads(self, layer: int, block: MoDEBlock, x_DR: Tensor, level: int, B: int, S: int) -> Tensor:
        """What the heads say, before the output projection."""
        tables, attention = self.plan.layers[layer], block.attention
        shifted_DR = x_DR if tables.shift_VD is None else x_DR + tables.shift_VD[level][:, None]
        qkv_ER = torch.addmm(tables.qkv_bias_VE[level][:, None], tables.qkv_weight_ED, _unit(shifted_DR))
        # (3·A·P, B·S) → (3, B, A, S, P): a few kilobytes.
        qkv = qkv_ER[:, : B * S].view(3, attention.num_heads, -1, B, S).permute(0, 3, 1, 4, 2)
        q_BASP, k_BASP, v_BASP = qkv.contiguous()
        q_BASP, k_BASP = (
            F.normalize(x, dim=-1, eps=1e-6 * x.shape[-1] ** 0.5).mul_(x.shape[-1] ** 0.5 * gain_P)
            for x, gain_P in zip((q_BASP, k_BASP), attention.qk_norm.gain[:, 0], strict=True)
        )
        y_BASP = F.scaled_dot_product_attention(q_BASP, k_BASP, v_BASP, is_causal=True)
        y_DR = torch.zeros_like(x_DR)
        y_DR[:, : B * S] = y_BASP.permute(1, 3, 0, 2).reshape(-1, B * S)
        return y_DR


def _unit(x_DR: Tensor, eps: float = 1e-6) -> Tensor:
    rms_1R = torch.linalg.vector_norm(x_DR, dim=0, keepdim=True) * x_DR.shape[0] ** -0.5
    return x_DR / rms_1R.clamp_(min=eps)


def _hidden(bank: ExpertWeights, n: int, v_DR: Tensor) -> Tensor:
    """Hidden units of an expert, ``(H, R)``."""
    h_ER = torch.addmm(bank.bias_NE[n][:, None], bank.up_NED.value[n], v_DR)
    linear_HR, gate_HR = h_ER.chunk(2)
    return F.silu(gate_HR).mul_(linear_HR)
