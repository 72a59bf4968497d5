"""Dynamic batching: requests of different sessions that come close together share one inference."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from mode_policy.deploy.policy_service import PolicyService
from mode_policy.deploy.server.metrics import Metrics

Waiting = tuple[Mapping[str, Any], "asyncio.Future[tuple[np.ndarray, float]]"]


class Batcher:
    """Collects requests and answers them together, one batch at a time, in a thread of its own.

    Args:
        service: the policy.
        size: of the largest batch.
        window: seconds that the first request of a batch waits for more.
        sessions: number of clients that could send one; nobody waits for more requests than that.
        metrics: counts batches.
    """

    def __init__(
        self, service: PolicyService, size: int, window: float, sessions: Callable[[], int], metrics: Metrics
    ) -> None:
        self._service, self._size, self._window = service, size, window
        self._sessions, self._metrics = sessions, metrics
        self._queue: asyncio.Queue[Waiting] = asyncio.Queue()
        # One thread: a batch on a device is not made faster by another beside it.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="policy")
        self._began: float | None = None  # when the batch that is being computed did

    @property
    def busy_for(self) -> float:
        """Seconds for which the present batch has been computed; 0 if there is none."""
        return 0.0 if self._began is None else time.monotonic() - self._began

    async def infer(self, request: Mapping[str, Any]) -> tuple[np.ndarray, float]:
        """Return the actions ``(C, A)`` and the seconds of the inference that they came from."""
        future: asyncio.Future[tuple[np.ndarray, float]] = asyncio.get_running_loop().create_future()
        await self._queue.put((request, future))
        return await future

    async def run(self) -> None:
        """Answer requests until cancelled."""
        try:
            while True:
                batch = [item for item in await self._collect() if not item[1].done()]
                if batch:
                    await self._answer(batch)
        finally:
            self._thread.shutdown(wait=False)

    async def _collect(self) -> list[Waiting]:
        batch = [await self._queue.get()]
        deadline = time.monotonic() + self._window
        while len(batch) < min(self._size, self._sessions()):
            try:
                async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                    batch.append(await self._queue.get())
            except TimeoutError:
                break
        return batch

    async def _answer(self, batch: list[Waiting]) -> None:
        loop, start = asyncio.get_running_loop(), time.perf_counter()
        self._began = time.monotonic()
        try:
            answers = await loop.run_in_executor(self._thread, self._service.infer, [r for r, _ in batch])
            self._began = None
        except Exception as error:
            self._began = None
            if len(batch) == 1:
                if not batch[0][1].done():
                    batch[0][1].set_exception(error)
                return
            for item in batch:  # one of them spoils it; the others shall not suffer
                await self._answer([item])
            return
        seconds = time.perf_counter() - start
        self._metrics.policy.add(seconds)
        self._metrics.batch.add(len(batch))
        for (_, future), actions in zip(batch, answers, strict=True):
            if not future.done():
                future.set_result((actions, seconds))
