"""The least time that a chunk can take on this machine: what it reads and multiplies, over measured rates."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mode_policy.apps.bench.timing import in_turns
from mode_policy.inference.cost import multiply_adds, weight_bytes
from mode_policy.inference.plan import InferencePlan
from mode_policy.types import Observation

#: Numbers that are read on a processor, more than its caches hold, and the side of the matrices.
READ, SIDE = 2**28, 2048


@dataclass(frozen=True)
class Rates:
    """What this machine does at most, as measured.

    Attributes:
        read: bytes a second, of reading a gigabyte.
        products: multiply-adds a second, of large square matrices.
    """

    read: float
    products: float


@dataclass(frozen=True)
class Floor:
    """The least seconds of a chunk.

    Attributes:
        gigabytes: of weights that are read.
        giga_multiply_adds: of all products.
        seconds: the larger of the two, over the machine's rates.
    """

    gigabytes: float
    giga_multiply_adds: float
    seconds: float


def measure(device: torch.device, dtype: torch.dtype = torch.float32) -> Rates:
    """Measure a device; ``dtype`` is that of the products."""
    if device.type == "cuda":
        from mode_policy.apps.bench.kernel_cases import read_bandwidth

        read, side = 1e9 * read_bandwidth(), 8192
    else:
        data = torch.ones(READ)
        read, side = 4 * len(data) / min(in_turns({"": data.sum}, 5)[""]), SIDE
        del data
    square = torch.randn(side, side, device=device).to(dtype)
    return Rates(read, side**3 / min(in_turns({"": lambda: square @ square}, 10)[""]))


def floor(plan: InferencePlan, observation: Observation, rates: Rates) -> Floor:
    """Return the floor of a plan's chunk."""
    read, products = weight_bytes(plan), multiply_adds(plan, observation)
    return Floor(read / 1e9, products / 1e9, max(read / rates.read, products / rates.products))
