"""The program ``mode-bench``: this package on this machine, as a table and a dated record.

::

    mode-bench data                          windows per second: ours, HDF5, LeRobotDataset
    mode-bench data --store PATH             on demonstrations of your own
    mode-bench latency                       an action chunk by each engine, beside its floor
    mode-bench latency --size full --engines cpu eager --precisions float32 int8
    mode-bench latency --checkpoint PATH     of a policy of your own: a run's folder or a checkpoint's
    mode-bench training                      a training step
    mode-bench kernels                       on a GPU: each kernel beside plain PyTorch
    mode-bench … --record                    also write benchmarks/results/….json
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from mode_policy.apps.bench.engines import NAMES
from mode_policy.apps.bench.policies import SIZES
from mode_policy.apps.bench.record import RESULTS, Row, device, prepare_folder, versions, write_record
from mode_policy.apps.cli import console, exit_codes
from mode_policy.checkpoint import read_description
from mode_policy.errors import ConfigError
from mode_policy.inference.weights import PRECISIONS
from mode_policy.training.checkpoints import newest_checkpoint

#: Of the kernels, where nothing else is said.
KERNEL_BATCHES, KERNEL_TYPES = (1, 8, 64), ("bfloat16", "int8", "fp8")


class Measured(NamedTuple):
    """What a command found: rows, and what determined them."""

    rows: list[Row]
    config: dict[str, Any]


def main(argv: Sequence[str] | None = None) -> None:
    """Run ``mode-bench``."""
    arguments = _parser().parse_args(argv)
    with exit_codes():
        if arguments.record is not None:
            prepare_folder(arguments.record)
        if arguments.command != "data":
            check_device(arguments.device)
            if arguments.threads is not None:
                torch.set_num_threads(arguments.threads)
        about = device()
        measured: Measured = arguments.measure(arguments)
        show(f"mode-bench {arguments.command}", measured.rows, about)
        if arguments.record is not None:
            path = write_record(_name(arguments), measured.rows, measured.config, arguments.record, about)
            console.print(f"record     {path}")


def check_device(name: str) -> None:
    """Make sure that a device is there.

    Raises:
        ConfigError: if it is "cuda" and there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda, but torch finds no GPU; use --device cpu")


