"""Carrying out the commands of a rollout's lanes, here or in worker processes that may die."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace

import numpy as np

from mode_envs.lanes import Advance, Begin, Lanes, Reply
from mode_envs.worker import Notify, Worker, WorkerDiedError, call
from mode_policy.errors import SimulatorError


class LaneWork:
    """An episode in a lane: the command of this tick, and all it takes to restore the episode.

    Attributes:
        begin: How it began.
        command: What the simulator shall do in this tick.
        executed: Chunks that it has confirmed.
        restarts: How often the episode was restored.
    """

    def __init__(self, begin: Begin) -> None:
        self.begin = begin
        self.command: Begin | Advance = begin
        self.executed: list[np.ndarray] = []
        self.restarts = 0

    def confirm(self) -> None:
        """Note that the command has been carried out."""
        if isinstance(self.command, Advance):
            self.executed.append(self.command.actions)

    def restored(self) -> list[Begin | Advance]:
        """Return the commands that bring a new process to where the old one should be after this tick."""
        if isinstance(self.command, Begin):
            return [self.command]
        return [replace(self.begin, replay=tuple(self.executed)), self.command]


Simulate = Callable[[Sequence[LaneWork]], list[Reply]]


@contextmanager
def simulators(workers: int, max_restarts: int, timeout: float, notify: Notify) -> Iterator[Simulate]:
    """Yield a function that carries out one command of each lane and returns the replies in the same order.

    Args:
        workers: Processes; 0 for none.
        max_restarts: Deaths that one episode may live through.
        timeout: Seconds within which a process must answer, for each episode that it begins if those are
            several, or it counts as dead; it has longer for its first answer (`mode_envs.worker`).
        notify: Told in a sentence that the first answers take long.
    """
    simulator = _Fleet(workers, max_restarts, timeout, notify) if workers else _InProcess()
    try:
        yield simulator.simulate
    finally:
        simulator.close()


class _InProcess:
    def __init__(self) -> None:
        self._lanes = Lanes()

    def simulate(self, works: Sequence[LaneWork]) -> list[Reply]:
        error, replies = call(self._lanes, [work.command for work in works])
        if error is not None:
            raise SimulatorError(error)
        return replies

    def close(self) -> None:
        self._lanes.close()


class _Fleet:
    """Worker processes; lane ``i`` lives in process ``i`` modulo their number."""

    def __init__(self, size: int, max_restarts: int, timeout: float, notify: Notify) -> None:
        self._max_restarts, self._timeout, self._notify = max_restarts, timeout, notify
        self._said = False
        self._workers = [_spawn() for _ in range(size)]

    def simulate(self, works: Sequence[LaneWork]) -> list[Reply]:
        shares: dict[int, list[LaneWork]] = {}
        for work in works:
            shares.setdefault(work.begin.lane % len(self._workers), []).append(work)
        for i, share in shares.items():
            self._send(i, [work.command for work in share])
        replies = {reply.lane: reply for i, share in shares.items() for reply in self._receive(i, share)}
        return [replies[work.begin.lane] for work in works]

    def _send(self, i: int, commands: Sequence[Begin | Advance]) -> None:
        with suppress(WorkerDiedError):  # `_receive` meets the same death and deals with it
            self._workers[i].send(commands)

    def _receive(self, i: int, share: Sequence[LaneWork]) -> list[Reply]:
        begins = sum(isinstance(work.command, Begin) for work in share)  # each may build an environment
        while True:
            try:
                return self._workers[i].receive(self._timeout * max(1, begins), self._say)
            except WorkerDiedError as death:
                self._restore(i, share, death)

    def _restore(self, i: int, share: Sequence[LaneWork], death: WorkerDiedError) -> None:
        for work in share:
            work.restarts += 1
            if work.restarts > self._max_restarts:
                running = ", ".join(f"{w.begin.env_id} (seed {w.begin.seed})" for w in share)
                raise SimulatorError(
                    f"gave up after {self._max_restarts} restarts of {running}: {death}"
                ) from death
        self._workers[i].close()
        self._workers[i] = _spawn()
        self._send(i, [command for work in share for command in work.restored()])

    def _say(self, sentence: str) -> None:
        if not self._said:
            self._notify(sentence)
        self._said = True

    def close(self) -> None:
        for worker in self._workers:
            worker.close()


def _spawn() -> Worker:
    return Worker("mode_envs.lanes:Lanes")
