"""Strategies: which action a tick gets from the chunks so far, and when the next chunk is asked for.

A chunk that was observed at tick k answers "what now": its actions are for ticks k, k + 1, …, but it
arrives d ticks later. The strategies differ in what happens meanwhile and where the new chunk takes over::

    tick            k     k+d          k+execute
    synchronous     hold ──┤ 0  1  2 …                       the robot waits for every chunk
    asynchronous    old ───┤ d  d+1 …                        the late head of the new chunk is dropped
    ensembling      old ───┤ mean of all chunks for a tick   (ACT, arXiv 2304.13705)
    real-time       old ───┤ d  d+1 … where 0 … d are fixed  (RTC, arXiv 2506.07339)
                           └ the next ``blend`` fade over from the old chunk

All are frozen and pure: the same chunks give the same answer. Chunks come oldest first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from mode_policy.deploy.config import StrategyConfig
from mode_policy.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Actions of one inference.

    Attributes:
        observed: tick of the observation that they are based on.
        start: tick that the first of them is for; later than ``observed`` by the ticks that the robot was
            held.
        actions: ``(C, A)``, raw units.
    """

    observed: int
    start: int
    actions: np.ndarray

    def at(self, tick: int) -> np.ndarray | None:
        """Return the action for a tick, or None if the chunk has none."""
        i = tick - self.start
        return self.actions[i] if 0 <= i < len(self.actions) else None


@dataclass(frozen=True, kw_only=True)
class Continuation:
    """What the next chunk has to continue.

    Attributes:
        actions: ``(n, A)``: those of the running chunk from the observation's tick on, and what is thought to
            follow them.
        fixed: how many of them will have been executed when the next chunk arrives.
    """

    actions: np.ndarray
    fixed: int


class Strategy(Protocol):
    """What the control loop asks in every tick."""

    @property
    def keep(self) -> int:
        """Number of newest chunks that decisions depend on."""

    def action(self, tick: int, chunks: Sequence[Chunk]) -> np.ndarray | None:
        """Return the action for a tick, float ``(A,)``, or None if there is none: the robot is then held."""

    def wants(self, tick: int, chunks: Sequence[Chunk], delay: int) -> bool:
        """Whether to ask for a chunk now, if none is on its way; ``delay`` ticks pass until it arrives."""

    def continuation(self, tick: int, chunks: Sequence[Chunk], delay: int) -> Continuation | None:
        """Return what a chunk that is asked for now has to continue, or None if it is free."""

    def join(self, tick: int, chunks: Sequence[Chunk], new: Chunk) -> Chunk:
        """Return a chunk that arrived as it is executed from this tick on; ``chunks`` are those before."""


@dataclass(frozen=True, kw_only=True)
class Synchronous:
    """Ask, wait, execute; the robot is held while the policy computes."""

    execute: int
    keep: int = 1

    def action(self, tick: int, chunks: Sequence[Chunk]) -> np.ndarray | None:
        """Return the running chunk's action among its first ``execute``."""
        return chunks[-1].at(tick) if chunks and tick < chunks[-1].start + self.execute else None

    def wants(self, tick: int, chunks: Sequence[Chunk], delay: int) -> bool:
        """Ask once the running chunk's share is executed."""
        return self.action(tick, chunks) is None

    def continuation(self, tick: int, chunks: Sequence[Chunk], delay: int) -> None:
        """Nothing: every chunk begins anew."""

    def join(self, tick: int, chunks: Sequence[Chunk], new: Chunk) -> Chunk:
        """Return it as it is."""
        return new


@dataclass(frozen=True, kw_only=True)
class Asynchronous:
    """Ask so early that the next chunk is there once ``execute`` actions are; skip what came too late."""

    execute: int
    keep: int = 1

    def action(self, tick: int, chunks: Sequence[Chunk]) -> np.ndarray | None:
        """Return the newest chunk's action, up to its last one while the next chunk is late."""
        return chunks[-1].at(tick) if chunks else None

    def wants(self, tick: int, chunks: Sequence[Chunk], delay: int) -> bool:
        """Ask ``delay`` ticks before the running chunk's share is executed."""
        return not chunks or tick >= chunks[-1].start + max(1, self.execute - delay)

    def continuation(self, tick: int, chunks: Sequence[Chunk], delay: int) -> Continuation | None:
        """Nothing: the next chunk is predicted from its observation alone."""
        return None

    def join(self, tick: int, chunks: Sequence[Chunk], new: Chunk) -> Chunk:
        """Return it as it is."""
        return new


