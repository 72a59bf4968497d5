"""How each kernel is cut into tiles on each GPU: tables that are read, never searched at run time.

A file ``tiles/<architecture>.json`` holds the tables of one architecture and says where they come from;
``benchmarks/tune_kernels.py`` measures and writes them. An architecture without a file uses ``default.json``,
whose tiles fit every GPU from compute capability 8.0 on.
"""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import NamedTuple

import torch


class Tile(NamedTuple):
    """Sizes that a kernel is compiled for.

    Attributes:
        block_m: rows (tokens) of a tile, a power of two and at least 16.
        block_n: output columns of a tile, a power of two.
        block_k: step along the axis that is summed over, a power of two.
        split: programs that share this axis: of `expert_down` for each expert, of `attention` over the heads;
            0 where one program sums everything.
        warps: of a program.
        stages: of the software pipeline.
    """

    block_m: int
    block_n: int
    block_k: int
    split: int
    warps: int
    stages: int


def architecture(device: torch.device) -> str:
    """Name of the table for a device, e.g. ``"sm_90"``."""
    if device.type != "cuda":
        return "default"
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


@cache
def table(name: str) -> dict[str, list[dict[str, int]]]:
    """Read the tiles of one architecture: for each kernel, entries in ascending order of ``rows``."""
    folder = files("mode_kernels") / "tiles"
    path = folder / f"{name}.json"
    text = (path if path.is_file() else folder / "default.json").read_text()
    tiles: dict[str, list[dict[str, int]]] = json.loads(text)["tiles"]
    return tiles


def lookup(kernel: str, device: torch.device, weight: torch.dtype, rows: int) -> Tile:
    """Return the tile for so many rows: the first entry of the weights' width that is made for as many.

    Args:
        kernel: name of the operation.
        device: where it will run.
        weight: type of the weights; its width in bits selects entries.
        rows: number of rows (tokens) that share their weights; beyond the largest entry, that one is used.
    """
    entries = [e for e in table(architecture(device))[kernel] if e["bits"] == weight.itemsize * 8]
    entry = next((e for e in entries if rows <= e["rows"]), entries[-1])
    return Tile(*(entry[field] for field in Tile._fields))
