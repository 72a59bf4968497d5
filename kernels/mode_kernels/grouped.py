"""The routed experts on a GPU as one differentiable operation, ``mode::grouped_experts``.

Legend: R routed rows, S tokens of a row, D width, H hidden width, E = 2H, N experts, K active experts,
J = R·K slots, T = J·S tokens sorted by expert.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mode_kernels.grouped_backward import hidden, outer
from mode_kernels.grouped_forward import combine, rows, up
from mode_kernels.grouping import group_slots
from mode_kernels.launch import DTYPES, kernel_op, require
from mode_kernels.tile_table import Tile, lookup

# Names of their entries in the tile tables, in the order in which an operation takes its tiles.
FORWARD_KERNELS = ("grouped_up", "grouped_rows")
BACKWARD_KERNELS = ("grouped_hidden", "grouped_rows", "grouped_outer")
_FIELDS = len(Tile._fields)


def _tiles(kernels: Sequence[str], weight: Tensor, tokens: int, tile: Sequence[int] | None) -> list[Tile]:
    """The tile of each kernel: from the table, or as given, one for all or one for each."""
    if tile is None:
        return [lookup(kernel, weight.device, weight.dtype, tokens) for kernel in kernels]
    given = [Tile(*tile[i : i + _FIELDS]) for i in range(0, len(tile), _FIELDS)]
    require(len(given) in (1, len(kernels)), f"{len(given)} tiles for {', '.join(kernels)}")
    return given * (len(kernels) // len(given))


@kernel_op("grouped_experts")
def grouped_experts(
    x_RSD: Tensor,
    expert_RK: Tensor,
    route_RK: Tensor,
    up_weight_NED: Tensor,
    up_bias_NE: Tensor,
    down_weight_NDH: Tensor,
    keep: bool = True,
    tile: Sequence[int] | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Weighted sum of the chosen SwiGLU experts; see `expert_mlp_reference` for the formula.

    Args:
        x_RSD: tokens, contiguous as all others; float32, bfloat16 or float16.
        expert_RK: int64 or int32 expert of each row, distinct within a row.
        route_RK: weight of each chosen expert, any floating-point type.
        up_weight_NED: first projections, linear half above the gate half, in the type of x.
        up_bias_NE: their biases.
        down_weight_NDH: second projections, in the type of x.
        keep: keep what the backward pass needs.
        tile: a `Tile` for all kernels, or one for each of `FORWARD_KERNELS`, one after the other; by default
            those of the tile table.

    Returns:
        Result ``(R, S, D)`` in the wider type of x and the routing weights, and for the backward pass: the
        first projection h ``(T, E)`` (empty unless kept), ``slot_J``, ``place_J`` and ``start_N1`` of
        `group_slots`.

    Raises:
        ValueError: for shapes, types or layouts that do not fit.
    """
    (R, S, D), (N, E, _) = x_RSD.shape, up_weight_NED.shape
    shapes = [tuple(w.shape) for w in (up_weight_NED, up_bias_NE, down_weight_NDH)]
    require(
        shapes == [(N, E, D), (N, E), (N, D, E // 2)]
        and expert_RK.shape == route_RK.shape
        and len(route_RK) == R,
        f"grouped_experts: x {tuple(x_RSD.shape)}, routing {tuple(route_RK.shape)}, weights {shapes}",
    )
    require(
        x_RSD.dtype in DTYPES and x_RSD.dtype == up_weight_NED.dtype == down_weight_NDH.dtype,
        f"grouped_experts: x of {x_RSD.dtype}, weights of {up_weight_NED.dtype} and {down_weight_NDH.dtype}",
    )
    for tensor in (x_RSD, expert_RK, route_RK, up_weight_NED, up_bias_NE, down_weight_NDH):
        require(tensor.is_contiguous(), f"grouped_experts: a tensor {tuple(tensor.shape)} is not contiguous")
    T = route_RK.numel() * S
    slot_J, place_J, start_N1 = group_slots(expert_RK, N)
    up_tile, rows_tile = _tiles(FORWARD_KERNELS, up_weight_NED, T, tile)
    h_TE, hidden_TH = up(x_RSD, up_weight_NED, up_bias_NE, slot_J, start_N1, keep, up_tile)
    y_TD = rows(hidden_TH, down_weight_NDH, start_N1, S, rows_tile)
    out_RSD = torch.empty_like(x_RSD, dtype=torch.promote_types(x_RSD.dtype, route_RK.dtype))
    return combine(y_TD, route_RK, place_J, out_RSD), h_TE, slot_J, place_J, start_N1


@kernel_op("grouped_experts_backward")
def grouped_experts_backward(
    grad_RSD: Tensor,
    x_RSD: Tensor,
    route_RK: Tensor,
    up_weight_NED: Tensor,
    up_bias_NE: Tensor,
    down_weight_NDH: Tensor,
    h_TE: Tensor,
    slot_J: Tensor,
    place_J: Tensor,
    start_N1: Tensor,
    tile: Sequence[int] | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, the routing weights, and the three weights, each in its own type.

    ``tile`` is one for all kernels or one for each of `BACKWARD_KERNELS`.
    """
    S, T = x_RSD.shape[1], h_TE.shape[0]
    hidden_tile, rows_tile, outer_tile = _tiles(BACKWARD_KERNELS, up_weight_NED, T, tile)
    dh_TE, weighted_TH, share = hidden(
        grad_RSD, down_weight_NDH, route_RK, h_TE, slot_J, start_N1, hidden_tile
    )
    dx_TD = rows(dh_TE, up_weight_NED.transpose(1, 2), start_N1, S, rows_tile)
    dbias_NE = torch.empty_like(up_bias_NE)
    dup_NED = outer(dh_TE, x_RSD, slot_J, start_N1, S, up_weight_NED, outer_tile, False, dbias_NE)
    ddown_NDH = outer(grad_RSD, weighted_TH, slot_J, start_N1, S, down_weight_NDH, outer_tile, True)
    droute_J = share.view(T // S, -1).sum(1)[place_J]
    dx_RSD = combine(dx_TD, None, place_J, torch.empty_like(x_RSD))
    return dx_RSD, droute_J.view_as(route_RK).to(route_RK.dtype), dup_NED, dbias_NE, ddown_NDH


@grouped_experts.register_fake
def _(
    x_RSD: Tensor,
    expert_RK: Tensor,
    route_RK: Tensor,
    up_weight_NED: Tensor,
    up_bias_NE: Tensor,
    down_weight_NDH: Tensor,
    keep: bool = True,
    tile: Sequence[int] | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    slots, (N, E, _) = route_RK.numel(), up_weight_NED.shape
    out_RSD = torch.empty_like(x_RSD, dtype=torch.promote_types(x_RSD.dtype, route_RK.dtype))
    slot_J, place_J, start_N1 = (x_RSD.new_empty(n, dtype=torch.int32) for n in (slots, slots, N + 1))
    return out_RSD, x_RSD.new_empty(slots * x_RSD.shape[1] if keep else 0, E), slot_J, place_J, start_N1


@grouped_experts_backward.register_fake
def _(
    grad_RSD: Tensor,
    x_RSD: Tensor,
    route_RK: Tensor,
    up_weight_NED: Tensor,
    up_bias_NE: Tensor,
    down_weight_NDH: Tensor,
    h_TE: Tensor,
    slot_J: Tensor,
    place_J: Tensor,
    start_N1: Tensor,
    tile: Sequence[int] | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    like = (x_RSD, route_RK, up_weight_NED, up_bias_NE, down_weight_NDH)
    dx, droute, dup, dbias, ddown = (torch.empty_like(tensor) for tensor in like)
    return dx, droute, dup, dbias, ddown


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x_RSD, _, route_RK, up_weight_NED, up_bias_NE, down_weight_NDH, _, tile = inputs
    # Several tiles are those of the forward pass; the backward pass has other kernels.
    ctx.tile = tile if tile is not None and len(tile) == _FIELDS else None
    ctx.save_for_backward(x_RSD, route_RK, up_weight_NED, up_bias_NE, down_weight_NDH, *output[1:])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, grad_RSD: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if grad_RSD is None:
        return (None,) * 8
    gradients = grouped_experts_backward(grad_RSD.contiguous(), *ctx.saved_tensors, ctx.tile)
    dx_RSD, droute_RK, dup_NED, dbias_NE, ddown_NDH = gradients
    return dx_RSD, None, droute_RK, dup_NED, dbias_NE, ddown_NDH, None, None


grouped_experts.register_autograd(_differentiate, setup_context=_save)
