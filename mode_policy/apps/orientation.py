"""Whether demonstrations show their images the way up that the environments do.

Metadata say how images are stored, and may be wrong: LIBERO's own files are upside down, other copies of them
are turned, and a policy that learns from one and acts on another fails without a word. So pictures are
compared: the first ones of the demonstrations with the environment's own.

A picture is a sum of parts that are even or odd in its rows and in its columns. Turning it upside down
negates the part that is odd in its rows alone, mirroring it the part that is odd in its columns alone. So the
sign of each part's correlation with the environment's tells whether that was done, and its size how certain
that is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from mode_datasets import DemonstrationStore
from mode_envs import EnvTask
from mode_envs.lanes import Begin
from mode_envs.worker import Worker, WorkerDiedError
from mode_policy.apps.cli import console
from mode_policy.apps.fit import observation_options
from mode_policy.errors import DataError, SimulatorError
from mode_policy.types import Feature

_EPISODES = 8  # whose first images are averaged
_SIDE = 16  # cells of an image that are compared, in height and width
_CERTAIN = -0.5  # correlation below which a part counts as negated; real scenes are nearer to -1 or 1
_TIMEOUT = 300.0  # seconds

# How an image is stored → whether its rows and its columns are reversed.
_STORED = {
    "upright": (False, False),
    "upside_down": (True, False),
    "rotated_180": (True, True),
    "mirrored": (False, True),
}


def check_orientation(store: DemonstrationStore, keys: Sequence[str], tasks: Sequence[EnvTask]) -> None:
    """Hold the images of demonstrations to those of the environments that their policy will see.

    Args:
        store: The demonstrations.
        keys: Feature keys of the images that the policy sees; each is one of the environments'.
        tasks: Where it will act; the first one that is demonstrated is looked at.

    Raises:
        DataError: naming the camera, how its images are turned, and the setting that turns them back. Never
            where it cannot be told.
        SimulatorError: if the environment cannot draw.
    """
    demonstrated = [task.name for task in store.tasks]
    shown = next((task for task in tasks if task.task.name in demonstrated), None)
    if shown is None or not keys:
        return
    console.print(f"images     comparing those of {shown.task.name} with the simulator's")
    episodes = np.flatnonzero(store.episode_tasks == demonstrated.index(shown.task.name))[:_EPISODES]
    for key, seen in _first_images(shown, {key: store.features[key] for key in keys}).items():
        first = store.frames(key, store.episode_starts[episodes])
        rows, columns = reversals(first.astype(np.float64).mean(0), seen)
        if rows or columns:
            raise DataError(_message(store, key, shown, rows, columns))


def reversals(image: np.ndarray, upright: np.ndarray) -> tuple[bool, bool]:
    """Return whether the rows and the columns of an image are certainly reversed, compared with another one.

    Both are ``(height, width, 3)``, of any size, and show about the same scene.
    """
    a, b = _cells(image), _cells(upright)
    rows, columns = (_correlation(_odd(a, axis), _odd(b, axis)) < _CERTAIN for axis in (0, 1))
    return rows, columns


def _message(store: DemonstrationStore, key: str, task: EnvTask, rows: bool, columns: bool) -> str:
    said = _STORED.get(store.image_orientation, _STORED["upright"])  # unknown is read as that
    really = next(name for name, turn in _STORED.items() if turn == (said[0] != rows, said[1] != columns))
    looks = "turned by 180 degrees" if rows and columns else "upside down" if rows else "mirrored"
    fix = (
        "convert them again from files that are not mirrored; no setting does that"
        if really == "mirrored"
        else f"read them as they are stored: dataset.adapt.image_orientation={really}"
    )
    return (
        f"the demonstrations in {store.location} show {key!r} {looks}, compared with {task.env_id}; a policy "
        f"that learns from them would not know what it sees. To set it right, {fix}"
    )


def _first_images(task: EnvTask, images: Mapping[str, Feature]) -> dict[str, np.ndarray]:
    """Let the environment draw its first pictures, in another process: it may die of its driver."""
    size = {key: Feature(shape=(64, 64, 3), dtype="uint8") for key in images}
    options = observation_options(task.env_id, size)
    worker = Worker("mode_envs.lanes:Lanes")
    try:
        worker.send(
            [Begin(lane=0, env_id=task.env_id, max_steps=task.max_steps, seed=0, history=1, options=options)]
        )
        (reply,) = worker.receive(_TIMEOUT, lambda sentence: console.print(f"waiting    {sentence}"))
    except WorkerDiedError as death:
        raise SimulatorError(f"{task.env_id} could not draw its first picture: {death}") from death
    finally:
        worker.close()
    return {key: x[-1] for key, x in reply.observation.items()}


def _cells(image: np.ndarray) -> np.ndarray:
    """Average an image over `_SIDE` by `_SIDE` cells."""
    for axis in (0, 1):
        parts = np.array_split(image.astype(np.float64), _SIDE, axis=axis)
        image = np.stack([part.mean(axis=axis) for part in parts], axis=axis)
    return image


def _odd(image: np.ndarray, axis: int) -> np.ndarray:
    """Return the part that is odd along an axis and even along the other."""
    odd = image - np.flip(image, axis)
    return odd + np.flip(odd, 1 - axis)


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    scale = np.linalg.norm(a) * np.linalg.norm(b)
    return float((a * b).sum() / scale) if scale > 0 else 0.0
