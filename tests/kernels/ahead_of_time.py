"""Compiling kernels for a GPU that is not there: the same launches, tiles and compiler.

An operation runs on fake tensors, its launches are recorded, and Triton compiles them as it would before
running them. Only the driver is replaced: it names the target instead of asking a device.
"""

from __future__ import annotations

import importlib
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import MockTensor

# Largest shared memory of a program in KiB: CUDA programming guide, technical specifications by compute
# capability.
SHARED_KIB = {80: 163, 87: 163, 89: 99, 90: 227, 100: 227, 120: 99}
WITH_KERNELS = (
    "norm_linear",
    "attention",
    "expert_up",
    "expert_down",
    "step_tail",
    "grouping",
    "grouped_forward",
    "grouped_backward",
)


class Launch(NamedTuple):
    kernel: Any
    grid: tuple[int, ...]
    arguments: tuple[Any, ...]
    options: dict[str, Any]


class Compiled(NamedTuple):
    """What became of a launch: registers of a thread, bytes spilled, KiB of shared memory, assembly."""

    name: str
    registers: int
    spilled: int
    shared_kib: float
    ptx: str


class _Recorder:
    def __init__(self, launches: list[Launch], kernel: Any) -> None:
        self.launches, self.kernel = launches, kernel

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return lambda *arguments, **options: self.launches.append(
            Launch(self.kernel, grid, arguments, options)
        )


class _Driver:
    """Triton's view of a GPU, as far as compiling goes."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return 1000 + self.capability  # kernels are kept for each device

    def get_current_stream(self, device: int) -> int:
        return 0


@contextmanager
def target(capability: int) -> Iterator[None]:
    """Let Triton compile for a compute capability such as 90."""
    before = triton.runtime.driver._active  # None until a GPU was used; its property would look for one
    triton.runtime.driver.set_active(_Driver(capability))
    try:
        yield
    finally:
        triton.runtime.driver._active = before


def record(monkeypatch: Any, table: str, operation: Any, *arguments: Any, **options: Any) -> list[Launch]:
    """Run the body of an operation on fake tensors with the tiles of a table; return its launches."""
    launches: list[Launch] = []
    for name in WITH_KERNELS:
        module = importlib.import_module(f"mode_kernels.{name}")
        monkeypatch.setattr(module, "wrap_triton", lambda kernel: _Recorder(launches, kernel))
    monkeypatch.setattr("mode_kernels.tile_table.architecture", lambda device: table)
    operation._init_fn(*arguments, **options)
    return launches


def build(launch: Launch, capability: int, folder: Path, pdl: bool = False) -> Compiled:
    """Compile a launch.

    Args:
        launch: what `record` returned.
        capability: compute capability.
        folder: for temporary files; gone with the test.
        pdl: with programmatic dependent launch.
    """
    arguments = [MockTensor(a.dtype) if isinstance(a, torch.Tensor) else a for a in launch.arguments]
    options = launch.options | ({"PDL": True, "launch_pdl": True} if pdl else {})
    with triton.knobs.cache.scope(), target(capability):
        triton.knobs.cache.dir = str(folder / "triton")
        kernel = launch.kernel.warmup(*arguments, grid=launch.grid, **options)
    cubin = folder / "kernel.cubin"
    cubin.write_bytes(kernel.asm["cubin"])
    # A line such as "REG:48 STACK:0 SHARED:1024 LOCAL:0 …"; spilled registers are the only stack there is.
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    text = subprocess.check_output([str(tool), "-res-usage", str(cubin)], text=True)
    usage = dict(
        word.split(":") for word in text.split() if word.count(":") == 1 and word.split(":")[1].isdigit()
    )
    return Compiled(
        launch.kernel.__name__,
        int(usage["REG"]),
        int(usage["STACK"]) + int(usage["LOCAL"]),
        kernel.metadata.shared / 1024,
        kernel.asm["ptx"],
    )