@dataclass(frozen=True, kw_only=True)
class RealTimeChunking(Asynchronous):
    """Like `Asynchronous`, but the next chunk is denoised around what will be executed meanwhile.

    Attributes:
        extend: actions by which the running chunk is thought to go on as it ends. Where it is nearly used
            up, nothing else would tell the first free action of the next one which way the robot moves; the
            soft mask gives these the least weight of all.
        blend: ticks in which the actions fade over, linearly, from the running chunk to the one that takes
            over. Denoising without a backward pass joins the two on average, but what is new in the later
            observation is still a step; so it is spread.
        positions: dimensions that go on with their last velocity; the others keep their last value.
        grippers: dimensions that are not blended: half-way between open and closed is neither.
    """

    extend: int = 0
    blend: int = 0
    positions: tuple[int, ...] = ()
    grippers: tuple[int, ...] = ()

    def continuation(self, tick: int, chunks: Sequence[Chunk], delay: int) -> Continuation | None:
        """Return the rest of the running chunk, extended."""
        if not chunks:
            return None
        running, passed = _finite(chunks[-1].actions), max(0, tick - chunks[-1].start)
        rest = len(running) - passed
        if rest <= 0:
            return None
        return Continuation(actions=self._extended(running, self.extend)[passed:], fixed=min(delay, rest))

    def join(self, tick: int, chunks: Sequence[Chunk], new: Chunk) -> Chunk:
        """Return the new chunk, its next ``blend`` actions mixed with those of the running one.

        Only if the robot executed the running one until now: from standing still nothing is faded over.
        """
        if not chunks or chunks[-1].at(tick - 1) is None:
            return new
        running, passed, first = _finite(chunks[-1].actions), tick - chunks[-1].start, tick - new.start
        n = min(self.blend, len(new.actions) - first)
        if n <= 0 or passed > len(running):
            return new
        old = self._extended(running, n)[passed : passed + n]
        share = (1 - np.arange(1, n + 1) / (self.blend + 1))[:, None]  # of the old one
        moving = [i for i in range(new.actions.shape[1]) if i not in self.grippers]
        actions = new.actions.copy()
        mixed = share * old + (1 - share) * actions[first : first + n]
        actions[first : first + n, moving] = mixed[:, moving]
        return replace(new, actions=actions)

    def _extended(self, running: np.ndarray, count: int) -> np.ndarray:
        """Return a chunk, and ``count`` actions that are thought to follow it."""
        further = np.repeat(running[-1:], count, axis=0)
        if len(running) > 1:
            moving = list(self.positions)
            velocity = (running[-1] - running[-2])[moving]
            further[:, moving] += np.arange(1, count + 1)[:, None] * velocity
        return np.concatenate([running, further])


def _finite(actions: np.ndarray) -> np.ndarray:
    """Return the actions before the first that is not finite; from there on none is executed."""
    return actions[: int(np.logical_and.accumulate(np.isfinite(actions).all(1)).sum())]


@dataclass(frozen=True, kw_only=True)
class TemporalEnsembling:
    """Ask every ``every`` ticks and average all predictions for a tick, weighted by exp(−decay·i).

    i counts from the oldest chunk, so a positive decay trusts older predictions more (ACT's choice).
    """

    decay: float
    every: int
    keep: int

    def action(self, tick: int, chunks: Sequence[Chunk]) -> np.ndarray | None:
        """Return the weighted mean of what the chunks say."""
        said = [a for chunk in chunks if (a := chunk.at(tick)) is not None]
        if not said:
            return None
        weights = np.exp(-self.decay * np.arange(len(said)))
        mean: np.ndarray = (weights / weights.sum()) @ np.stack(said)
        return mean

    def wants(self, tick: int, chunks: Sequence[Chunk], delay: int) -> bool:
        """Ask as often as allowed."""
        return not chunks or tick >= chunks[-1].observed + self.every

    def continuation(self, tick: int, chunks: Sequence[Chunk], delay: int) -> None:
        """Nothing: chunks are averaged, not continued."""

    def join(self, tick: int, chunks: Sequence[Chunk], new: Chunk) -> Chunk:
        """Return it as it is."""
        return new


def make_strategy(
    config: StrategyConfig,
    chunk: int,
    execute: int,
    positions: tuple[int, ...] = (),
    grippers: tuple[int, ...] = (),
) -> Strategy:
    """Build the configured strategy for a policy that predicts ``chunk`` actions.

    Args:
        config: which one, and its settings.
        chunk: actions that the policy predicts.
        execute: the policy's own number of executed actions, where the configuration gives none.
        positions: dimensions of the action that say where to be, see `RealTimeChunking`.
        grippers: those that open and close.

    Raises:
        ConfigError: if more actions shall be executed than are predicted.
    """
    if config.execute is None and config.name == "rtc":
        execute = min(execute, max(1, chunk // 2))  # beyond that, chunks would hardly overlap
    execute = config.execute or execute
    if execute > chunk:
        raise ConfigError(f"strategy.execute={execute}, but the policy predicts chunks of {chunk}")
    if config.name == "synchronous":
        return Synchronous(execute=execute)
    if config.name == "asynchronous":
        return Asynchronous(execute=execute)
    if config.name == "ensembling":
        return TemporalEnsembling(
            decay=config.decay, every=config.every, keep=math.ceil(chunk / config.every)
        )
    return RealTimeChunking(
        execute=execute, extend=config.extend, blend=config.blend, positions=positions, grippers=grippers
    )


@dataclass(frozen=True)
class Delays:
    """The ticks that recent answers took; the estimate is the longest of them (RTC, algorithm 1)."""

    recent: tuple[int, ...] = ()
    window: int = 10

    def add(self, ticks: int) -> Delays:
        """Return these with one more, the oldest forgotten."""
        return Delays((*self.recent, ticks)[-self.window :], self.window)

    @property
    def estimate(self) -> int:
        """Ticks to expect; 1 before anything was measured."""
        return max(self.recent, default=1)
