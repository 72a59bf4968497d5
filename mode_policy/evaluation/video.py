"""Frames to video, animated GIF and contact sheet. Frames are uint8 ``(T, H, W, 3)``, upright RGB."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from pathlib import Path

import numpy as np
from PIL import Image

from mode_policy.errors import ModePolicyError
from mode_policy.files import replacing

# Okabe and Ito's bluish green and vermilion: distinct for every kind of colour vision.
SUCCESS_RGB = (0, 158, 115)
FAILURE_RGB = (213, 94, 0)

_PALETTE_FRAMES = 16  # that a GIF's colours are chosen from


class VideoError(ModePolicyError):
    """Frames that are no video, or a video that cannot be encoded here."""


def write_video(path: Path | str, frames: np.ndarray | Sequence[np.ndarray], fps: float) -> Path:
    """Write an H.264 mp4 that every browser plays; return its path.

    H.264 halves the resolution of colour, so an odd height or width gains one repeated row or column.

    Args:
        path: Where to; ends in ``.mp4``.
        frames: uint8 ``(T, H, W, 3)``, T ≥ 1.
        fps: Frames per second, > 0.

    Raises:
        VideoError: if the frames are malformed, the path ends otherwise, imageio's ffmpeg is not
            installed, or encoding fails.
    """
    movie = _checked(frames, fps)
    if Path(path).suffix != ".mp4":
        raise VideoError(f"{path} is no name for a video; end it in .mp4 (or .gif, where that is offered)")
    _, height, width, _ = movie.shape
    movie = np.pad(movie, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    try:
        import imageio_ffmpeg  # type: ignore[import-untyped]
    except ImportError as error:
        raise VideoError(
            "writing mp4 needs imageio with ffmpeg: `pip install 'mode-policy[video]'`, or write a .gif"
        ) from error
    try:
        with replacing(path) as temporary:
            encoder = imageio_ffmpeg.write_frames(
                str(temporary),
                size=(width + width % 2, height + height % 2),
                fps=fps,
                codec="libx264",
                macro_block_size=1,  # else it scales to multiples of 16
                ffmpeg_log_level="error",
                output_params=["-movflags", "+faststart"],  # playable before it is loaded whole
            )
            encoder.send(None)  # starts ffmpeg
            try:
                for frame in movie:
                    encoder.send(np.ascontiguousarray(frame))
            finally:
                encoder.close()
            if not temporary.exists() or temporary.stat().st_size == 0:  # it fails silently on the last frame
                raise RuntimeError(f"ffmpeg refused {len(movie)} frames of {width} x {height}")
    except (OSError, RuntimeError) as error:
        raise VideoError(f"could not encode {path}: {error}") from error
    return Path(path)


def write_gif(
    path: Path | str, frames: np.ndarray | Sequence[np.ndarray], fps: float, colors: int = 128
) -> Path:
    """Write an endlessly looping GIF; return its path. Needs no ffmpeg. Arguments as in `write_video`.

    All frames share one palette of ``colors`` (2 to 256) without dithering, so that what stands still costs
    nothing. GIF counts time in hundredths of a second, and viewers slow down anything faster than 50 per
    second.

    Raises:
        VideoError: if the frames are malformed or the file cannot be written.
    """
    movie = _checked(frames, fps)
    seen = movie[:: max(1, len(movie) // _PALETTE_FRAMES)]
    palette = Image.fromarray(np.concatenate(list(seen))).quantize(colors)
    first, *rest = (
        Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE) for frame in movie
    )
    try:
        with replacing(path) as temporary:
            first.save(
                temporary, format="GIF", save_all=True, append_images=rest, duration=1000 / fps, loop=0
            )
    except OSError as error:
        raise VideoError(f"could not write {path}: {error}") from error
    return Path(path)


def contact_sheet(frames: np.ndarray | Sequence[np.ndarray], columns: int, gap: int = 2) -> np.ndarray:
    """Tile frames row by row on white, ``gap`` pixels apart.

    Returns:
        uint8 ``(rows·(H + gap) - gap, columns·(W + gap) - gap, 3)``; unused tiles stay white.

    Raises:
        VideoError: if the frames are malformed or ``columns`` < 1.
    """
    if columns < 1:
        raise VideoError(f"a contact sheet of {columns} columns; need at least 1")
    movie = _checked(frames)
    count, height, width, _ = movie.shape
    rows = ceil(count / columns)
    sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, dtype=np.uint8)
    for i, frame in enumerate(movie):
        top, left = i // columns * (height + gap), i % columns * (width + gap)
        sheet[top : top + height, left : left + width] = frame
    return sheet


def mark_outcome(frames: np.ndarray | Sequence[np.ndarray], success: bool, width: int = 3) -> np.ndarray:
    """Return a copy of the frames with a border that is green for success and vermilion for failure."""
    movie = _checked(frames).copy()
    inside = np.zeros(movie.shape[1:3], dtype=bool)
    inside[width:-width, width:-width] = True
    movie[:, ~inside] = SUCCESS_RGB if success else FAILURE_RGB
    return movie


def _checked(frames: np.ndarray | Sequence[np.ndarray], fps: float = 1.0) -> np.ndarray:
    if fps <= 0:
        raise VideoError(f"{fps} frames per second; need more than 0")
    shapes = {np.shape(frame) for frame in frames}
    if len(shapes) != 1:
        raise VideoError(f"frames must share one shape (H, W, 3) and be at least one; got {sorted(shapes)}")
    movie = np.asarray(frames)
    if movie.dtype != np.uint8 or movie.ndim != 4 or movie.shape[-1] != 3:
        raise VideoError(f"frames are uint8 (T, H, W, 3), but these are {movie.dtype} {movie.shape}")
    return movie
