"""Pictures of recorded moments, drawn by several processes."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import numpy as np

from mode_envs.demonstrate import Drawing, RemoteDemonstrator, first_to_answer
from mode_envs.worker import Notify


def draw(
    drawings: Sequence[Drawing],
    on_done: Callable[[int, dict[str, np.ndarray]], None],
    *,
    workers: int | None = None,
    notify: Notify = lambda _: None,
) -> None:
    """Draw recorded moments.

    Args:
        drawings: What to draw; those of one task best stand together.
        on_done: Called with the index of a drawing and its pictures, uint8 ``(T, height, width, 3)`` by the
            feature keys of its cameras, as soon as it is done.
        workers: Processes; None for one per core.
        notify: Told in a sentence that the processes take long to begin.

    Raises:
        SimulatorError: if a simulator raises or keeps crashing.
    """
    count = min(len(drawings), workers or os.cpu_count() or 1)
    shares = np.array_split(range(len(drawings)), count) if count else []
    crew = {RemoteDemonstrator(): [int(i) for i in share] for share in shares}
    busy: dict[RemoteDemonstrator, int] = {}
    try:
        for process, share in crew.items():
            busy[process] = share.pop(0)
            process.start(drawings[busy[process]])
        while busy:
            for process in first_to_answer(list(busy), notify):
                pictures = process.finish()
                assert isinstance(pictures, dict)
                on_done(busy.pop(process), pictures)
                if crew[process]:
                    busy[process] = crew[process].pop(0)
                    process.start(drawings[busy[process]])
    finally:
        for process in crew:
            process.close()
