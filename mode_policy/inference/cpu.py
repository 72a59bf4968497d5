"""The engine for processors: every product is ``weights @ columns``, with the tokens as columns.

At batch 1 a chunk multiplies large weights by a handful of tokens. Written the usual way, ``tokens @
weightsᵀ``, the library's product packs the weights anew each time; written as ``weights @ columns`` with the
columns padded to a multiple of 16, it streams them once, and about twice as fast. So activations are kept
feature by feature, ``(D, R)``, all the way through; nothing is copied, and the weights are the policy's own.

Legend: R = B·S columns (tokens), padded to a multiple of 16; B batch, S sequence, D width, E = 3D or 2H, H
    hidden
width, K active experts, A heads, P width of a head, C chunk.
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
from mode_policy.inference.plan import InferencePlan, LayerTables, bank_of
from mode_policy.nn.block import MoDEBlock
from mode_policy.nn.experts import SwiGLUExperts

#: Columns are padded to a multiple of this: the width of the library's inner kernel.
COLUMNS = 16


class CpuEngine(Engine):
    """Runs a plan on a processor, feature by feature; see the module.

    Raises:
        PlanError: if the policy is not on a processor or its routers look at the goal (samples of a batch
            would have different experts; use ``eager``).
    """

    name = "cpu"

    def __init__(self, plan: InferencePlan) -> None:
        if plan.policy.device.type != "cpu":
            raise PlanError(f"the engine 'cpu' runs on a processor, the policy is on {plan.policy.device}")
        if plan.uses_goal:
            raise PlanError(
                "the engine 'cpu' needs routers that look at the noise alone; use the engine 'eager'"
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
        for i, (block, tables) in enumerate(zip(denoiser.blocks, plan.layers, strict=True)):
            assert isinstance(block, MoDEBlock)
            u_DR = x_DR + _attention(block, tables, x_DR, level, B, S)
            v_DR = _unit(u_DR).mul_(block.expert_norm.gain[:, None])
            x_DR = v_DR if block.residual == "normed" else u_DR
            chosen = self.chosen(i, level)
            for k, n in enumerate(chosen):
                x_DR = torch.addmm(x_DR, *_expert(bank_of(block), n, v_DR, tables.weight_VK[level, k]))
            if block.shared is not None:
                assert isinstance(block.shared, SwiGLUExperts)
                x_DR = torch.addmm(x_DR, *_expert(block.shared, 0, v_DR, None))
        y_DR = _unit(x_DR)
        y_BDC = y_DR[:, : B * S].view(D, B, S).transpose(0, 1)[:, :, -denoiser.chunk :]
        return F.linear(y_BDC.transpose(1, 2), plan.out_weight_AD, denoiser.out.bias)


def _unit(x_DR: Tensor, eps: float = 1e-6) -> Tensor:
    rms_1R = torch.linalg.vector_norm(x_DR, dim=0, keepdim=True) * x_DR.shape[0] ** -0.5
    return x_DR / rms_1R.clamp_(min=eps)


def _attention(block: MoDEBlock, tables: LayerTables, x_DR: Tensor, level: int, B: int, S: int) -> Tensor:
    attention = block.attention
    if tables.shift_VD is not None:
        x_DR = x_DR + tables.shift_VD[level][:, None]
    qkv_ER = torch.addmm(tables.qkv_bias_VE[level][:, None], tables.qkv_weight_ED, _unit(x_DR))
    # (3·A·P, B·S) → (3, B, A, S, P): a few kilobytes.
    qkv = qkv_ER[:, : B * S].view(3, attention.num_heads, -1, B, S).permute(0, 3, 1, 4, 2)
    q_BASP, k_BASP, v_BASP = qkv.contiguous()
    gain_2P = attention.qk_norm.gain[:, 0]
    q_BASP, k_BASP = (
        x / (torch.linalg.vector_norm(x, dim=-1, keepdim=True) * x.shape[-1] ** -0.5).clamp_(min=1e-6) * gain
        for x, gain in ((q_BASP, gain_2P[0]), (k_BASP, gain_2P[1]))
    )
    y_BASP = F.scaled_dot_product_attention(q_BASP, k_BASP, v_BASP, is_causal=True)
    y_DR = torch.zeros_like(x_DR)
    y_DR[:, : B * S] = y_BASP.permute(1, 3, 0, 2).reshape(-1, B * S)
    return attention.proj.weight @ y_DR


def _expert(bank: SwiGLUExperts, n: int, v_DR: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
    """The two factors of an expert's output: its second projection, and its (weighted) hidden units."""
    h_ER = torch.addmm(bank.up_bias_NE[n][:, None], bank.up_weight_NED[n], v_DR)
    linear_HR, gate_HR = h_ER.chunk(2)
    hidden_HR = F.silu(gate_HR).mul_(linear_HR)
    return bank.down_weight_NDH[n], hidden_HR if weight is None else hidden_HR.mul_(weight)
