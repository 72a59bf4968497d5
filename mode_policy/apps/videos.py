"""Videos of rollouts, drawn afterwards: then it is known which ones are worth it, and failures come first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from mode_envs import EnvTask, rendering_available
from mode_envs.demonstrate import Drawing
from mode_envs.drawing import draw
from mode_envs.features import filming_camera
from mode_envs.recordings import Recordings
from mode_envs.registration import entry
from mode_envs.rollout import EpisodeResult
from mode_policy.apps.cli import console
from mode_policy.apps.dataset import control_rate
from mode_policy.apps.progress import bar
from mode_policy.errors import ModePolicyError
from mode_policy.evaluation import EpisodeRecord, mark_outcome, write_video
from mode_policy.evaluation.journal import Key, key

_RATE = 20.0  # pictures per second; drawing takes longer than physics

_MOMENTS = "moments"


def stride(task: EnvTask) -> int:
    """Steps between two pictures."""
    return max(1, round(control_rate(task) / _RATE))


def can_film(tasks: Sequence[EnvTask]) -> bool:
    """Whether videos of these tasks can be drawn on this machine; if not, say why."""
    available, reason = rendering_available()
    if available or not any(entry(task.env_id).opengl for task in tasks):
        return True
    console.print(f"videos     none: {reason}")
    return False


class Films:
    """What videos can be drawn of, in files: of each task the first ``count`` failures and successes.

    Args:
        folder: For the files.
        count: Videos of each task.
    """

    def __init__(self, folder: Path, count: int) -> None:
        self._folder, self._count = folder, count
        self._kept: dict[tuple[str, bool], int] = {}

    def keep(self, result: EpisodeResult) -> None:
        """Keep an episode's moments if they may be needed; called in the order in which episodes end."""
        kind = result.task, result.success
        if result.snapshots is None or self._kept.get(kind, 0) >= self._count:
            return
        self._kept[kind] = self._kept.get(kind, 0) + 1
        name = (result.task, result.seed, result.initial_state, result.repeat)
        Recordings.write(self.path(name), {_MOMENTS: result.snapshots})

    def read(self, name: Key) -> np.ndarray | None:
        """Return an episode's moments ``(F, S)`` if they were kept."""
        arrays = Recordings.read(self.path(name))
        return None if arrays is None else arrays.get(_MOMENTS)

    def path(self, name: Key) -> Path:
        """Return the file of an episode."""
        task, seed, state, repeat = name
        return self._folder / f"{task}-{seed}-{state}-{repeat}.npz"


def write_videos(
    records: Sequence[EpisodeRecord],
    films: Films,
    tasks: Sequence[EnvTask],
    folder: Path,
    *,
    count: int,
    size: int,
    workers: int | None,
) -> list[EpisodeRecord]:
    """Draw ``count`` videos of each task to ``folder/videos``, failures first, and name them in the records.

    What goes wrong is said and costs nothing but videos.
    """
    of_task = {task.task.name: task for task in tasks}
    written = {key(record): record for record in records}
    chosen: list[tuple[EpisodeRecord, np.ndarray]] = []
    for task in of_task:
        own = sorted((r for r in records if r.task == task), key=lambda record: record.success)
        found = ((record, films.read(key(record))) for record in own)
        chosen += [(record, moments) for record, moments in found if moments is not None][:count]
    drawings = [
        Drawing(
            env_id=of_task[record.task].env_id,
            max_steps=of_task[record.task].max_steps,
            snapshots=moments,
            cameras=(filming_camera(of_task[record.task].env_id),),
            size=(size, size),
        )
        for record, moments in chosen
    ]
    made = 0

    def done(i: int, pictures: dict[str, np.ndarray]) -> None:
        nonlocal made
        record = chosen[i][0]
        outcome = "success" if record.success else "failure"
        name = f"videos/{record.task}_{record.label.replace(', ', '_').replace(' ', '')}_{outcome}.mp4"
        (frames,) = pictures.values()
        rate = control_rate(of_task[record.task]) / stride(of_task[record.task])
        write_video(folder / name, mark_outcome(frames, record.success), fps=rate)
        written[key(record)] = replace(record, video=name)
        made += 1
        progress.update(row, advance=1)

    with bar("drawing", "videos") as progress:
        row = progress.add_task("drawing", total=len(drawings), note="")
        try:
            draw(drawings, done, workers=workers or None)
        except ModePolicyError as error:
            console.print(f"videos     {made or 'none'}: {error}")
    return list(written.values())
