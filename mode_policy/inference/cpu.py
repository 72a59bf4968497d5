"""The engine for processors: every product is ``weights @ columns``, with the tokens as columns.

At batch 1 a chunk multiplies large weights by a handful of tokens. Written the usual way, ``tokens @
weightsᵀ``, the library's product packs the weights anew each time; written as ``weights @ columns`` with the
columns padded to a multiple of 16, it streams them once, and about twice as fast. So activations are kept
feature by feature, ``(D, R)``, all the way through; nothing is copied, and the weights are the policy's own.

In the precision int8 a piece of a weight at a time is widened into a buffer that stays in the cache, so
memory delivers a quarter of the bytes.

Legend: R = B·S columns (tokens), padded to a multiple of 16; B batch, S sequence, D width, E = 3D or 2H,
H hidden width, K active experts, A heads, P width of a head, C chunk.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mode_policy.diffusion.prefix import Prefix
from mode_policy.errors import PlanError
from mode_policy.inference.engine import Engine
from mode_policy.inference.network import PlannedNetwork
from mode_policy.inference.plan import InferencePlan
from mode_policy.inference.weights import ExpertWeights, Matrix
from mode_policy.nn.block import MoDEBlock

#: Columns are padded to a multiple of this: the width of the library's inner kernel.
COLUMNS = 16

#: Numbers of an int8 weight that are widened at a time: 1 MB as float32, which the caches hold.
PIECE = 2**18


class CpuEngine(Engine):
    """Runs a plan on a processor, feature by feature; see the module.

    Raises:
        PlanError: if the policy is not on a processor, its routers look at the goal (samples of a batch
            would have different experts), or the precision is neither float32 nor int8; use ``eager`` then.
    """

    name = "cpu"

    def __init__(self, plan: InferencePlan) -> None:
        if plan.policy.device.type != "cpu":
            raise PlanError(f"the engine 'cpu' runs on a processor, the policy is on {plan.policy.device}")
        if plan.uses_goal:
            raise PlanError(
                "the engine 'cpu' needs routers that look at the noise alone; use the engine 'eager'"
            )
        if plan.precision not in ("float32", "int8"):
            raise PlanError(
                f"the engine 'cpu' knows the precisions float32 and int8, not {plan.precision}; use one of "
                "them, or the engine 'eager'"
            )
        super().__init__(plan)
        self.network = ColumnNetwork(plan)

    def sample(self, tokens_BOT: Tensor, draws: Sequence[Tensor], prefix: Prefix | None) -> Tensor:
        """Run the loop."""
        return self.loop(tokens_BOT, draws, prefix)


class ColumnNetwork(PlannedNetwork):
    """`PlannedNetwork` with tokens as columns."""

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
            u_DR = add_product(x_DR, weights.projection_DD, y_DR)
            v_DR = _unit(u_DR).mul_(block.expert_norm.gain[:, None])
            x_DR = v_DR if block.residual == "normed" else u_DR
            for k, n in enumerate(self.chosen(i, level)):
                hidden_HR = _hidden(weights.experts, n, v_DR).mul_(weight_VK[level, k])
                x_DR = add_product(x_DR, weights.experts.down_NDH.expert(n), hidden_HR)
            if weights.shared is not None:
                x_DR = add_product(x_DR, weights.shared.down_NDH.expert(0), _hidden(weights.shared, 0, v_DR))
        y_DR = _unit(x_DR)
        y_BDC = y_DR[:, : B * S].view(D, B, S).transpose(0, 1)[:, :, -denoiser.chunk :]
        return F.linear(y_BDC.transpose(1, 2), plan.out_weight_AD, denoiser.out.bias)

    def _heads(self, layer: int, block: MoDEBlock, x_DR: Tensor, level: int, B: int, S: int) -> Tensor:
        """What the heads say, before the output projection."""
        tables, attention = self.plan.layers[layer], block.attention
        shifted_DR = x_DR if tables.shift_VD is None else x_DR + tables.shift_VD[level][:, None]
        weight_ED = Matrix(tables.qkv_weight_ED, tables.qkv_scale_E)
        qkv_ER = add_product(tables.qkv_bias_VE[level][:, None], weight_ED, _unit(shifted_DR))
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


def add_product(added: Tensor, weight: Matrix, x_IR: Tensor) -> Tensor:
    """Return ``added + weight @ x``, ``(outputs, R)``; ``added`` may be a column for all."""
    if weight.scale is None:
        return torch.addmm(added, weight.value, x_IR)
    outputs, inputs = weight.value.shape
    rows = max(1, PIECE // inputs)
    piece_OI = x_IR.new_empty(min(rows, outputs), inputs)
    out_OR = x_IR.new_empty(outputs, x_IR.shape[1])
    for first in range(0, outputs, rows):
        part_OI = weight.value[first : first + rows]
        torch.mm(piece_OI[: len(part_OI)].copy_(part_OI), x_IR, out=out_OR[first : first + rows])
    return torch.addcmul(added, out_OR, weight.scale[:, None])


def _unit(x_DR: Tensor, eps: float = 1e-6) -> Tensor:
    rms_1R = torch.linalg.vector_norm(x_DR, dim=0, keepdim=True) * x_DR.shape[0] ** -0.5
    return x_DR / rms_1R.clamp_(min=eps)


def _hidden(bank: ExpertWeights, n: int, v_DR: Tensor) -> Tensor:
    """Hidden units of an expert, ``(H, R)``."""
    h_ER = add_product(bank.bias_NE[n][:, None], bank.up_NED.expert(n), v_DR)
    linear_HR, gate_HR = h_ER.chunk(2)
    return F.silu(gate_HR).mul_(linear_HR)
