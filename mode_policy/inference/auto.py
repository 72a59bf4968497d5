"""Which engine runs a plan."""

from __future__ import annotations

import importlib.util
from typing import NamedTuple

import torch

from mode_policy.errors import PlanError, did_you_mean
from mode_policy.inference.aoti import AotiEngine
from mode_policy.inference.cpu import CpuEngine
from mode_policy.inference.engine import CompileEngine, EagerEngine, Engine
from mode_policy.inference.plan import InferencePlan
from mode_policy.inference.triton_engine import TritonEngine

#: The engines that run a plan, by name.
ENGINES: dict[str, type[Engine]] = {
    engine.name: engine for engine in (EagerEngine, CompileEngine, CpuEngine, TritonEngine, AotiEngine)
}

#: What `make_engine` takes.
NAMES = ("auto", *ENGINES)


class Chosen(NamedTuple):
    """An engine, and why it was chosen: a clause for people to read."""

    engine: Engine
    reason: str


def make_engine(plan: InferencePlan, name: str = "auto") -> Chosen:
    """Return the engine of a name; ``auto`` chooses by device and configuration.

    On processors that is ``cpu``. On NVIDIA GPUs it is ``compile``: kernels of our own are no default until a
    record under ``benchmarks/results`` shows that they beat `torch.compile` with max-autotune. Where neither
    can run a plan it is ``eager``, and the reason says what was in the way. A name is taken at its word:
    an engine that cannot run the plan raises.

    Raises:
        PlanError: for an unknown name, or if that engine cannot run the plan.
        ExportError: if the engine ``aoti`` cannot be compiled.
    """
    if name != "auto":
        check_name(name)
        return Chosen(ENGINES[name](plan), "it was asked for")
    device = plan.policy.device
    if device.type == "cpu":
        try:
            return Chosen(CpuEngine(plan), "the fastest on a processor")
        except PlanError as error:
            return Chosen(EagerEngine(plan), str(error))
    if reason := _why_not_compile(device):
        return Chosen(EagerEngine(plan), f"the engine 'compile' cannot run: {reason}")
    return Chosen(CompileEngine(plan), "the fastest on a GPU that a record shows")


def check_name(name: str) -> None:
    """Raise `PlanError` for a name that is none of `NAMES`."""
    if name not in NAMES:
        raise PlanError(f"unknown engine {name!r}.{did_you_mean(name, NAMES)}")


def _why_not_compile(device: torch.device) -> str | None:
    if device.type != "cuda":
        return f"it was not tried on a {device.type} device"
    if importlib.util.find_spec("triton") is None:
        return "PyTorch's compiler needs Triton for a GPU, which is not installed"
    if torch.cuda.get_device_capability(device) < (7, 0):
        return (
            f"PyTorch's compiler needs compute capability 7.0; this is {torch.cuda.get_device_name(device)}"
        )
    return None
