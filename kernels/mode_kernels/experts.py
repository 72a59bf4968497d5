"""Routed SwiGLU experts as one operation with a hand-written backward.

Routing is per row (a sample, where the noise level routes), so the tokens of a row are contiguous and the
rows of an expert form one matrix product. An expert runs only on the rows that chose it. On a GPU that is
`mode_kernels.grouped`, here it is a loop over the experts.

Legend: R routed rows, S tokens per row, D width, H hidden width, E = 2H, N experts, K active experts,
M rows of one expert, Q = M·S tokens of one expert.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mode_kernels.reference import expert_mlp_reference


def expert_mlp(
    x_RSD: Tensor,
    expert_RK: Tensor,
    weight_RK: Tensor,
    up_weight_NED: Tensor,
    up_bias_NE: Tensor,
    down_weight_NDH: Tensor,
    dropout: float = 0.0,
) -> Tensor:
    """Weighted sum of the chosen SwiGLU experts; see `expert_mlp_reference` for the formula.

    Args:
        x_RSD: tokens.
        expert_RK: int64 expert of each row, distinct within a row.
        weight_RK: weight of each chosen expert.
        up_weight_NED: first projections, linear half above the gate half.
        up_bias_NE: their biases.
        down_weight_NDH: second projections.
        dropout: probability of dropping a hidden unit (training only).

    Returns:
        ``(R, S, D)``.
    """
    arguments = (x_RSD, expert_RK, weight_RK, up_weight_NED, up_bias_NE, down_weight_NDH)
    if dropout == 0 and x_RSD.device.type == "cuda" and _kernels_run(x_RSD.device, _product_type(x_RSD)):
        return _grouped_on_gpu(*arguments)
    # The sizes of the groups have to be known on the host: free on a CPU, a stall on an accelerator and a
    # break in a compiled graph. Dropout needs the autograd of the hidden units. These take the dense form.
    if dropout > 0 or x_RSD.device.type != "cpu" or torch.compiler.is_compiling():
        return expert_mlp_reference(*arguments, dropout)
    out_RSD: Tensor = _GroupedExperts.apply(*arguments)
    return out_RSD


def _product_type(x_RSD: Tensor) -> torch.dtype:
    """Type in which products are taken: that of the autocast, or of the tokens."""
    device = x_RSD.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x_RSD.dtype


def _kernels_run(device: torch.device, dtype: torch.dtype) -> bool:
    if importlib.util.find_spec("triton") is None:
        return False
    from mode_kernels import launch

    return launch.unsupported(device, dtype) is None


# What `torch.compiler.assume_constant_result` sets; that would import the compiler, which takes seconds.
_kernels_run._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _grouped_on_gpu(
    x_RSD: Tensor,
    expert_RK: Tensor,
    weight_RK: Tensor,
    up_weight_NED: Tensor,
    up_bias_NE: Tensor,
    down_weight_NDH: Tensor,
) -> Tensor:
    # Imported here: a policy on a CPU needs no Triton.
    from mode_kernels.grouped import grouped_experts

    dtype = _product_type(x_RSD)
    tensors = (x_RSD, weight_RK, up_weight_NED, up_bias_NE, down_weight_NDH)
    out_RSD: Tensor = grouped_experts(
        x_RSD.to(dtype).contiguous(),
        expert_RK,
        weight_RK.contiguous(),
        up_weight_NED.to(dtype),
        up_bias_NE,
        down_weight_NDH.to(dtype),
        torch.is_grad_enabled() and any(t.requires_grad for t in tensors),
    )[0]
    return out_RSD


def _groups(expert_RK: Tensor, num_experts: int) -> list[tuple[int, Tensor, Tensor]]:
    """For each expert in use: its number, the rows that chose it, and that choice's flat place in (R, K)."""
    flat = expert_RK.flatten()
    order = flat.argsort(stable=True)
    sizes = torch.bincount(flat, minlength=num_experts).tolist()
    slots = order.split(sizes)
    return [(n, s // expert_RK.shape[1], s) for n, s in enumerate(slots) if len(s)]


class _GroupedExperts(torch.autograd.Function):
    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu", cast_inputs=torch.float32)
    def forward(
        ctx: Any,
        x_RSD: Tensor,
        expert_RK: Tensor,
        weight_RK: Tensor,
        up_weight_NED: Tensor,
        up_bias_NE: Tensor,
        down_weight_NDH: Tensor,
    ) -> Tensor:
        _, S, D = x_RSD.shape
        H = down_weight_NDH.shape[2]
        groups = _groups(expert_RK, up_weight_NED.shape[0])
        out_RSD = torch.zeros_like(x_RSD)
        saved: list[Tensor] = []
        for n, rows_M, slots_M in groups:
            x_QD = x_RSD[rows_M].view(-1, D)
            h_QE = torch.addmm(up_bias_NE[n], x_QD, up_weight_NED[n].t())
            silu_QH = F.silu(h_QE[:, H:])
            hidden_QH = silu_QH * h_QE[:, :H]
            y_MSD = torch.mm(hidden_QH, down_weight_NDH[n].t()).view(-1, S, D)
            out_RSD.index_add_(0, rows_M, y_MSD * weight_RK.flatten()[slots_M, None, None])
            saved += [x_QD, h_QE, silu_QH, hidden_QH, y_MSD]
        ctx.groups = groups
        ctx.save_for_backward(weight_RK, up_weight_NED, down_weight_NDH, *saved)
        return out_RSD

    @staticmethod
    @torch.amp.custom_bwd(device_type="cpu")
    def backward(ctx: Any, grad_RSD: Tensor) -> tuple[Tensor | None, ...]:
        weight_RK, up_weight_NED, down_weight_NDH, *saved = ctx.saved_tensors
        grad_RSD = grad_RSD.contiguous()
        S, D = grad_RSD.shape[1:]
        H = down_weight_NDH.shape[2]
        dx_RSD = torch.zeros_like(grad_RSD)
        dweight_RK = torch.zeros_like(weight_RK)
        # Gradients are as large as the experts: written once where an expert was used, zeroed only elsewhere.
        dup_NED = torch.empty_like(up_weight_NED)
        dbias_NE = up_weight_NED.new_empty(up_weight_NED.shape[:2])
        ddown_NDH = torch.empty_like(down_weight_NDH)
        for n in set(range(len(dup_NED))) - {n for n, _, _ in ctx.groups}:
            for gradient in (dup_NED, dbias_NE, ddown_NDH):
                gradient[n].zero_()
        for i, (n, rows_M, slots_M) in enumerate(ctx.groups):
            x_QD, h_QE, silu_QH, hidden_QH, y_MSD = saved[5 * i : 5 * i + 5]
            linear_QH, gate_QH = h_QE[:, :H], h_QE[:, H:]
            grad_MSD = grad_RSD[rows_M]
            dweight_RK.view(-1)[slots_M] = (grad_MSD * y_MSD).sum((1, 2))
            dy_QD = grad_MSD.mul_(weight_RK.flatten()[slots_M, None, None]).view(-1, D)
            torch.mm(dy_QD.t(), hidden_QH, out=ddown_NDH[n])
            dhidden_QH = torch.mm(dy_QD, down_weight_NDH[n])
            dh_QE = torch.empty_like(h_QE)
            torch.mul(dhidden_QH, silu_QH, out=dh_QE[:, :H])
            torch.ops.aten.silu_backward(dhidden_QH.mul_(linear_QH), gate_QH, grad_input=dh_QE[:, H:])
            torch.mm(dh_QE.t(), x_QD, out=dup_NED[n])
            torch.sum(dh_QE, 0, out=dbias_NE[n])
            dx_RSD.index_add_(0, rows_M, torch.mm(dh_QE, up_weight_NED[n]).view(-1, S, D))
        return dx_RSD, None, dweight_RK, dup_NED, dbias_NE, ddown_NDH
