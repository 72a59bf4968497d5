"""What one layer knows before the first observation arrives; see `mode_policy.inference.plan`.

Legend: V rows of the tables, K active experts, D width, E = 3D.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mode_policy.nn.block import MoDEBlock


@dataclass(frozen=True, eq=False)
class LayerTables:
    """What one layer knows beforehand, a row for each noise level (and sample, where goals matter).

    Attributes:
        qkv_weight_ED: query, key and value projection with the norm's gain folded in, in the plan's
            precision.
        qkv_scale_E: float32 scale of each of its outputs, for precisions of 8 bits.
        qkv_bias_VE: its bias with the noise embedding's part.
        shift_VD: noise embedding that is added before the norm (residual form ``paper``), else None.
        expert_VK: int64 numbers of the experts that run, best first.
        weight_VK: their weights.
    """

    qkv_weight_ED: Tensor
    qkv_scale_E: Tensor | None
    qkv_bias_VE: Tensor
    shift_VD: Tensor | None
    expert_VK: Tensor
    weight_VK: Tensor


@torch.no_grad()
def table_rows(block: MoDEBlock, condition_VD: Tensor) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """Return the last four fields of a layer's `LayerTables`.

    Args:
        block: the layer.
        condition_VD: noise embedding of each row, with the goal's where routers look at it.
    """
    qkv, paper = block.attention.qkv, block.residual == "paper"
    bias_VE = qkv.bias.expand(len(condition_VD), -1) if paper else qkv(condition_VD)
    routing = block.router(condition_VD, condition_VD[:, None])
    shift_VD = condition_VD.clone() if paper else None
    return bias_VE.clone(), shift_VD, routing.expert_RK, routing.weight_RK
