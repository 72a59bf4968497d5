"""The network's large weights as a plan holds them: the policy's own, or in fewer bits.

Large are the weights that every denoising step streams through memory: the attention's projections and the
experts. The others (embeddings, gains, biases, the output) are small and stay float32.

Legend: D width, E = 3D or 2H outputs, H hidden width, N experts, P width of a head.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mode_kernels.quantize import quantize
from mode_policy.errors import PlanError, did_you_mean
from mode_policy.nn.block import MoDEBlock
from mode_policy.nn.experts import SwiGLUExperts

#: float32 is the policy's own weights; bfloat16 rounds weights and activations; int8 and fp8 (e4m3) round the
#: weights alone, with a scale for each output channel.
Precision = Literal["float32", "bfloat16", "int8", "fp8"]
PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16", "int8", "fp8")


class Linear(Protocol):
    """A large weight in any layout."""

    def apply(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return ``x @ weightᵀ + bias`` in the type of x, for x of ``(…, inputs)``."""
        ...


class Bank(Protocol):
    """A stack of them, one for each expert."""

    def expert(self, n: int) -> Linear:
        """Return expert n of the stack, without copying it."""
        ...


class Matrix(NamedTuple):
    """A weight ``value · scale[..., None]``.

    Attributes:
        value: ``(…, outputs, inputs)``.
        scale: float32 ``(…, outputs)``, or None for 1.
    """

    value: Tensor
    scale: Tensor | None = None

    def expert(self, n: int) -> Matrix:
        """Return expert n of a stack, without copying it."""
        return Matrix(self.value[n], None if self.scale is None else self.scale[n])

    def dense(self, dtype: torch.dtype) -> Tensor:
        """Return the weight that this stands for; itself, if it has that type already."""
        if self.scale is None:
            return self.value.to(dtype)
        return (self.value.float() * self.scale[..., None]).to(dtype)

    def apply(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return ``x @ weightᵀ + bias`` in the type of x."""
        return F.linear(x, self.dense(x.dtype), None if bias is None else bias.to(x.dtype))


class ExpertWeights(NamedTuple):
    """A bank of experts: ``up_NED`` and ``down_NDH`` large, ``bias_NE`` float32."""

    up_NED: Matrix
    bias_NE: Tensor
    down_NDH: Matrix


class LayerWeights(NamedTuple):
    """What a layer's products need beside its tables.

    Attributes:
        projection_DD: output projection of the attention.
        experts: the routed ones.
        shared: the one that is always on, or None.
    """

    projection_DD: Matrix
    experts: ExpertWeights
    shared: ExpertWeights | None


class BankProducts(NamedTuple):
    """`ExpertWeights` in the layout that an engine likes."""

    up: Bank
    bias_NE: Tensor
    down: Bank


class LayerProducts(NamedTuple):
    """A layer's large products, in the layout that an engine likes."""

    qkv: Linear
    projection: Linear
    experts: BankProducts
    shared: BankProducts | None


def check_precision(precision: str) -> None:
    """Raise `PlanError` for a name that is none of `PRECISIONS`."""
    if precision not in PRECISIONS:
        raise PlanError(f"unknown precision {precision!r}.{did_you_mean(precision, PRECISIONS)}")


def stream_type(precision: Precision, device: torch.device) -> torch.dtype:
    """Type of the activations between products: bfloat16, unless the weights are float32.

    Processors without bfloat16 products gain nothing from it, so beside 8-bit weights they keep float32.
    """
    wide = precision == "float32" or (precision != "bfloat16" and device.type == "cpu")
    return torch.float32 if wide else torch.bfloat16


def cast(weight: Tensor, precision: Precision) -> Matrix:
    """Return a weight in a precision; float32 weights are not copied.

    Raises:
        PlanError: if it is not finite, and the precision has 8 bits.
    """
    weight = weight.detach()
    if precision == "float32":
        return Matrix(weight)
    if precision == "bfloat16":
        return Matrix(weight.bfloat16())
    try:
        return Matrix(*quantize(weight, precision))
    except ValueError as error:
        raise PlanError(f"precision {precision!r}: {error}") from error


def layer_weights(block: MoDEBlock, precision: Precision = "float32") -> LayerWeights:
    """Return a block's large weights in a precision; the very tensors of the block for float32."""

    def of(weight: Tensor) -> Matrix:
        return Matrix(weight) if precision == "float32" else cast(weight, precision)

    def bank(experts: SwiGLUExperts) -> ExpertWeights:
        return ExpertWeights(of(experts.up_weight_NED), experts.up_bias_NE, of(experts.down_weight_NDH))

    shared = block.shared
    if shared is not None:
        assert isinstance(shared, SwiGLUExperts)
    return LayerWeights(
        of(block.attention.proj.weight), bank(bank_of(block)), None if shared is None else bank(shared)
    )


def large_weights(block: MoDEBlock, routing: bool) -> list[Tensor]:
    """Return the parameters of a block that a plan replaces by forms of its own.

    Args:
        block: of the denoiser.
        routing: with those that only the plan's tables are computed from.
    """
    banks = [bank_of(block), *([] if block.shared is None else [block.shared])]
    found: list[Tensor] = [block.attention.proj.weight]
    found += [w for bank in banks for w in (bank.up_weight_NED, bank.down_weight_NDH)]  # type: ignore[attr-defined]
    if routing:
        found += [block.attention.qkv.weight]
        found += [w for w in block.router.parameters() if w.ndim > 1]  # type: ignore[attr-defined]
    return found


def free(weights: Iterable[Tensor]) -> None:
    """Give back the memory of tensors; they are empty from then on."""
    for weight in weights:
        weight.data = weight.data.new_empty(0)


def refuse_use(denoiser: nn.Module) -> None:
    """Let a denoiser whose weights were freed say so, rather than run or be saved without them."""
    if _refuse not in denoiser._forward_pre_hooks.values():
        denoiser.register_forward_pre_hook(_refuse)
        denoiser.register_state_dict_pre_hook(_refuse)


def _refuse(*_: object) -> None:
    raise PlanError(
        "the policy's weights were freed for a plan; act through that plan, or load the checkpoint again"
    )


def bank_of(block: MoDEBlock) -> SwiGLUExperts:
    """Return a block's experts.

    Raises:
        PlanError: if they are of a form that plans do not know.
    """
    if not isinstance(block.experts, SwiGLUExperts):
        raise PlanError(
            f"plans know no experts of type {type(block.experts).__name__}; call the policy itself"
        )
    return block.experts
