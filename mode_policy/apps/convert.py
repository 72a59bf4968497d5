"""``mode-data convert`` and ``download``: demonstrations of other formats, in and out, and published ones."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time
from pathlib import Path
from typing import Any, get_args

from rich.table import Column, Table

from mode_datasets import Provenance, disk_usage
from mode_datasets.convert import (
    FORMATS,
    SINKS,
    Detected,
    Progress,
    Report,
    SinkOptions,
    Source,
    SourceOptions,
    convert,
    open_sink,
    open_source,
    parse_keys,
)
from mode_datasets.convert.store import open_own
from mode_datasets.download import download
from mode_datasets.published import CATALOGUE
from mode_policy.apps.cli import console
from mode_policy.apps.data_stores import add_command, add_task, layout_of
from mode_policy.apps.progress import bar
from mode_policy.convention import ActionFrame, ActionKind, Gripper, Orientation
from mode_policy.encoders.language import embed_instructions
from mode_policy.errors import ConfigError, did_you_mean

#: Skipped episodes that the report lists.
SHOWN = 20


def add(commands: Any) -> None:
    """Add the commands."""
    parser = add_command(
        commands,
        "convert",
        _convert,
        "convert demonstrations of any known format to a store, or to another format",
        "mode-data convert libero_90/ datasets/store/libero_90.zarr",
        "mode-data convert pusht.zarr.zip pusht.zarr --fps 10 --instruction 'push the T onto its target'",
        "mode-data convert bags/ robot.zarr --fps 30 --key action=/command:data --key "
        "observation.state=/joint_states:position --key observation.images.front=/camera/image_raw",
        "mode-data convert pusht_cchi_v7_replay.zarr pusht.zarr --task pusht --camera front=img",
        "mode-data convert mine.zarr mine_lerobot --to lerobot",
    )
    parser.add_argument("source", type=Path, help="file or folder; its format is recognised")
    parser.add_argument("destination", type=Path, help="file or folder to make")
    parser.add_argument("--from", dest="from_", metavar="FORMAT", help=f"one of {', '.join(FORMATS)}")
    parser.add_argument(
        "--to", metavar="FORMAT", default="store", help=f"one of {', '.join(SINKS)} (default: store)"
    )
    _add_meaning(parser)
    _add_reading(parser)
    _add_writing(parser)
    add_task(parser)
    fetch = add_command(
        commands,
        "download",
        _download,
        f"fetch published demonstrations: {', '.join(CATALOGUE)}",
        "mode-data download pusht",
        "mode-data download libero_90 --folder /data",
    )
    fetch.add_argument("name", help="what to fetch")
    fetch.add_argument(
        "--folder",
        type=Path,
        default=os.environ.get("MODE_DATA_DIR", "datasets/store"),
        help="where it goes (default: MODE_DATA_DIR, or datasets/store)",
    )


def _add_meaning(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what the data mean, where their format does not say")
    group.add_argument(
        "--key",
        action="append",
        default=[],
        metavar="FEATURE=NAME[+NAME]",
        help="which arrays, or parts of them such as NAME[0:3], become a feature; given once or more, all "
        "others are left out",
    )
    group.add_argument("--fps", type=float, metavar="HZ", help="control rate")
    group.add_argument("--instruction", metavar="TEXT", help="what the demonstrations do")
    group.add_argument("--licence", metavar="SPDX", help="of the data")
    group.add_argument("--orientation", choices=get_args(Orientation)[1:], help="how images are stored")
    group.add_argument("--action-kind", choices=get_args(ActionKind))
    group.add_argument("--action-frame", choices=get_args(ActionFrame))
    group.add_argument("--action-scale", type=_numbers, metavar="X,Y,…", help="physical size of 1.0")
    group.add_argument("--gripper", choices=get_args(Gripper), help="meaning of the last action dimension")
    group.add_argument(
        "--gripper-changes", action="store_true", help="it is a change: 0 keeps the gripper as it is (RT-1)"
    )


def _add_reading(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("reading")
    group.add_argument(
        "--workers", type=int, metavar="N", help="processes that read (default: one a core if it pays)"
    )
    group.add_argument("--strict", action="store_true", help="stop at the first damaged episode")
    group.add_argument(
        "--episode-gib",
        type=float,
        default=8.0,
        metavar="GIB",
        help="the most that an episode may take (default: 8)",
    )
    group.add_argument("--mask", metavar="NAME", help="robomimic: only the demonstrations of this mask")
    group.add_argument("--split", metavar="NAME", help="RLDS, CALVIN: the split (default: train, training)")
    group.add_argument("--absolute", action="store_true", help="CALVIN: absolute actions, not relative ones")
    group.add_argument(
        "--tolerance", type=float, metavar="S", help="MCAP: farthest message of a step (default: one step)"
    )
    group.add_argument("--interpolate", action="store_true", help="MCAP: interpolate vectors in time")


def _add_writing(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("writing")
    group.add_argument(
        "--profile", default="train", choices=("train", "archive", "jpeg"), help="store: of images"
    )
    group.add_argument("--lossless", action="store_true", help="LeRobot: images as PNG, not videos")
    group.add_argument(
        "--language", metavar="ENCODER", help="store: embed the instructions, e.g. minilm-l6-v2"
    )
    group.add_argument("--overwrite", action="store_true", help="replace the destination once all is written")


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))


def _convert(arguments: argparse.Namespace) -> None:
    _check_options(arguments)
    source, detected = _open(arguments)
    console.print(f"source       {source.path}\nformat       {detected.format}: {detected.why}")
    for key, feature in source.features.items():
        console.print(f"feature      {key} {feature.dtype} {feature.shape}")
    for note in source.notes:
        console.print(f"note         {note}")
    origin = source.provenance
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    options = SinkOptions(
        features=source.features,
        convention=source.convention,
        provenance=Provenance(source=origin.source, licence=origin.licence, command=command),
        overwrite=arguments.overwrite,
    )
    inside = Path(source.path).absolute()
    if inside.is_dir() and Path(arguments.destination).absolute().is_relative_to(inside):
        raise ConfigError(f"{arguments.destination} is inside its source {source.path}; choose another place")
    sink = open_sink(
        arguments.destination, arguments.to, options, profile=arguments.profile, lossless=arguments.lossless
    )
    language = arguments.language
    with bar("converting", "episodes") as shown:
        row = shown.add_task("converting", total=source.num_episodes, note="")
        start = time.monotonic()

        def show(progress: Progress) -> None:
            rate = progress.steps / max(time.monotonic() - start, 1e-9)
            note = f"{rate:.0f} steps/s" + (f", {progress.note}" if progress.note else "")
            shown.update(row, completed=progress.done, note=note)

        report = convert(
            source,
            sink,
            arguments.destination,
            workers=arguments.workers,
            strict=arguments.strict,
            embed=None
            if language is None
            else lambda tasks: embed_instructions([task.instruction for task in tasks], language),
            progress=show,
        )
    console.print(describe(report, source, arguments.destination))


def _check_options(arguments: argparse.Namespace) -> None:
    if arguments.to not in SINKS:
        raise ConfigError(f"{arguments.to!r} is not written here.{did_you_mean(arguments.to, SINKS)}")
    if arguments.to == "store" and arguments.destination.suffix in (".hdf5", ".h5"):
        raise ConfigError(
            f"{arguments.destination} looks like HDF5; say --to robomimic, or --to libero for a folder"
        )
    if arguments.lossless and arguments.to != "lerobot":
        raise ConfigError("--lossless means nothing but with --to lerobot; leave it out")
    if arguments.to != "store" and (arguments.profile != "train" or arguments.language):
        raise ConfigError(f"--profile and --language are for stores; {arguments.to!r} has neither")
    if arguments.workers is not None and arguments.workers < 0:
        raise ConfigError(f"--workers {arguments.workers}: give 0 or more")


def _open(arguments: argparse.Namespace) -> tuple[Source, Detected]:
    options = SourceOptions(
        keys=parse_keys(arguments.key),
        instruction=arguments.instruction,
        licence=arguments.licence,
        orientation=arguments.orientation,
        action_kind=arguments.action_kind,
        action_frame=arguments.action_frame,
        action_scale=arguments.action_scale,
        gripper=arguments.gripper,
        fps=arguments.fps,
        gripper_changes=arguments.gripper_changes,
        episode_bytes=int(arguments.episode_gib * 2**30),
        mask=arguments.mask,
        split=arguments.split,
        absolute=arguments.absolute,
        tolerance=arguments.tolerance,
        interpolate=arguments.interpolate,
    )
    if arguments.task is None and not arguments.camera:
        return open_source(arguments.source, arguments.from_, options)
    if arguments.from_ not in (None, "replay_buffer"):
        raise ConfigError(f"--task describes a store of another layout, and --from says {arguments.from_!r}")
    layout = layout_of(str(arguments.source), arguments)
    why = f"as the recipe of the task {arguments.task!r} says"
    return open_own(arguments.source, options, layout), Detected("replay_buffer", why)


def describe(report: Report, source: Source, destination: Path) -> Table:
    """Return the final report of a conversion as a table."""
    before, after = _size(source.path), _size(destination)
    table = Table(Column(overflow="fold"), Column(overflow="fold"), title="converted", show_header=False)
    table.add_row("destination", str(destination))
    resumed = f" ({report.resumed} by an interrupted run before)" if report.resumed else ""
    table.add_row("episodes", f"{report.episodes} of {source.num_episodes}{resumed}")
    table.add_row(
        "steps", f"{report.steps} in {report.seconds:.1f} s, {report.steps / report.seconds:.0f} a second"
    )
    table.add_row("tasks", str(report.tasks))
    table.add_row(
        "size",
        f"{before / 1e6:.1f} MB before, {after / 1e6:.1f} MB after ({after / max(before, 1):.2f} times)",
    )
    for name, value in source.convention.to_json().items():
        table.add_row(name.replace("_", " "), str(value))
    table.add_row("skipped", str(len(report.skipped)))
    for episode in report.skipped[:SHOWN]:
        table.add_row(f"  {episode.name}", episode.reason)
    if len(report.skipped) > SHOWN:
        table.add_row("", f"… and {len(report.skipped) - SHOWN} more")
    return table


def _size(path: Path) -> int:
    return disk_usage(path) if path.is_dir() else path.stat().st_size


def _download(arguments: argparse.Namespace) -> None:
    if arguments.name not in CATALOGUE:
        raise ConfigError(f"unknown data set {arguments.name!r}.{did_you_mean(arguments.name, CATALOGUE)}")
    item = CATALOGUE[arguments.name]
    destination = Path(arguments.folder) / item.name
    console.print(f"source       {item.source}\nlicence      {item.licence}\ndestination  {destination}")
    with bar("downloading") as shown:
        row = shown.add_task("downloading", total=None, note="")

        def show(what: str, done: int, total: int) -> None:
            shown.update(row, completed=done, total=total or None, note=f"{what}, {done / 2**20:.0f} MiB")

        fetched = download(item, destination, progress=show)
    console.print("verified" if fetched else "it is all there already")
    console.print(f"next         {item.then.format(path=destination)}")
