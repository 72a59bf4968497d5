from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mode_policy.evaluation import (
    EpisodeRecord,
    Evaluation,
    VideoError,
    contact_sheet,
    mark_outcome,
    write_gif,
    write_video,
)
from mode_policy.types import Task
from tests.conftest import ROOT


def test_mp4_keeps_frames_rate_and_brightness(tmp_path: Path, frames: np.ndarray) -> None:
    ffmpeg = pytest.importorskip("imageio_ffmpeg", reason="ffmpeg is not installed (mode-policy[video])")
    path = write_video(tmp_path / "new" / "a.mp4", frames, fps=20)
    reader = ffmpeg.read_frames(str(path))
    meta = next(reader)
    decoded = [np.frombuffer(frame, np.uint8).reshape(32, 46, 3) for frame in reader]
    assert meta["source_size"] == (46, 32)
    assert meta["fps"] == 20
    assert meta["codec"] == "h264"
    assert len(decoded) == len(frames)
    # Compression is lossy, but a flat frame keeps its brightness to within a few of 255 levels.
    means = [frame.mean() for frame in decoded]
    np.testing.assert_allclose(means, frames.mean(axis=(1, 2, 3)), atol=6)


def test_mp4_without_ffmpeg_says_what_to_install(
    tmp_path: Path, frames: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(VideoError, match=r"mode-policy\[video\]"):
        write_video(tmp_path / "a.mp4", frames, fps=20)
    assert list(tmp_path.iterdir()) == []


def test_other_endings_are_refused(tmp_path: Path, frames: np.ndarray) -> None:
    with pytest.raises(VideoError, match=r"a.xyz is no name for a video; end it in \.mp4"):
        write_video(tmp_path / "a.xyz", frames, fps=20)


def test_failed_encoding_leaves_nothing(tmp_path: Path) -> None:
    pytest.importorskip("imageio_ffmpeg", reason="ffmpeg is not installed (mode-policy[video])")
    with pytest.raises(VideoError, match="could not encode"):
        write_video(
            tmp_path / "a.mp4", np.zeros((1, 2, 40_000, 3), np.uint8), fps=20
        )  # wider than H.264 goes
    assert list(tmp_path.iterdir()) == []


def test_gif_keeps_frames_and_rate(tmp_path: Path, frames: np.ndarray) -> None:
    with Image.open(write_gif(tmp_path / "a.gif", list(frames), fps=20)) as image:
        assert image.n_frames == len(frames)  # type: ignore[attr-defined]
        assert image.size == (45, 31)
        assert image.info["duration"] == 50
        for i, frame in enumerate(frames):
            image.seek(i)
            np.testing.assert_allclose(np.asarray(image.convert("RGB")), frame, atol=1)


@pytest.mark.parametrize(("columns", "rows"), [(1, 12), (5, 3), (12, 1), (20, 1)])
def test_contact_sheet_places_every_frame(frames: np.ndarray, columns: int, rows: int) -> None:
    sheet = contact_sheet(frames, columns, gap=2)
    assert sheet.shape == (rows * 33 - 2, columns * 47 - 2, 3)
    for i, frame in enumerate(frames):
        top, left = i // columns * 33, i % columns * 47
        np.testing.assert_array_equal(sheet[top : top + 31, left : left + 45], frame)
    assert np.count_nonzero((sheet != 255).any(axis=-1)) == 12 * 31 * 45


def test_outcome_colours_only_the_border_of_a_copy(frames: np.ndarray) -> None:
    before = frames.copy()
    good, bad = mark_outcome(frames, success=True, width=2), mark_outcome(frames, success=False, width=2)
    np.testing.assert_array_equal(frames, before)
    np.testing.assert_array_equal(good[:, 2:-2, 2:-2], frames[:, 2:-2, 2:-2])
    assert (good[:, 0] == (0, 158, 115)).all()
    assert (bad[:, :, -1] == (213, 94, 0)).all()


@pytest.mark.parametrize(
    "frames",
    [
        np.zeros((0, 4, 4, 3), np.uint8),
        np.zeros((4, 4, 3), np.uint8),
        np.zeros((2, 4, 4, 4), np.uint8),
        np.zeros((2, 4, 4, 3), np.float32),
        [np.zeros((4, 4, 3), np.uint8), np.zeros((4, 5, 3), np.uint8)],
    ],
)
def test_malformed_frames_are_named(frames: np.ndarray | list[np.ndarray], tmp_path: Path) -> None:
    with pytest.raises(VideoError, match=r"frames (are uint8|must share)"):
        write_gif(tmp_path / "a.gif", frames, fps=10)


def test_other_bad_arguments(tmp_path: Path, frames: np.ndarray) -> None:
    with pytest.raises(VideoError, match="0 frames per second"):
        write_gif(tmp_path / "a.gif", frames, fps=0)
    with pytest.raises(VideoError, match="0 columns"):
        contact_sheet(frames, 0)


def test_the_script_of_the_readme_tiles_the_first_video_of_each_task(
    tmp_path: Path, frames: np.ndarray
) -> None:
    pytest.importorskip("imageio_ffmpeg", reason="ffmpeg is not installed (mode-policy[video])")
    tasks = [Task(name=name, instruction="") for name in ("a", "b")]
    records = []
    for task, moments in zip(tasks, (frames, frames[:5]), strict=True):
        for seed in range(2):
            video = f"videos/{task.name}_{seed}.mp4"
            write_video(tmp_path / video, moments[: 12 - seed], fps=20)
            records.append(
                EpisodeRecord(task=task.name, seed=seed, success=True, steps=1, return_=0.0, video=video)
            )
    Evaluation.from_records(records, tasks, {}).write(tmp_path / "evaluation.json")
    script = (sys.executable, "scripts/rollouts_gif.py", tmp_path, tmp_path / "a.gif", "--side=16")
    subprocess.run(script, cwd=ROOT, check=True, capture_output=True)
    with Image.open(tmp_path / "a.gif") as image:
        assert image.size == (5 * 16, 16)
        image.seek(11)
        last = np.asarray(image.convert("RGB")).astype(int)
    assert abs(last[:, :16].mean() - 220) < 10, "the longer one goes on"
    assert abs(last[:, 16:32].mean() - 80) < 10, "the shorter one waits at its end"
