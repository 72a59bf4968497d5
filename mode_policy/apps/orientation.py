"""Whether demonstrations show their images the way up that the environments do.

Metadata say how images are stored, and may be wrong: LIBERO's own files are upside down, other copies of them
are turned, and a policy that was trained on one of them fails silently on the other. So the pictures
themselves
are compared: an environment's first one with the first ones of the demonstrations, as they are and turned.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mode_datasets import DemonstrationStore
from mode_envs import EnvTask
from mode_envs.features import camera_names
from mode_envs.lanes import Begin
from mode_envs.registration import entry
from mode_envs.worker import Worker, WorkerDiedError
from mode_policy.apps.cli import console
from mode_policy.errors import DataError, SimulatorError
from mode_policy.types import IMAGE_PREFIX

_EPISODES = 8  # whose first images are averaged
_SIDE = 16  # pixels to which images are averaged before they are compared
_MARGIN = 0.2  # of correlation, by which another orientation must be the better one
_TIMEOUT = 300.0

# Orientation of the stored image → how it is turned into an upright one: (rows reversed, columns reversed).
_TURNS = {
    "upright": (False, False),
    "upside_down": (True, False),
    "rotated_180": (True, True),
    "mirrored": (False, True),
}


def check_orientation(store: DemonstrationStore, cameras: Sequence[str], tasks: Sequence[EnvTask]) -> None:
    """Hold the images of demonstrations to those of the environments that their policy will see.

    Args:
        store: The demonstrations.
        cameras: Feature keys of the images that the policy sees.
        tasks: Where it will act; the first one that is demonstrated is looked at.

    Raises:
        DataError: naming the camera, how its images are turned, and the setting that turns them back.
        SimulatorError: if the environment cannot draw.
    """
    demonstrated = {task.name for task in store.tasks}
    shown = next((task for task in tasks if task.task.name in demonstrated), None)
    if shown is None or not cameras:
        return
    known = camera_names(shown.env_id)
    keys = [key for key in cameras if key.removeprefix(IMAGE_PREFIX) in known]  # of others, `check_fit` tells
    console.print(f"images     comparing with those of {shown.task.name}")
    for key, image in _first_images(shown, keys).items():
        demonstrations = _mean_first_image(store, key, shown.task.name)
        if (found := turned(demonstrations, image)) != "upright":
            raise DataError(_message(store, key, shown, found))


def turned(image: np.ndarray, upright: np.ndarray) -> str:
    """Return how an image would have to be stored to look as it does, if it should look like ``upright``.

    Both are ``(height, width, 3)`` with values from 0 to 255. The answer is "upright" unless another
    orientation fits clearly better.
    """
    reference = _small(upright)
    fits = {name: _correlation(_small(_turn(image, turn)), reference) for name, turn in _TURNS.items()}
    best = max(fits, key=lambda name: fits[name])
    return best if fits[best] > fits["upright"] + _MARGIN else "upright"


def stored_orientation(claimed: str, found: str) -> str:
    """Return how images are really stored, that were read as ``claimed`` and then look like ``found``."""
    a, b = _TURNS[claimed], _TURNS[found]
    both = (a[0] != b[0], a[1] != b[1])
    return next(name for name, turn in _TURNS.items() if turn == both)


def _message(store: DemonstrationStore, key: str, task: EnvTask, found: str) -> str:
    claimed = store.image_orientation if store.image_orientation in _TURNS else "upright"
    really = stored_orientation(claimed, found)
    looks = {"upside_down": "upside down", "rotated_180": "turned by 180 degrees"}.get(found, "mirrored")
    fix = (
        "convert them again, mirrored; no setting does that"
        if really == "mirrored"
        else f"read them as they are stored: dataset.adapt.image_orientation={really}"
    )
    return (
        f"the demonstrations in {store.location} show {key!r} {looks}, compared with {task.env_id}; a policy "
        f"that learns from them would not know what it sees. To set it right, {fix}"
    )


def _first_images(task: EnvTask, keys: Sequence[str]) -> dict[str, np.ndarray]:
    """Let the environment draw its first pictures, in another process: it may die of its driver."""
    names = [key.removeprefix(IMAGE_PREFIX) for key in keys]
    several = "suite" in entry(task.env_id).kwargs
    images: dict[str, np.ndarray] = {}
    worker = Worker("mode_envs.lanes:Lanes")
    try:
        for group in [names] if several else [[name] for name in names]:
            cameras = {"cameras": tuple(group)} if several else {"camera": group[0]}
            begin = Begin(
                lane=0,
                env_id=task.env_id,
                max_steps=task.max_steps,
                seed=0,
                history=1,
                options={"obs_mode": "pixels", "image_size": (64, 64), **cameras},
            )
            worker.send([begin])
            (reply,) = worker.receive(_TIMEOUT, lambda sentence: console.print(f"waiting    {sentence}"))
            images |= {key: x[-1] for key, x in reply.observation.items() if key in keys}
    except WorkerDiedError as death:
        raise SimulatorError(f"{task.env_id} could not draw its first picture: {death}") from death
    finally:
        worker.close()
    return images


def _mean_first_image(store: DemonstrationStore, key: str, task: str) -> np.ndarray:
    index = [t.name for t in store.tasks].index(task)
    episodes = np.flatnonzero(store.episode_tasks == index)[:_EPISODES]
    return store.frames(key, store.episode_starts[episodes]).astype(np.float64).mean(axis=0)


def _turn(image: np.ndarray, turn: tuple[bool, bool]) -> np.ndarray:
    rows, columns = turn
    return image[:: -1 if rows else 1, :: -1 if columns else 1]


def _small(image: np.ndarray) -> np.ndarray:
    """Average an image over a grid of `_SIDE` by `_SIDE` cells, whatever its size."""
    for axis in (0, 1):
        parts = np.array_split(image.astype(np.float64), _SIDE, axis=axis)
        image = np.stack([part.mean(axis=axis) for part in parts], axis=axis)
    return image


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Return the correlation of two images' grey levels and colours, 0 where one has a single colour."""
    a, b = a - a.mean(axis=(0, 1)), b - b.mean(axis=(0, 1))
    scale = np.linalg.norm(a) * np.linalg.norm(b)
    return float((a * b).sum() / scale) if scale > 0 else 0.0
