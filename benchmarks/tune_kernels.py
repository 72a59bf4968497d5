"""Find the fastest tiles on this GPU and write them to its table, ``kernels/mode_kernels/tiles/sm_XX.json``.

    uv run benchmarks/tune_kernels.py                              every kernel; an hour or so (estimated)
    uv run benchmarks/tune_kernels.py --kernels expert_up --bits 16 --dry-run

Starting from the table's tile, one field after the other is varied for as long as that helps. Tiles that do
not compile, do not fit, or give another result are passed over. Weights are rotated past the caches. Runs
only on a GPU; programs that use the kernels read the table and never search.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() != Path(__file__).resolve().parents[1]]

import torch  # noqa: E402
import triton  # noqa: E402
from triton.compiler.errors import CompilationError  # noqa: E402
from triton.runtime.errors import OutOfResources, PTXASError  # noqa: E402

from mode_kernels import launch  # noqa: E402
from mode_kernels.grouped import (  # noqa: E402
    BACKWARD_KERNELS,
    FORWARD_KERNELS,
    grouped_experts,
    grouped_experts_backward,
)
from mode_kernels.launch import unsupported  # noqa: E402
from mode_kernels.tile_table import Tile, architecture, lookup, table  # noqa: E402
from mode_policy.apps.bench.kernel_cases import (  # noqa: E402
    Graph,
    Size,
    cases,
    in_rounds,
    largest_error,
)
from mode_policy.apps.cli import exit_codes  # noqa: E402
from mode_policy.errors import ConfigError  # noqa: E402
from mode_policy.files import replacing  # noqa: E402

TILES = Path(__file__).resolve().parents[1] / "kernels/mode_kernels/tiles"
WEIGHTS = {8: torch.int8, 16: torch.bfloat16, 32: torch.float32}
INFERENCE = ("norm_linear", "attention", "expert_up", "expert_down")
TRAINING = tuple(dict.fromkeys((*FORWARD_KERNELS, *BACKWARD_KERNELS)))
CHOICES: dict[str, tuple[int, ...]] = {
    "block_m": (16, 32, 64, 128),
    "block_n": (16, 32, 64, 128, 256),
    "block_k": (32, 64, 128, 256),
    "split": (0, 1, 2, 4, 8, 16),
    "warps": (2, 4, 8),
    "stages": (1, 2, 3, 4, 5, 6, 8),
}
FIXED = {"attention": ("block_m", "block_k")}  # follow from the sequence and the head
SPLITS = ("attention", "expert_down")
Seconds = Callable[[Tile], float]


def neighbours(kernel: str, tile: Tile, field: str) -> list[Tile]:
    """Tiles that differ from one in a field that the kernel has."""
    if field in FIXED.get(kernel, ()) or (field == "split" and kernel not in SPLITS):
        return []
    return [tile._replace(**{field: v}) for v in CHOICES[field] if v != getattr(tile, field)]


def descend(kernel: str, start: Tile, time: Seconds, passes: int = 2) -> tuple[Tile, float]:
    """Vary one field after the other; keep what is at least 1 % faster. ``time`` is infinite on failure."""
    best, fastest = start, time(start)
    for _ in range(passes):
        before = best
        for field in CHOICES:
            for tile in neighbours(kernel, best, field):
                if (value := time(tile)) < 0.99 * fastest:
                    best, fastest = tile, value
        if best == before:
            break
    return best, fastest


def timed(
    make: Callable[[Tile], tuple[Callable[[int], Any], int]], check: Callable[[Tile], float]
) -> Seconds:
    """Seconds of a tile, infinite if it does not compile, does not fit or is wrong."""

    def time(tile: Tile) -> float:
        try:
            if not check(tile) < 3e-2:
                return math.inf
            run, sets = make(tile)
            return statistics.median(in_rounds({"": Graph(run, sets)}, rounds=7, warm_up=2)[""]) * 1e-6
        except (OutOfResources, PTXASError, CompilationError):
            return math.inf
        except RuntimeError as error:
            if "PassManager" not in str(error):  # the compiler gave up on this tile
                raise
            return math.inf

    return time


def tune_inference(kernel: str, bits: int, rows: int, start: Tile) -> tuple[Tile, float]:
    size = Size(B=max(1, min(rows, 64 * 14) // 14)) if rows > 16 else Size()
    case = cases(size, WEIGHTS[bits])[kernel]()
    expected = case.plain(*case.inputs(0))

    def run(tile: Tile) -> tuple[Callable[[int], Any], int]:
        return lambda i: case.ours(i, tile=list(tile)), case.sets

    return descend(kernel, start, timed(run, lambda t: largest_error(case.ours(0, tile=list(t)), expected)))


def tune_training(kernel: str, bits: int, start: Tile, batch: int = 512) -> tuple[Tile, float]:
    """One kernel of the grouped experts, inside the whole operation; the others keep their tiles."""
    s, dtype, device = Size(), WEIGHTS[bits], torch.device("cuda")
    g = torch.Generator("cuda").manual_seed(0)

    def draw(*shape: int, scale: float = 1.0) -> torch.Tensor:
        return (torch.randn(*shape, generator=g, device=device) * scale).to(dtype)

    x, route = draw(batch, s.S, s.D), torch.rand(batch, s.K, device=device)
    expert = torch.rand(batch, s.N, generator=g, device=device).topk(s.K, dim=1).indices
    up, bias, down = draw(s.N, 2 * s.H, s.D, scale=0.03), draw(s.N, 2 * s.H), draw(s.N, s.D, s.H, scale=0.015)
    kept = grouped_experts(x, expert, route, up, bias, down)
    names = FORWARD_KERNELS if kernel in FORWARD_KERNELS else BACKWARD_KERNELS

    def flat(tile: Tile) -> list[int]:
        tiles = [tile if n == kernel else lookup(n, device, dtype, batch * s.K * s.S) for n in names]
        return [value for t in tiles for value in t]

    def call(tile: Tile) -> Sequence[torch.Tensor]:
        if kernel in FORWARD_KERNELS:
            return grouped_experts(x, expert, route, up, bias, down, True, flat(tile))[:2]
        return grouped_experts_backward(kept[0], x, route, up, bias, down, *kept[1:], flat(tile))

    expected = call(start)

    def error(tile: Tile) -> float:
        return max(largest_error(a, b) for a, b in zip(call(tile), expected, strict=True))

    return descend(kernel, start, timed(lambda tile: (lambda i: call(tile), 1), error))


def document(architecture: str, source: str, tiles: Mapping[str, Sequence[Mapping[str, int]]]) -> str:
    """The text of a table: JSON with one entry on a line."""
    kernels = [
        f'  "{kernel}": [\n' + ",\n".join(f"   {json.dumps(entry)}" for entry in entries) + "\n  ]"
        for kernel, entries in tiles.items()
    ]
    head = f'{{\n "architecture": "{architecture}",\n "source": {json.dumps(source)},\n "tiles": {{\n'
    return head + ",\n".join(kernels) + "\n }\n}\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--kernels", nargs="+", choices=(*INFERENCE, *TRAINING), default=[*INFERENCE, *TRAINING]
    )
    parser.add_argument("--bits", type=int, nargs="+", choices=WEIGHTS, default=[16, 8])
    parser.add_argument("--dry-run", action="store_true", help="print the tiles and write nothing")
    arguments = parser.parse_args()
    with exit_codes():
        if not torch.cuda.is_available() or launch.INTERPRETED:
            why = "TRITON_INTERPRET=1 keeps the kernels off it" if launch.INTERPRETED else "torch finds none"
            raise ConfigError(f"tiles are measured on a GPU, and {why}; no table was changed")
    device = torch.device("cuda")
    name = architecture(device)
    tiles = {kernel: [dict(entry) for entry in entries] for kernel, entries in table(name).items()}
    for kernel in arguments.kernels:
        for entry in tiles[kernel]:
            if entry["bits"] not in arguments.bits or unsupported(device, WEIGHTS[entry["bits"]]):
                continue
            start = Tile(*(entry[field] for field in Tile._fields))
            if kernel in TRAINING:
                best, seconds = tune_training(kernel, entry["bits"], start)
            else:
                best, seconds = tune_inference(kernel, entry["bits"], entry["rows"], start)
            entry.update(best._asdict())
            about = f"{kernel} {entry['bits']} bits, rows <= {entry['rows']}"
            print(f"{about}: {seconds * 1e6:.1f} us {best}", flush=True)
            torch.cuda.empty_cache()
    source = (
        f"measured on {torch.cuda.get_device_name()}, {datetime.now(UTC):%Y-%m-%d}, "
        f"torch {torch.__version__}, triton {triton.__version__}: "
        f"{', '.join(arguments.kernels)} at {arguments.bits} bits"
    )
    text = document(name, source, tiles)
    if arguments.dry_run:
        print(text)
    else:
        path = TILES / f"{name}.json"
        with replacing(path) as partial:
            partial.write_text(text)
        print(path)


if __name__ == "__main__":
    main()
