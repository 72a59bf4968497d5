"""Show rollouts of each task side by side, as in the README.

    uv run scripts/rollouts_gif.py runs/metaworld_mt10/… docs/media/metaworld_mt10.gif

The first filmed rollouts of each task are taken, whether they succeeded or not; one that ends early waits for
the others.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import imageio_ffmpeg  # type: ignore[import-untyped]
import numpy as np
from PIL import Image

from mode_policy.errors import ModePolicyError
from mode_policy.evaluation import Evaluation, VideoError, contact_sheet, write_gif

LAST_FRAMES = 6  # that the animation rests on the outcome


def first_videos(folder: Path, each: int) -> list[Path]:
    """Return the first ``each`` videos of each task of an evaluation in ``folder``.

    Raises:
        VideoError: if none was made.
    """
    filmed: dict[str, list[Path]] = {}
    for episode in Evaluation.read(folder / "evaluation.json").episodes:
        if episode.video is not None:
            filmed.setdefault(episode.task, []).append(folder / episode.video)
    if not filmed:
        raise VideoError(f"{folder} has no videos; evaluate where rendering works, with videos=1")
    return [video for videos in filmed.values() for video in videos[:each]]


def read_video(path: Path, side: int) -> tuple[list[np.ndarray], float]:
    """Return the frames of an mp4, each uint8 ``(side, side, 3)``, and their rate per second."""
    reader = imageio_ffmpeg.read_frames(str(path))
    meta = next(reader)
    width, height = meta["source_size"]
    images = (Image.frombytes("RGB", (width, height), frame) for frame in reader)
    return [np.asarray(image.resize((side, side), Image.Resampling.BOX)) for image in images], meta["fps"]


def main() -> None:
    """Read the videos of a run, tile them and write the animation."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="folder that holds evaluation.json and videos/")
    parser.add_argument("gif", type=Path)
    parser.add_argument("--each", type=int, default=1, help="rollouts a task")
    parser.add_argument("--columns", type=int, default=5)
    parser.add_argument("--side", type=int, default=128, help="pixels of a tile")
    parser.add_argument("--every", type=int, default=1, help="of so many frames, one is shown")
    parser.add_argument("--speed", type=float, default=0.625, help="of the animation to that of the videos")
    arguments = parser.parse_args()
    try:
        videos = [read_video(path, arguments.side) for path in first_videos(arguments.run, arguments.each)]
        moments = [
            contact_sheet([frames[min(t, len(frames) - 1)] for frames, _ in videos], arguments.columns, gap=0)
            for t in range(0, max(len(frames) for frames, _ in videos) + LAST_FRAMES, arguments.every)
        ]
        print(write_gif(arguments.gif, moments, fps=videos[0][1] * arguments.speed / arguments.every))
    except ModePolicyError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
