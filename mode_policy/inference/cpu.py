"""The engine for processors: large weights in the layout of oneDNN.

At batch 1 a chunk multiplies large weights by a handful of tokens. A plain product packs the weights anew
each time, which takes longer than the multiplication. Here they are packed once; then 14 tokens run at three
quarters of the speed of a large product, and any other number is fast, too.

The packed weights are a second copy, unless the plan consumes those of the policy (`InferencePlan`).

In the precision int8 a piece of a weight at a time is widened into a buffer that stays in the cache. That
saves memory; the time is about that of plain float32 products.

Legend: R tokens, I inputs, O outputs of a weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mode_policy.diffusion.prefix import Prefix
from mode_policy.errors import PlanError
from mode_policy.inference.engine import Engine
from mode_policy.inference.network import PlannedNetwork
from mode_policy.inference.plan import InferencePlan
from mode_policy.inference.weights import BankProducts, ExpertWeights, LayerProducts, Matrix, free
from mode_policy.nn.block import MoDEBlock

#: Rows that oneDNN is told to choose the layout for. Measured with 5 to 900 rows, that of 64 is the fastest
#: for all of them; told of 14, it chooses one that is 1.5 to 3 times slower at 14.
LAYOUT_ROWS = 64

#: Numbers of an int8 weight that are widened at a time: 1 MB as float32, which the caches hold.
PIECE = 2**18

#: Rows are padded to a multiple of this for int8: the width of the library's inner kernel.
COLUMNS = 16


class CpuEngine(Engine):
    """Runs a plan on a processor; see the module.

    Raises:
        PlanError: if the policy is not on a processor, or the precision is neither float32 nor int8; use
            ``eager`` then.
    """

    name = "cpu"

    def __init__(self, plan: InferencePlan) -> None:
        if plan.policy.device.type != "cpu":
            raise PlanError(f"the engine 'cpu' runs on a processor, the policy is on {plan.policy.device}")
        if plan.precision not in ("float32", "int8"):
            raise PlanError(
                f"the engine 'cpu' knows the precisions float32 and int8, not {plan.precision}; use one of "
                "them, or the engine 'eager'"
            )
        super().__init__(plan)
        self.network = CpuNetwork(plan)

    def sample(self, tokens_BOT: Tensor, draws: Sequence[Tensor], prefix: Prefix | None) -> Tensor:
        """Run the loop."""
        return self.loop(tokens_BOT, draws, prefix)


class CpuNetwork(PlannedNetwork):
    """`PlannedNetwork` with packed weights, or with int8 weights that are widened piece by piece."""

    def __init__(self, plan: InferencePlan) -> None:
        super().__init__(plan)
        if not plan.packed:
            plan.packed += [self._prepared(i) for i in range(len(plan.layers))]

    def products(self, layer: int) -> LayerProducts:
        """Return a layer's large products."""
        return self.plan.packed[layer]

    def _prepared(self, layer: int) -> LayerProducts:
        plan, weights = self.plan, self.plan.weights(layer)
        tables, block = plan.layers[layer], plan.policy.denoiser.blocks[layer]
        assert isinstance(block, MoDEBlock)
        if plan.precision == "int8":
            return LayerProducts(
                Widened(Matrix(tables.qkv_weight_ED, tables.qkv_scale_E)),
                Widened(weights.projection_DD),
                _widened(weights.experts),
                None if weights.shared is None else _widened(weights.shared),
            )
        if not torch.backends.mkldnn.is_available():
            return super().products(layer)
        consume = plan.consume
        packed = LayerProducts(
            _packed(tables.qkv_weight_ED, consume),
            _packed(weights.projection_DD.value, consume),
            _packed_bank(weights.experts, consume),
            None if weights.shared is None else _packed_bank(weights.shared, consume),
        )
        if consume:
            plan.free(block)
        return packed


class Packed(NamedTuple):
    """A float32 weight in oneDNN's layout."""

    value: Tensor

    def apply(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return ``x @ weightᵀ + bias``."""
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.value, bias, "none", [], "")
        return out


class PackedStack(NamedTuple):
    """One for each expert."""

    experts: tuple[Packed, ...]

    def expert(self, n: int) -> Packed:
        """Return expert n."""
        return self.experts[n]


class Widened(NamedTuple):
    """An int8 weight, or a stack of them, that becomes float32 where and when it is needed."""

    matrix: Matrix

    def expert(self, n: int) -> Widened:
        """Return expert n of a stack."""
        return Widened(self.matrix.expert(n))

    def apply(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return ``x @ weightᵀ + bias``."""
        value, scale_O = self.matrix
        assert scale_O is not None
        outputs, inputs = value.shape
        x_RI = x.reshape(-1, inputs)
        x_IR = F.pad(x_RI.t(), (0, -len(x_RI) % COLUMNS)).contiguous()
        rows = max(1, PIECE // inputs)
        piece_OI = x_IR.new_empty(min(rows, outputs), inputs)
        out_OR = x_IR.new_empty(outputs, x_IR.shape[1])
        for first in range(0, outputs, rows):
            part_OI = value[first : first + rows]
            torch.mm(piece_OI[: len(part_OI)].copy_(part_OI), x_IR, out=out_OR[first : first + rows])
        out_RO = out_OR[:, : len(x_RI)].t() * scale_O
        return (out_RO if bias is None else out_RO.add_(bias)).view(*x.shape[:-1], outputs)


def _widened(bank: ExpertWeights) -> BankProducts:
    return BankProducts(Widened(bank.up_NED), bank.bias_NE, Widened(bank.down_NDH))


def _packed(weight_OI: Tensor, consume: bool) -> Packed:
    packed = Packed(torch.ops.mkldnn._reorder_linear_weight(weight_OI.detach(), LAYOUT_ROWS))
    if consume:
        free([weight_OI])
    return packed


def _packed_bank(bank: ExpertWeights, consume: bool) -> BankProducts:
    def stack(weights_NOI: Tensor) -> PackedStack:
        packed = PackedStack(tuple(_packed(weight_OI, consume=False) for weight_OI in weights_NOI))
        if consume:
            free([weights_NOI])
        return packed

    return BankProducts(stack(bank.up_NED.value), bank.bias_NE, stack(bank.down_NDH.value))
