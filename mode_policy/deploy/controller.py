"""The control loop: observe, decide, filter, act, at a fixed rate, whatever happens around it.

The loop ends for one of the reasons of `Summary.outcome`, and however it ends, the robot is told to stop.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from mode_policy.deploy.clock import Clock, MonotonicClock, Pacer, use_real_time_priority
from mode_policy.deploy.config import LoopConfig, StrategyConfig
from mode_policy.deploy.guard import ObservationGuard, Opinion, Seen
from mode_policy.deploy.inference import ChunkSource
from mode_policy.deploy.interventions import BLIND, Intervention, names
from mode_policy.deploy.quiet import deferred_signals, no_collections
from mode_policy.deploy.robots.base import RobotInterface, RobotObservation
from mode_policy.deploy.safety import FilterState, SafetyFilter
from mode_policy.deploy.strategies import Chunk, Delays, Strategy
from mode_policy.deploy.summary import Summary, lateness
from mode_policy.deploy.telemetry import Telemetry
from mode_policy.deploy.troubles import Troubles
from mode_policy.deploy.watchdog import Watchdog

STATE = "observation.state"
IMAGE_PREFIX = "observation.images."
#: Pictures a second that are copied for the monitor.
SHOWN_RATE = 10.0


class Controller:
    """Drives one robot with one policy.

    Args:
        robot: what is driven.
        inference: what answers.
        strategy: which action a tick gets.
        safety: what every command has to pass.
        guard: what every observation has to pass.
        rate: ticks per second.
        history: observations that the policy sees, H.
        prompt: the instruction, or None.
        mask: of real-time chunking.
        loop: settings of the loop.
        telemetry: where each tick is recorded.
        watchdog: told of each tick, or None.
        clock: that of robot and inference; the system's by default.
        seed: of the noise of each decision; None leaves it to the policy.
        episode: its number, for the telemetry.
        say: called with a line of text when something happens that a person should know.
    """

    def __init__(
        self,
        robot: RobotInterface,
        inference: ChunkSource,
        strategy: Strategy,
        safety: SafetyFilter,
        guard: ObservationGuard,
        *,
        rate: float,
        history: int = 1,
        prompt: str | None = None,
        mask: str = StrategyConfig().mask,
        loop: LoopConfig | None = None,
        stop_after: float | None = None,
        telemetry: Telemetry,
        watchdog: Watchdog | None = None,
        clock: Clock | None = None,
        seed: int | None = None,
        episode: int = 0,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.robot, self.inference, self.strategy = robot, inference, strategy
        self.safety, self.guard, self.rate = safety, guard, rate
        self.prompt, self.mask, self.seed, self.episode = prompt, mask, seed, episode
        self.loop, self.stop_after = loop or LoopConfig(), stop_after
        self.telemetry, self.watchdog, self.clock = telemetry, watchdog, clock or MonotonicClock()
        self._history: deque[RobotObservation] = deque(maxlen=history)
        self._chunks: deque[Chunk] = deque(maxlen=max(1, strategy.keep))
        self._filter, self._seen, self._delays = FilterState(), Seen(), Delays()
        self._counts: Counter[str] = Counter()
        self._troubles = Troubles(say, rate)
        self._moves = 0  # ticks in which an action of the policy was sent
        self._asked: tuple[int, int] = (0, 0)  # moves and fixed actions when the pending request was made
        self._arrived = (0, 0.0, 0.0)  # delay, seconds, policy's seconds of the newest chunk
        self._number = 0  # of chunks
        self._first = 0  # record of this run
        self._interrupted = False
        self._info: Mapping[str, Any] = {}

    def run(self, ticks: int | None = None) -> Summary:
        """Drive until the robot is done, ``ticks`` have passed, or something ends it; then stop the robot.

        Raises:
            RobotError: if the robot cannot be reached; after an attempt to stop it.
        """
        self.inference.discard()
        self.telemetry.rest(False)
        self._first = int(self.telemetry.control["ticks"][0])
        outcome, error = "interrupted", ""
        pacer = Pacer(0.0, self.rate)
        with deferred_signals(self._interrupt), no_collections():
            try:
                if self.loop.priority is not None:
                    use_real_time_priority(self.loop.priority)
                first = self.robot.observe()
                # Halfway between two observations of a robot with its own clock, whatever the jitter of both.
                now = self.clock.now()
                pacer.start = min(first.time, now) + 0.5 / self.rate
                behind = int(max(0.0, (now - pacer.start) * self.rate)) + 1
                pacer.start += behind / self.rate
                outcome, error = self._loop(pacer, ticks)
            finally:
                self.robot.stop()
                self.telemetry.rest(True)
        return Summary(
            outcome="interrupted" if self._interrupted else outcome,  # perhaps in the very tick that ended it
            ticks=pacer.tick - pacer.skipped,
            skipped=pacer.skipped,
            interventions=dict(self._counts),
            chunks=self._number,
            losses=self.inference.losses,
            late_ms=lateness(self.telemetry.since(self._first)[0]),
            info=self._info,
            error=error,
        )

    def _interrupt(self) -> None:
        self._interrupted = True

    def _loop(self, pacer: Pacer, ticks: int | None) -> tuple[str, str]:
        skipped = 0
        while True:
            if ticks is not None and pacer.tick >= ticks:
                return "ticks", ""
            tick, due = pacer.next(self.clock)
            started = self.clock.now()
            if self.watchdog is not None:
                self.watchdog.beat()
            if self._interrupted:
                return "interrupted", ""
            if self.telemetry.stop_requested:
                self._count(Intervention.EMERGENCY_STOP)
                nothing = RobotObservation(arrays={}, time=started)
                self._record(tick, due, started, nothing, None, None, Intervention.EMERGENCY_STOP, skipped)
                return "emergency stop", ""
            if self.inference.error is not None:
                return "inference failed", str(self.inference.error)
            if pacer.skipped - skipped > self.guard.stale_after * self.rate:
                self._forget()  # the loop was away; what it was about to do belongs to the past
                self._filter = self._filter.at_rest()
            skipped = pacer.skipped
            observation = self.robot.observe()
            self._info = observation.info
            if observation.done:
                return "done", ""
            self._tick(tick, due, started, observation, pacer.skipped)
            if self.stop_after is not None and self._filter.late > self.stop_after * self.rate:
                return "no action", self._troubles.text or "the policy gives no actions"

    def _tick(
        self, tick: int, due: float, started: float, observation: RobotObservation, skipped: int
    ) -> None:
        opinion = self.guard.check(
            self._seen, observation.arrays, observation.time, started, self._is_moving()
        )
        self._seen = opinion.seen
        self._report(tick, observation, opinion)
        self._receive(tick)
        blind = bool(opinion.interventions & BLIND)
        if blind:
            self._forget()  # the robot is held; afterwards everything begins anew
        else:
            if not self._history or observation.time > self._history[-1].time:
                self._history.append(observation)
            self._ask(tick)
        proposal = None if blind else self.strategy.action(tick, self._chunks)
        if proposal is None and not blind and self.inference.pending:
            self.inference.wait(due + self.loop.wait / self.rate)
            self._receive(tick)
            proposal = self.strategy.action(tick, self._chunks)
        reason = opinion.interventions
        if self.clock.now() - observation.time > self.guard.stale_after:  # suspended in the middle of a tick
            proposal, reason = None, reason | Intervention.OBSERVATION_STALE
        state = None if blind else observation.arrays.get(STATE)
        verdict = self.safety.step(self._filter, proposal, state, reason)
        self._filter = verdict.state
        self._moves += verdict.state.late == 0
        if verdict.action is not None:
            self.robot.act(verdict.action)
        self._count(verdict.interventions)
        self._record(
            tick, due, started, observation, proposal, verdict.action, verdict.interventions, skipped
        )

    def _ask(self, tick: int) -> None:
        """Ask for a chunk if one is due and inference is free."""
        delay = self._delays.estimate
        if not self.inference.ready or not self.strategy.wants(tick, self._chunks, delay):
            return
        seen = [o.arrays for o in self._history]
        seen = [seen[0]] * ((self._history.maxlen or 1) - len(seen)) + seen
        request: dict[str, Any] = {key: np.stack([o[key] for o in seen]) for key in self.guard.shapes}
        if self.prompt is not None:
            request["prompt"] = self.prompt
        if self.seed is not None:
            request["seed"] = [self.seed, tick]
        rest = self.strategy.continuation(tick, self._chunks, delay)
        if rest is not None:
            request["rtc"] = {"actions": rest.actions, "fixed": rest.fixed, "mask": self.mask}
        if self.inference.submit(tick, request):
            self._asked = (self._moves, 0 if rest is None else rest.fixed)

    def _receive(self, tick: int) -> None:
        """Take over a chunk that arrived."""
        answer = self.inference.poll()
        if answer is None:
            return
        moved = self._moves - self._asked[0]
        chunk = Chunk(observed=answer.tick, start=tick - moved, actions=answer.actions)
        chunk = self.strategy.join(tick, self._chunks, chunk)
        self._chunks.append(chunk)
        self._number += 1
        if not answer.first:
            self._delays = self._delays.add(tick - answer.tick)
        self._arrived = (tick - answer.tick, answer.seconds, answer.policy_seconds)
        self.telemetry.record_chunk(
            self.episode, chunk.observed, chunk.start, tick, self._asked[1], chunk.actions
        )

    def _forget(self) -> None:
        """Drop chunks, also one that is on its way, and observations: what follows does not continue them."""
        self._chunks.clear()
        self._history.clear()
        self.inference.discard()

    def _is_moving(self) -> bool:
        step = self._filter.valid if self.safety.is_delta else self._filter.step
        return (
            self._filter.late == 0
            and step is not None
            and bool(np.abs(step[self.safety.move]).max(initial=0) > 0)
        )

    def _report(self, tick: int, observation: RobotObservation, opinion: Opinion) -> None:
        """Tell of what is wrong with the robot, its observation, or inference."""
        kinds, texts = opinion.interventions, [*filter(None, [observation.trouble]), *opinion.problems]
        if self.inference.trouble:
            kinds |= Intervention.LATE
            texts.append(f"inference lost: {self.inference.trouble}")
        self._troubles.report(tick, kinds, "; ".join(texts))

    def _count(self, interventions: Intervention) -> None:
        if interventions:
            self._counts.update(names(interventions))

    def _record(
        self,
        tick: int,
        due: float,
        started: float,
        observation: RobotObservation,
        proposal: np.ndarray | None,
        action: np.ndarray | None,
        interventions: Intervention,
        skipped: int,
    ) -> None:
        newest = self._chunks[-1] if self._chunks and proposal is not None else None
        telemetry, shape = self.telemetry, (self.safety.dim,)
        state = observation.arrays.get(STATE)
        fits = state is not None and state.shape == (len(telemetry.header["states"]),)
        telemetry.record(
            (
                self.episode,
                tick,
                due,
                started,
                self.clock.now(),
                observation.time,
                newest.observed if newest else -1,
                tick - newest.start if newest else -1,
                *self._arrived,
                int(interventions),
                skipped,
                self.inference.losses,
                proposal if proposal is not None and proposal.shape == shape else np.nan,
                np.nan if action is None else action,
                state if fits else np.nan,
            )
        )
        if tick % max(1, round(self.rate / SHOWN_RATE)) == 0:
            for name, shape in telemetry.header["cameras"].items():
                picture = observation.arrays.get(IMAGE_PREFIX + name)
                if picture is not None and list(picture.shape) == shape:
                    telemetry.show(name, picture)
