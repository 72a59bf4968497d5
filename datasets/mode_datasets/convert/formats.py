"""The formats: how each is recognised, opened and written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path

from mode_datasets.convert import calvin, lerobot, libero, mcap_bag, replay_buffer, rlds, robomimic, store
from mode_datasets.convert.gripper import check_convention
from mode_datasets.convert.hdf5_sink import LiberoSink, RobomimicSink
from mode_datasets.convert.lerobot_sink import LeRobotSink
from mode_datasets.convert.replay_buffer_sink import ReplayBufferSink
from mode_datasets.convert.sink import Sink, SinkOptions
from mode_datasets.convert.source import Source, SourceOptions
from mode_datasets.profiles import ProfileName
from mode_datasets.writer import StoreWriter
from mode_policy.errors import ConfigError, DataError, did_you_mean


@dataclass(frozen=True, kw_only=True)
class Format:
    """A format that is read.

    Attributes:
        recognise: Returns why a path is of this format, or None.
        looks_for: What that is, for a person.
        open: Opens it.
        options: Settings of `SourceOptions` that only this format has.
    """

    recognise: Callable[[Path], str | None]
    looks_for: str
    open: Callable[[Path, SourceOptions], Source]
    options: tuple[str, ...] = ()


#: In the order in which they are tried: the more particular first.
FORMATS = {
    "store": Format(recognise=store.recognise, looks_for=store.LOOKS_FOR, open=store.open_own),
    "lerobot": Format(recognise=lerobot.recognise, looks_for=lerobot.LOOKS_FOR, open=lerobot.open_lerobot),
    "rlds": Format(
        recognise=rlds.recognise, looks_for=rlds.LOOKS_FOR, open=rlds.open_rlds, options=("split",)
    ),
    "calvin": Format(
        recognise=calvin.recognise,
        looks_for=calvin.LOOKS_FOR,
        open=calvin.open_calvin,
        options=("split", "absolute"),
    ),
    "replay_buffer": Format(
        recognise=replay_buffer.recognise,
        looks_for=replay_buffer.LOOKS_FOR,
        open=replay_buffer.open_replay_buffer,
    ),
    "libero": Format(recognise=libero.recognise, looks_for=libero.LOOKS_FOR, open=libero.open_libero),
    "robomimic": Format(
        recognise=robomimic.recognise,
        looks_for=robomimic.LOOKS_FOR,
        open=robomimic.open_robomimic,
        options=("mask",),
    ),
    "mcap": Format(
        recognise=mcap_bag.recognise,
        looks_for=mcap_bag.LOOKS_FOR,
        open=mcap_bag.open_mcap,
        options=("tolerance", "interpolate"),
    ),
}

#: Formats that are written.
SINKS = ("store", "lerobot", "libero", "robomimic", "replay_buffer")


@dataclass(frozen=True)
class Detected:
    """A format, and how it was recognised."""

    format: str
    why: str


def detect(path: Path) -> Detected:
    """Recognise the format of a file or folder.

    Raises:
        DataError: if there is nothing, or nothing known: then with a list of what was looked for.
    """
    if not path.exists():
        names = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise DataError(f"there is nothing at {path}.{did_you_mean(path.name, names) if names else ''}")
    for name, known in FORMATS.items():
        if (why := known.recognise(path)) is not None:
            return Detected(name, why)
    looked = "\n".join(f"  {name:14} {known.looks_for}" for name, known in FORMATS.items())
    inside = sorted(p.name for p in path.iterdir())[:8] if path.is_dir() else []
    found = f" It holds {', '.join(inside) or 'nothing'}." if path.is_dir() else ""
    raise DataError(
        f"{path} is of no format known here.{found} What was looked for:\n{looked}\nName it with --from"
    )


def open_source(path: Path, format: str | None, options: SourceOptions) -> tuple[Source, Detected]:
    """Open demonstrations of any format.

    Raises:
        ConfigError: if the format is unknown, or an option is not one of its own.
        DataError: if it cannot be recognised, or is damaged.
    """
    if format is None:
        detected = detect(path)
    elif format not in FORMATS:
        raise ConfigError(f"unknown format {format!r}.{did_you_mean(format, FORMATS)}")
    elif not path.exists():
        raise DataError(f"there is nothing at {path}")
    else:
        detected = Detected(format, "as --from says")
    known = FORMATS[detected.format]
    own = {name for other in FORMATS.values() for name in other.options} - set(known.options)
    defaults = SourceOptions()
    for field in fields(options):
        if field.name in own and getattr(options, field.name) != getattr(defaults, field.name):
            raise ConfigError(
                f"--{field.name} means nothing for the format {detected.format!r}; leave it out"
            )
    source = known.open(path, options)
    if not source.num_episodes:
        raise DataError(f"{path} has no episodes; there is nothing to convert")
    if options.gripper_changes:
        check_convention(source.convention.gripper)
        source = replace(source, gripper_changes=True)
    return source, detected


def open_sink(
    path: Path, format: str, options: SinkOptions, *, profile: ProfileName = "train", lossless: bool = False
) -> Sink:
    """Return what writes a format; a store keeps what an interrupted run has written.

    Raises:
        ConfigError: if the format is not one that is written.
        DataError: if the data do not fit the format, or something is at the path that may not be replaced.
    """
    match format:
        case "store":
            return StoreWriter(
                path,
                options.features,
                options.convention,
                options.provenance,
                profile=profile,
                overwrite=options.overwrite,
                resume=True,
            )
        case "lerobot":
            return LeRobotSink(path, options, lossless=lossless)
        case "libero":
            return LiberoSink(path, options)
        case "robomimic":
            return RobomimicSink(path, options)
        case "replay_buffer":
            return ReplayBufferSink(path, options)
    raise ConfigError(f"{format!r} is not written here.{did_you_mean(format, SINKS)}")
