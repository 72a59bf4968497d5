"""What native code asks of a machine: the kind of processor with its instruction sets, and the GPU."""

from __future__ import annotations

import platform
import re
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass

from mode_policy.config import FORBID_EXTRA
from mode_policy.errors import ExportError

#: Flags of /proc/cpuinfo that a compiler uses when it is told to make the most of the processor.
_USED = re.compile(
    r"(mmx|s?sse|avx|amx|fma|f16c|bmi|abm|movbe|popcnt|v?aes|v?pclmul|sha|gfni|adx|rdrand|rdseed)"
)


@dataclass(frozen=True, kw_only=True, config=FORBID_EXTRA)
class Machine:
    """A machine, as far as native code is concerned.

    Attributes:
        system: e.g. ``Linux``.
        processor: e.g. ``x86_64``.
        cpu_capability: what torch calls the processor's vector unit, e.g. ``AVX512``; for people to read.
        instruction_sets: flags of the processor that compilers make use of; empty where it does not tell.
        torch: version that the code was compiled for, major and minor.
        gpu_capability: e.g. ``9.0``; None for code of the processor.
    """

    system: str
    processor: str
    cpu_capability: str
    instruction_sets: tuple[str, ...]
    torch: str
    gpu_capability: Annotated[str | None, Field(pattern=r"^\d+\.\d+$")] = None


def this_machine(device: str) -> Machine:
    """Describe this machine.

    Args:
        device: that code runs on, "cpu" or "cuda".
    """
    capability = None
    if device == "cuda" and torch.cuda.is_available():
        capability = "{}.{}".format(*torch.cuda.get_device_capability())
    return Machine(
        system=platform.system(),
        processor=platform.machine(),
        cpu_capability=torch.backends.cpu.get_cpu_capability(),
        instruction_sets=instruction_sets(Path("/proc/cpuinfo")),
        torch=".".join(torch.__version__.split(".")[:2]),
        gpu_capability=capability,
    )


def device_named(name: str) -> torch.device:
    """Return the device of a name: "cpu" or "cuda", which may have a number.

    Raises:
        ExportError: if it is neither.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ExportError(f"device={name!r} is unknown; use 'cpu' or 'cuda', or leave device out")
    return device


def instruction_sets(cpuinfo: Path) -> tuple[str, ...]:
    """Return the flags of the first processor that matter to compiled code, sorted."""
    if not cpuinfo.is_file():
        return ()
    for line in cpuinfo.read_text().splitlines():
        name, _, flags = line.partition(":")
        if name.strip() == "flags":  # x86
            return tuple(sorted(f for f in flags.split() if _USED.match(f)))
        if name.strip() == "Features":  # Arm
            return tuple(sorted(flags.split()))
    return ()


def obstacle(made_for: Machine, here: Machine) -> str | None:
    """Return why code that was made for one machine cannot run on another, or None if it can."""
    if (made_for.system, made_for.processor) != (here.system, here.processor):
        return (
            f"it was made for {made_for.system} on {made_for.processor}, this is {here.system} on "
            f"{here.processor}"
        )
    if made_for.torch != here.torch:
        return f"it was made for torch {made_for.torch}, this is torch {here.torch}"
    if lacking := sorted(set(made_for.instruction_sets) - set(here.instruction_sets)):
        shown = ", ".join(lacking[:6]) + (", …" if len(lacking) > 6 else "")
        return f"it was made for a processor with {made_for.cpu_capability}; this one lacks {shown}"
    if made_for.gpu_capability is None:
        return None
    if here.gpu_capability is None:
        return f"it was made for a GPU of compute capability {made_for.gpu_capability}, and there is none"
    needed, given = (tuple(map(int, c.split("."))) for c in (made_for.gpu_capability, here.gpu_capability))
    if needed[0] != given[0] or given < needed:
        return (
            f"it was made for GPUs of compute capability {made_for.gpu_capability}, this one has "
            f"{here.gpu_capability}"
        )
    return None
