"""Looking at one episode: as a picture, as a video, in Rerun."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from mode_datasets import schema
from mode_datasets.store import DemonstrationStore
from mode_policy.errors import ConfigError, DataError
from mode_policy.evaluation.plots import INK, style_axes
from mode_policy.evaluation.video import contact_sheet, write_gif, write_video
from mode_policy.files import replacing
from mode_policy.types import ACTION

#: Frames of each camera on a sheet, and dimensions of a feature that get a name in its legend.
SHEET_FRAMES, LEGEND = 8, 10


def write_sheet(store: DemonstrationStore, index: int, path: Path | str) -> None:
    """Draw frames of each camera and all vectors of an episode over time into one picture.

    Args:
        store: Where the episode is.
        index: Its number.
        path: Of the picture; its ending chooses the format, such as ``.png`` or ``.pdf``.

    Raises:
        DataError: if there is no such episode, or a file of it is damaged.
    """
    episode = store.episode(index)
    cameras, vectors = schema.image_keys(store.features), _vectors(store)
    steps = np.unique(np.linspace(0, len(episode) - 1, SHEET_FRAMES).astype(int))
    strips = [contact_sheet(episode.arrays[key][steps], SHEET_FRAMES) for key in cameras]
    heights = [11 * strip.shape[0] / strip.shape[1] for strip in strips] + [2.2] * len(vectors)
    figure = Figure(figsize=(11, sum(heights) + 0.5 * len(heights) + 0.4), layout="constrained")
    figure.suptitle(
        f"episode {index}: {episode.task.name}, {len(episode)} steps at {store.fps:g} Hz",
        fontsize=11,
        color=INK,
        parse_math=False,
    )
    axes = figure.subplots(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    for key, strip, ax in zip(cameras, strips, axes, strict=False):
        ax.imshow(strip)
        ax.set_axis_off()
        ax.set_title(_short(key), loc="left", fontsize=9, color=INK, parse_math=False)
    for key, ax in zip(vectors, axes[len(cameras) :], strict=True):
        names = store.features[key].names
        for dim, values in enumerate(episode.arrays[key].T):
            name = names[dim] if dim < len(names) else str(dim)
            ax.plot(values, linewidth=1, label=name if dim < LEGEND else None)
        ax.set_title(_short(key), loc="left", fontsize=9, color=INK, parse_math=False)
        ax.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=7)
        ax.set_xlim(0, max(1, len(episode) - 1))
        style_axes(ax, grid="both")
    axes[-1].set_xlabel("step")
    with replacing(path) as partial:
        figure.savefig(partial, dpi=110)


def write_episode_video(store: DemonstrationStore, index: int, path: Path | str) -> None:
    """Write the cameras of an episode, side by side, as an mp4 (or a GIF, by the path's ending) at its rate.

    Raises:
        DataError: if there is no such episode, it has no camera, or a file of it is damaged.
        VideoError: if the video cannot be encoded.
    """
    cameras = schema.image_keys(store.features)
    if not cameras:
        raise DataError(f"{store.location} has no camera to make a video of; draw a --sheet instead")
    episode = store.episode(index)
    height = max(store.features[key].shape[0] for key in cameras)
    movie = np.concatenate([_of_height(episode.arrays[key], height) for key in cameras], axis=2)
    write = write_gif if Path(path).suffix == ".gif" else write_video
    write(path, movie, store.fps)


def show_in_rerun(store: DemonstrationStore, index: int, save: Path | str | None = None) -> None:
    """Show an episode in the Rerun viewer, or save it as a recording (``.rrd``) for it.

    Raises:
        ConfigError: if Rerun is not installed.
        DataError: if there is no such episode, or a file of it is damaged.
    """
    try:
        import rerun as rr
    except ImportError as error:
        raise ConfigError(
            "the viewer is not installed: pip install 'mode-policy[view]'. Without it: --sheet episode.png, "
            "--video episode.mp4"
        ) from error
    episode = store.episode(index)
    recording = rr.RecordingStream(f"{store.location.name}, episode {index}")
    if save is None:
        recording.spawn()
    else:
        recording.save(save)
    text = f"{episode.task.name}: {episode.task.instruction}"
    recording.log("task", rr.TextDocument(text), static=True)
    seconds = np.arange(len(episode)) / store.fps
    times = [
        rr.TimeColumn("step", sequence=np.arange(len(episode))),
        rr.TimeColumn("time", duration=seconds),
    ]
    for key in _vectors(store):
        names = store.features[key].names
        for dim, values in enumerate(episode.arrays[key].T):
            name = names[dim] if dim < len(names) else str(dim)
            recording.send_columns(f"{_short(key)}/{name}", times, rr.Scalars.columns(scalars=values))
    for key in schema.image_keys(store.features):
        for step, frame in enumerate(episode.arrays[key]):
            recording.set_time("step", sequence=step)
            recording.set_time("time", duration=float(seconds[step]))
            recording.log(_short(key), rr.Image(frame))
    recording.flush()


def _vectors(store: DemonstrationStore) -> list[str]:
    return sorted(schema.vector_keys(store.features), key=lambda key: key != ACTION)


def _short(key: str) -> str:
    return key.removeprefix("observation.")


def _of_height(frames: np.ndarray, height: int) -> np.ndarray:
    if frames.shape[1] == height:
        return frames
    size = (max(1, round(frames.shape[2] * height / frames.shape[1])), height)
    return np.stack([np.asarray(Image.fromarray(frame).resize(size)) for frame in frames])
