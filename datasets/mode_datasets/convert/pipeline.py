"""The conversion itself: read episodes in order, in several processes where that pays, check, write, report.

Memory holds a few episodes more than there are processes, however large the data.
"""

from __future__ import annotations

import hashlib
import itertools
import multiprocessing
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass, fields
from multiprocessing.connection import wait
from pathlib import Path

from mode_datasets import schema
from mode_datasets.convert.gripper import hold_gripper
from mode_datasets.convert.journal import Journal, Skipped
from mode_datasets.convert.sink import Sink, partial_path, remove
from mode_datasets.convert.source import Source
from mode_datasets.writer import StoreWriter
from mode_policy.errors import DataError
from mode_policy.types import Episode, InstructionTable, Task

#: Seconds between two commits: what a kill costs at most.
COMMIT_SECONDS = 20.0

#: Episodes from which on it pays to start processes, which takes seconds.
PARALLEL_EPISODES = 32


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a conversion is: episodes read, skipped ones included, of how many; steps; a remark."""

    done: int
    total: int
    steps: int
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a conversion did.

    Attributes:
        episodes: In the destination.
        resumed: Of them, those that an interrupted run had written.
        steps: Written by this run.
        tasks: Number of tasks.
        skipped: What was left out, and why.
        seconds: Of this run.
    """

    episodes: int
    resumed: int
    steps: int
    tasks: int
    skipped: tuple[Skipped, ...]
    seconds: float


def convert(
    source: Source,
    sink: Sink,
    destination: Path,
    *,
    workers: int | None = None,
    strict: bool = False,
    embed: Callable[[tuple[Task, ...]], InstructionTable] | None = None,
    progress: Callable[[Progress], None] = lambda _: None,
    commit_seconds: float = COMMIT_SECONDS,
) -> Report:
    """Write all episodes of a source to a sink; after a kill, call it again with the same arguments.

    Args:
        source: What is read.
        sink: Where it goes; not entered yet.
        destination: Its path.
        workers: Processes that read, 0 for this one alone, None for one a core where it pays.
        strict: Stop at the first damaged episode instead of leaving it out.
        embed: Makes the instruction table of the tasks, for sinks that store one.
        progress: Called after each episode.
        commit_seconds: Seconds between two commits.

    Raises:
        DataError: if writing fails, no episode is left, or an interrupted conversion was of something else.
    """
    journal = Journal(destination, _identity(source))
    try:
        report = _convert(source, sink, journal, workers, strict, embed, progress, commit_seconds)
    except BaseException:
        if not sink.num_episodes or not partial_path(destination).exists():  # nothing to go on from
            remove(partial_path(destination))
            journal.end()
        raise
    journal.end()
    return report


def _convert(
    source: Source,
    sink: Sink,
    journal: Journal,
    workers: int | None,
    strict: bool,
    embed: Callable[[tuple[Task, ...]], InstructionTable] | None,
    progress: Callable[[Progress], None],
    commit_seconds: float,
) -> Report:
    start = time.monotonic()
    committed = start
    steps = 0
    with sink:
        resumed = sink.num_episodes
        first = journal.begin(resumed)
        progress(Progress(done=first, total=source.num_episodes, steps=0))
        with closing(
            read_episodes(source, range(first, source.num_episodes), _workers(source, workers))
        ) as episodes:
            for index, episode in episodes:
                note = ""
                if isinstance(episode, Skipped):
                    if strict:
                        raise DataError(f"{episode.name} of {source.path}: {episode.reason}")
                    journal.skip(episode)
                    note = f"{len(journal.skipped)} skipped"
                else:
                    sink.append(episode)
                    steps += len(episode)
                if time.monotonic() - committed >= commit_seconds:
                    sink.commit()
                    committed = time.monotonic()
                progress(Progress(done=index + 1, total=source.num_episodes, steps=steps, note=note))
        if not sink.num_episodes and journal.skipped:
            bad = next(iter(journal.skipped.values()))
            raise DataError(
                f"none of the {source.num_episodes} episodes of {source.path} can be used; {bad.name}: "
                f"{bad.reason}"
            )
        if embed is not None and isinstance(sink, StoreWriter):
            sink.set_instructions(embed(sink.tasks))
    return Report(
        episodes=sink.num_episodes,
        resumed=resumed,
        steps=steps,
        tasks=len(sink.tasks),
        skipped=tuple(sorted(journal.skipped.values(), key=lambda s: s.index)),
        seconds=time.monotonic() - start,
    )


def read_episodes(source: Source, indices: range, workers: int) -> Generator[tuple[int, Episode | Skipped]]:
    """Yield episodes in order; a damaged one as `Skipped`.

    Raises:
        DataError: if a reading process dies.
    """
    if workers <= 0:
        for index in indices:
            yield index, _read(source, index)
        return
    # Spawned, because torch and the readers' libraries have threads of their own, which a fork would cut.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(source,))
    try:
        waiting: deque[tuple[int, Future[Episode | Skipped]]] = deque()
        rest = iter(indices)
        for index in itertools.islice(rest, workers + 1):
            waiting.append((index, pool.submit(_read_in_worker, index)))
        while waiting:
            index, future = waiting.popleft()
            episode = future.result()
            for following in itertools.islice(rest, 1):
                waiting.append((following, pool.submit(_read_in_worker, following)))
            yield index, episode
    except BrokenProcessPool as error:
        raise DataError(
            f"a process that read {source.path} died, perhaps for lack of memory; try fewer with --workers"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _read(source: Source, index: int) -> Episode | Skipped:
    try:
        episode = source.episode(index)
        if source.gripper_changes:
            episode = hold_gripper(episode, source.convention.gripper)
        schema.check_episode(episode, source.features, source.name(index))
    except DataError as error:
        return Skipped(index, source.name(index), str(error))
    return episode


_source: Source | None = None


def _start_worker(source: Source) -> None:
    global _source
    _source = source
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        # If the parent is killed, nobody else ends this process.
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _read_in_worker(index: int) -> Episode | Skipped:
    assert _source is not None
    return _read(_source, index)


def _workers(source: Source, asked: int | None) -> int:
    if asked is not None:
        return min(asked, source.num_episodes)
    cores = os.cpu_count() or 1
    return cores if source.parallel and cores > 1 and source.num_episodes >= PARALLEL_EPISODES else 0


def _identity(source: Source) -> dict[str, object]:
    """What an interrupted conversion must agree in to be continued: the source, and how it is read."""
    left_out = ("provenance", "notes", "store", "stream")
    settings = [(f.name, getattr(source, f.name)) for f in fields(source) if f.name not in left_out]
    return {
        "source": str(source.path.absolute()),
        "episodes": source.num_episodes,
        "settings": hashlib.sha256(repr(settings).encode()).hexdigest(),
    }