def count(text: str) -> int:
    """Return a number of at least 1, for `argparse`."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {number}")
    return number


def seconds(text: str) -> float:
    """Return a finite number of at least 0, for `argparse`."""
    if not 0 <= (number := float(text)) < math.inf:
        raise argparse.ArgumentTypeError(f"must be at least 0, not {text}")
    return number


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mode-bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    found = "cuda" if torch.cuda.is_available() else "cpu"
    rounds = 1000 if found == "cuda" else 20

    data = commands.add_parser("data", help="windows per second from demonstrations")
    data.add_argument("--store", help="demonstrations with cameras; made up by default")
    data.add_argument("--episodes", type=count, default=50, help="made up, or brought to the other formats")
    data.add_argument("--seconds", type=seconds, default=10.0, help="for each reader")
    data.add_argument("--training", type=seconds, default=60.0, help="seconds for each training; 0 for none")
    data.add_argument("--ours-only", action="store_true", help="leave HDF5 and LeRobotDataset out")
    data.set_defaults(measure=_data)

    latency = commands.add_parser("latency", help="an action chunk by each engine")
    policy = latency.add_mutually_exclusive_group()
    policy.add_argument("--size", choices=SIZES, default="small", help="of a policy with random weights")
    policy.add_argument("--checkpoint", help="a policy of your own: a run's folder or a checkpoint's")
    latency.add_argument("--cameras", action="store_true", help="two cameras instead of states")
    usual = ["compile", "eager", "policy"] if found == "cuda" else ["cpu", "eager", "policy"]
    latency.add_argument("--engines", nargs="+", choices=NAMES, default=usual)
    latency.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=["float32"])
    latency.add_argument("--batches", type=count, nargs="+", default=[1])
    latency.add_argument("--steps", type=count, help="of the sampler")
    latency.add_argument("--rounds", type=count, default=rounds)
    latency.add_argument("--no-memory", action="store_true", help="do not measure memory")
    latency.set_defaults(measure=_latency)

    training = commands.add_parser("training", help="a training step")
    training.add_argument("--sizes", nargs="+", choices=SIZES, default=["tiny", "small"])
    training.add_argument("--batch", type=count, default=64)
    training.add_argument("--rounds", type=count, default=20)
    training.add_argument("--compile", action="store_true", help="also compiled")
    training.set_defaults(measure=_training)

    kernels = commands.add_parser("kernels", help="each kernel beside plain PyTorch")
    kernels.add_argument("--batches", type=count, nargs="+", help=f"default {KERNEL_BATCHES}; GPU only")
    types = ["bfloat16", "float32", "int8", "fp8"]
    kernels.add_argument("--types", nargs="+", choices=types, help=f"default {KERNEL_TYPES}; GPU only")
    kernels.add_argument(
        "--training",
        action="store_true",
        help="the experts with their gradients; all there is on a processor",
    )
    kernels.add_argument("--training-batch", type=count, default=512 if found == "cuda" else 64)
    kernels.add_argument("--rounds", type=count, default=20)
    kernels.set_defaults(measure=_kernels)

    for command in (latency, training, kernels):
        command.add_argument("--device", choices=("cpu", "cuda"), default=found)
        command.add_argument("--threads", type=count, help="of torch")
    for command in (data, latency, training, kernels):
        command.add_argument(
            "--record", nargs="?", type=Path, const=RESULTS, metavar="FOLDER", help="write a dated record"
        )
    return parser


def _name(arguments: argparse.Namespace) -> str:
    """Of the record: commands that measure different things on one day keep them apart."""
    if arguments.command == "latency":
        parts = ["latency", "checkpoint" if arguments.checkpoint else arguments.size]
        parts += ["cameras"] * arguments.cameras + arguments.precisions
        if arguments.batches != [1]:
            parts += ["batch", *map(str, arguments.batches)]
        if arguments.steps is not None:
            parts += [f"{arguments.steps}steps"]
        return "_".join(parts)
    if arguments.command == "kernels":
        training = arguments.training or arguments.device == "cpu"
        return f"kernels_{'training' if training else '_'.join(arguments.types or KERNEL_TYPES)}"
    return str(arguments.command)


def _say(text: str) -> None:
    console.print(f"measuring  {text}")


def _data(arguments: argparse.Namespace) -> Measured:
    from mode_policy.apps.bench import data

    config = data.DataBench(
        store=arguments.store,
        episodes=arguments.episodes,
        seconds=arguments.seconds,
        training=arguments.training,
        others=not arguments.ours_only,
    )
    rows, about = data.run(config, _say)
    return Measured(rows, asdict(config) | about)


def _latency(arguments: argparse.Namespace) -> Measured:
    from mode_policy.apps.bench import latency

    if arguments.checkpoint is not None and arguments.cameras:
        raise ConfigError(
            "--cameras is for random weights; a checkpoint has the cameras that it was trained on"
        )
    config = latency.LatencyBench(
        size=arguments.size,
        checkpoint=None if arguments.checkpoint is None else _checkpoint(arguments.checkpoint),
        cameras=arguments.cameras,
        runs=tuple(itertools.product(arguments.engines, arguments.precisions)),
        batches=tuple(arguments.batches),
        steps=arguments.steps,
        rounds=arguments.rounds,
        device=arguments.device,
        memory=not arguments.no_memory,
    )
    rows, machine = latency.run(config, _say)
    return Measured(rows, asdict(config) | machine)


def _checkpoint(given: str) -> str:
    """Return a checkpoint's folder, given it or the folder of its run.

    Raises:
        CheckpointError: if it is neither.
    """
    path = Path(given).expanduser()
    path = newest_checkpoint(path) or path
    read_description(path)
    return str(path)


def _training(arguments: argparse.Namespace) -> Measured:
    from mode_policy.apps.bench import training

    config = training.TrainingBench(
        sizes=tuple(arguments.sizes),
        batch=arguments.batch,
        rounds=arguments.rounds,
        device=arguments.device,
        compiled=arguments.compile,
    )
    return Measured(training.run(config, _say), asdict(config))


def _kernels(arguments: argparse.Namespace) -> Measured:
    from mode_policy.apps.bench import kernels

    training = arguments.training or arguments.device == "cpu"
    if training and (arguments.batches or arguments.types):
        where = "with --training" if arguments.training else "on a processor"
        raise ConfigError(
            f"--batches and --types are of the kernels for inference, which are not measured {where}; "
            "leave them out, or use a GPU"
        )
    config = kernels.KernelBench(
        batches=() if training else tuple(arguments.batches or KERNEL_BATCHES),
        types=() if training else tuple(arguments.types or KERNEL_TYPES),
        training=training,
        training_batch=arguments.training_batch,
        rounds=arguments.rounds,
        device=arguments.device,
    )
    rows, machine = kernels.run(config, _say)
    return Measured(rows, asdict(config) | machine)


def show(title: str, rows: Sequence[Row], about: Row) -> None:
    """Print rows as a table, and below it what all of them share, the device and the versions."""
    shown, shared = table(title, rows)
    Console(width=1000).print(shown)  # as wide as it is: no number is broken over two lines
    if shared:
        console.print("all        " + ", ".join(f"{_words(key)} {_text(shared[key])}" for key in shared))
    name = about["gpu"] or about["cpu"]
    console.print(f"device     {name}, {about['threads']} threads of torch, load {about['load']}")
    found = versions()
    console.print(
        "versions   " + ", ".join(f"{n} {found[n]}" for n in ("python", "torch", "triton") if n in found)
    )


def table(title: str, rows: Sequence[Row]) -> tuple[Table, Row]:
    """Return rows as a table, and the entries that are the same in all of several rows and not in it."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    shared = {
        key: rows[0][key]
        for key in keys[1:]
        if len(rows) > 1 and all(key in row and row[key] == rows[0][key] for row in rows)
    }
    keys = [key for key in keys if key not in shared]
    shown = Table(title=title, box=box.SIMPLE_HEAD)
    for key in keys:
        text = any(isinstance(row.get(key), str) for row in rows)
        shown.add_column(_words(key), justify="left" if text else "right")
    for row in rows:
        shown.add_row(*(_text(row.get(key)) for key in keys))
    return shown, shared


def _words(key: str) -> str:
    return key.replace("_", " ")


def _text(value: object) -> str:
    if value is None:
        return ""
    return f"{value:,}" if isinstance(value, int) else str(value)
