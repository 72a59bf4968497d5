"""Tests that run Triton kernels: on a GPU where there is one, otherwise in Triton's interpreter.

Triton decides between the two when it is first imported, for the whole process. The other tests import it too
(PyTorch does), so without a GPU the files of this folder are not collected in an ordinary run;
`tests/kernels/test_in_interpreter.py` runs them in a process of their own. By hand::

    TRITON_INTERPRET=1 uv run pytest tests/kernels/on_device
"""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

if not INTERPRETED and not torch.cuda.is_available():
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture
def device() -> str:
    return "cpu" if INTERPRETED else "cuda"


def _to_torch(data: np.ndarray, dtype) -> torch.Tensor:
    """An interpreter's array as numbers; it keeps small floats as unsigned integers of their bits."""
    views = {"bf16": torch.bfloat16, "fp8e4nv": torch.float8_e4m3fn}
    tensor = torch.from_numpy(np.ascontiguousarray(data))
    return tensor.view(views[str(dtype.scalar)]) if str(dtype.scalar) in views else tensor


def _repair_small_floats() -> None:
    """Give Triton 3.6's interpreter bfloat16 and float8 arithmetic.

    Its own conversions to bfloat16 cut bits off instead of rounding, and products of bfloat16 multiply the
    integers that hold the bits. Here PyTorch converts, and products of small floats are taken in float32, as
    tensor cores take them.
    """
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    kept = {"bf16": torch.bfloat16, "fp8e4nv": torch.float8_e4m3fn}
    known = {"fp16": torch.float16, "fp32": torch.float32, "fp64": torch.float64, **kept}
    cast_before, dot_before = InterpreterBuilder.cast_impl, InterpreterBuilder.create_dot

    def cast(self, source, target, rounding=None):
        name, origin = str(target.scalar), str(source.dtype.scalar)
        if name not in kept and origin not in kept:
            return cast_before(self, source, target)
        tensor = _to_torch(source.data, source.dtype)
        if name in known:
            tensor = tensor.to(known[name])
        else:
            return cast_before(self, TensorHandle(tensor.float().numpy(), tl.float32), target)
        if name in kept:
            tensor = tensor.view(torch.uint16 if tensor.element_size() == 2 else torch.uint8)
        return TensorHandle(tensor.numpy(), target.scalar)

    def dot(self, a, b, accumulator, precision, imprecise):
        a, b = (
            TensorHandle(_to_torch(x.data, x.dtype).float().numpy(), tl.float32)
            if str(x.dtype.scalar) in kept
            else x
            for x in (a, b)
        )
        return dot_before(self, a, b, accumulator, precision, imprecise)

    InterpreterBuilder.cast_impl = cast
    InterpreterBuilder.create_fp_to_fp = cast
    InterpreterBuilder.create_dot = dot


if INTERPRETED:
    _repair_small_floats()
