"""Where the Triton kernels meet PyTorch: how operations are defined and launched, and what they can run on.

Nothing here, and nothing of Triton, is imported by a policy on a CPU.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

# Triton reads this once, when it is first imported; kernels then run in its interpreter, on CPU tensors.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
QUANTISED = (torch.int8, torch.float8_e4m3fn)


def kernel_op(name: str, mutates: Iterable[str] = ()) -> Callable[[Callable[..., Any]], Any]:
    """Define the operation ``mode::<name>``, whose kernels `torch.compile` and export can see.

    The interpreter's kernels cannot be traced, so there the operation is opaque.
    """
    define = torch.library.custom_op if INTERPRETED else torch.library.triton_op
    return define(f"mode::{name}", mutates_args=tuple(mutates))


def wrap_triton(kernel: Any) -> Any:
    """Return what launches a kernel: itself, or while tracing PyTorch's stand-in that records the launch.

    It bears the name of `torch.library.wrap_triton` because PyTorch looks for calls of that name in the
    source of an operation, to know which kernels its caches depend on.
    """
    return kernel if INTERPRETED else torch.library.wrap_triton(kernel)


def launch_options(
    kernel: Any, wrapped: Any, device: torch.device, warps: int, stages: int, pdl: bool
) -> dict[str, Any]:
    """Return the options of a launch, and ``PDL``, the kernel's flag for programmatic dependent launch.

    Older GPUs go without, and so do traced launches: Inductor 2.11 cannot set that attribute.
    """
    pdl = pdl and wrapped is kernel and supports_pdl(device)
    options: dict[str, Any] = {"num_warps": warps, "num_stages": stages, "PDL": pdl}
    return options | ({"launch_pdl": True} if pdl else {})


def dot_precision() -> str:
    """How float32 products are taken: exactly, unless the program allows TF32 by PyTorch's own switch."""
    return "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"


def product_dtype(activation: torch.dtype, weight: torch.dtype) -> torch.dtype:
    """Type in which products are taken; sums are always float32.

    That of the weights. Beside quantised ones that of the activations, or bfloat16 if these are float32: a
    float32 residual stream goes well with small weights, float32 products would waste their speed.
    """
    if weight not in QUANTISED:
        return weight
    return torch.bfloat16 if activation is torch.float32 else activation


def unsupported(device: torch.device, dtype: torch.dtype) -> str | None:
    """Return why the kernels cannot run, in words for a person, or None if they can.

    Args:
        device: where the tensors are.
        dtype: of the weights.
    """
    if dtype not in DTYPES + QUANTISED:
        known = ", ".join(str(d).removeprefix("torch.") for d in DTYPES + QUANTISED)
        return f"weights of {str(dtype).removeprefix('torch.')}; the kernels know {known}"
    if INTERPRETED:
        return None
    if device.type != "cuda":
        return f"a {device.type} device; the kernels need an NVIDIA GPU"
    if torch.version.hip is not None:
        return "an AMD GPU; the kernels were written for NVIDIA's"
    capability = torch.cuda.get_device_capability(device)
    name = f"{torch.cuda.get_device_name(device)} (compute capability {capability[0]}.{capability[1]})"
    if capability < (8, 0):
        return f"{name}; the kernels need compute capability 8.0"
    if dtype is torch.float8_e4m3fn and capability < (8, 9):
        return f"float8 weights on {name}; they need compute capability 8.9, int8 runs here"
    return None


def supports_pdl(device: torch.device) -> bool:
    """Whether kernels may be launched before their predecessor has ended (compute capability 9.0)."""
    return (
        not INTERPRETED
        and device.type == "cuda"
        and torch.version.hip is None
        and torch.cuda.get_device_capability(device) >= (9, 0)
    )


def require(holds: bool, message: str) -> None:
    """Raise a `ValueError` if an argument does not fit."""
    if not holds:
        raise ValueError(message)


def check_operands(
    name: str, x: Tensor, weight: Tensor, scale: Tensor | None, **others: Tensor | None
) -> None:
    """Raise unless an operation's tensors have types and layouts that its kernel reads.

    Raises:
        ValueError: with the name of the operation and of the tensor.
    """
    require(x.dtype in DTYPES, f"{name}: activations of {x.dtype}; use one of {DTYPES}")
    require(
        weight.dtype in DTYPES + QUANTISED,
        f"{name}: weights of {weight.dtype}; use one of {DTYPES + QUANTISED}",
    )
    require(
        (scale is not None) == (weight.dtype in QUANTISED),
        f"{name}: weights of {weight.dtype} {'need' if scale is None else 'take no'} scales",
    )
    for key, tensor in {"x": x, "weight": weight, "scale": scale, **others}.items():
        if tensor is not None:
            require(tensor.device == x.device, f"{name}: {key} is on {tensor.device}, x on {x.device}")
            require(tensor.is_contiguous(), f"{name}: {key} {tuple(tensor.shape)} is not contiguous")


def new_counter(rows: int, width: int, device: torch.device | str) -> Tensor:
    """Return the zeros that `attention` and `expert_down` count their programs with, enough for any tile.

    One is enough for all launches that run one after the other: each leaves it as it found it.
    """
    return torch.zeros(rows * -(-width // 16), dtype=torch.int32, device=device)
