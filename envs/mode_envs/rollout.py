"""Many episodes at once, with one batched inference for all of them.

``lanes`` environments advance in lockstep. In each tick the policy is asked once, for every lane that waits
for a decision; each lane then executes its share of the answer while lanes whose episode has ended reset to
the next one. Who is in which batch therefore follows from the episodes and the number of lanes alone, and
results are the same, bit for bit, with any number of worker processes, even if some of them die on the way.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from mode_envs.contract import ObservationDict
from mode_envs.fleet import LaneWork, simulators
from mode_envs.lanes import Advance, Begin, Reply
from mode_envs.suites import EnvTask
from mode_envs.worker import Notify
from mode_policy.errors import ConfigError, SimulatorError


class RolloutPolicy(Protocol):
    """What a rollout asks for decisions."""

    @property
    def history(self) -> int:
        """Number H of latest observations that a decision is based on."""

    def act(
        self,
        observations: list[ObservationDict],
        instructions: list[str],
        noise_seeds: list[tuple[int, int]],
    ) -> np.ndarray:
        """Decide for N episodes.

        Args:
            observations: N mappings of feature key → ``(H, ...)``, oldest first; before an episode's H-th
                observation, its first one is repeated.
            instructions: N texts.
            noise_seeds: N pairs: a hash of what names the episode (`noise_seed`), and the number of the
                decision within it. Seeding noise with them keeps an episode independent of its neighbours.

        Returns:
            Float32 ``(N, chunk, A)``, raw units.
        """


@dataclass(frozen=True, kw_only=True)
class EpisodeSpec:
    """An episode to run.

    Attributes:
        task: The task.
        seed: Seed of its reset.
        initial_state: Number of the published initial state that it starts from; None where the seed decides.
        repeat: Tells apart episodes with the same start: each draws other noise for the policy.
    """

    task: EnvTask
    seed: int
    initial_state: int | None = None
    repeat: int = 0


@dataclass(frozen=True, kw_only=True)
class EpisodeResult:
    """An episode that has been run. Two results are equal if the same happened in the simulation.

    Attributes:
        task: Name of the task.
        seed, initial_state, repeat: As in `EpisodeSpec`.
        success: Whether it was solved.
        steps: Control steps executed.
        return_: Sum of rewards.
        metrics: Best value of each metric of the environment, e.g. ``coverage`` of Push-T.
        seconds: Wall-clock time from its beginning to its end, shared with the other lanes.
        restarts: How often it was restored after the death of its worker process.
        snapshots: Float64 ``(F, S)`` if they were asked for: the first and last moment and every ``film``-th
            between.
    """

    task: str
    seed: int
    initial_state: int | None
    repeat: int
    success: bool
    steps: int
    return_: float
    metrics: dict[str, float]
    seconds: float = field(compare=False)
    restarts: int = field(compare=False)
    snapshots: np.ndarray | None = field(compare=False, repr=False)


def rollout(
    policy: RolloutPolicy,
    episodes: Sequence[EpisodeSpec],
    *,
    execute: int,
    lanes: int = 16,
    workers: int | None = None,
    film: int = 0,
    on_episode: Callable[[int, EpisodeResult], None] | None = None,
    options: Mapping[str, Any] | None = None,
    max_restarts: int = 3,
    timeout: float = 120.0,
    notify: Notify = lambda _: None,
) -> list[EpisodeResult]:
    """Run episodes with a policy.

    Args:
        policy: What decides.
        episodes: What to run, in this order.
        execute: Actions of each chunk that are executed before the next decision.
        lanes: Environments in flight at once, which is the largest batch. Results may depend on it as far as
            the policy's arithmetic depends on the size of its batch, and on nothing below.
        workers: Processes that the lanes are spread over; 0 runs them in this one, None takes one per core.
        film: Steps from one snapshot to the next, of which videos can be made (`mode_envs.drawing`); 0 for
            none.
        on_episode: Called with index and result as soon as an episode ends.
        options: Arguments of the environments, e.g. ``{"obs_mode": "both"}``.
        max_restarts: Deaths of worker processes that one episode may live through.
        timeout: Seconds within which a process must answer, or it counts as dead; it has longer for its first
            answer, and where it begins several episodes.
        notify: Told in a sentence that the simulators take long to begin.

    Returns:
        One result per episode, in the order of ``episodes``.

    Raises:
        ConfigError: if a number is out of range.
        SimulatorError: if an environment raises, its process keeps dying, or the policy's actions do not
            fit it.
    """
    if min(execute, lanes) < 1 or (workers is not None and workers < 0):
        raise ConfigError(f"execute {execute}, lanes {lanes}, workers {workers}: all must be positive")
    crew = [_Lane(number) for number in range(min(lanes, len(episodes)))]
    workers = min(len(crew), (os.cpu_count() or 1) if workers is None else workers)
    queue = iter(enumerate(episodes))
    results: dict[int, EpisodeResult] = {}
    with simulators(workers, max_restarts, timeout, notify) as simulate:
        while True:
            for lane in crew:
                if lane.work is None and (upcoming := next(queue, None)) is not None:
                    index, spec = upcoming
                    begin = Begin(
                        lane=lane.number,
                        env_id=spec.task.env_id,
                        max_steps=spec.task.max_steps,
                        seed=spec.seed,
                        reset={} if spec.initial_state is None else {"init_state_id": spec.initial_state},
                        history=policy.history,
                        options=options or {},
                        film=film,
                    )
                    lane.start(index, spec, begin)
            _decide(policy, crew, execute)
            busy = [lane for lane in crew if lane.work is not None]
            if not busy:
                return [results[index] for index in range(len(episodes))]
            replies = simulate([lane.work for lane in busy if lane.work is not None])
            for lane, reply in zip(busy, replies, strict=True):
                result = lane.take(reply)
                if result is not None:
                    results[lane.index] = result
                    if on_episode is not None:
                        on_episode(lane.index, result)


def noise_seed(spec: EpisodeSpec) -> int:
    """Return a 63-bit hash of what names an episode: equal seeds of two tasks draw different noise."""
    name = f"{spec.task.task.name}:{spec.seed}"
    if spec.initial_state is not None or spec.repeat:
        name += f":{spec.initial_state}:{spec.repeat}"
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


class _Lane:
    """The caller's side of a lane."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.work: LaneWork | None = None  # of the running episode
        self.observation: ObservationDict | None = None  # that waits for a decision

    def start(self, index: int, spec: EpisodeSpec, begin: Begin) -> None:
        self.index, self.spec, self.work = index, spec, LaneWork(begin)
        self.noise_seed = noise_seed(spec)
        self._since = time.perf_counter()

    def take(self, reply: Reply) -> EpisodeResult | None:
        """Note what happened in this tick; return the result if the episode has ended."""
        assert self.work is not None
        self.work.confirm()
        self.observation = reply.observation
        if reply.outcome is None:
            return None
        work, self.work = self.work, None
        return EpisodeResult(
            task=self.spec.task.task.name,
            seed=self.spec.seed,
            initial_state=self.spec.initial_state,
            repeat=self.spec.repeat,
            success=reply.outcome.success,
            steps=reply.outcome.steps,
            return_=reply.outcome.return_,
            metrics=reply.outcome.metrics,
            seconds=time.perf_counter() - self._since,
            restarts=work.restarts,
            snapshots=reply.outcome.snapshots,
        )


def _decide(policy: RolloutPolicy, lanes: Sequence[_Lane], execute: int) -> None:
    """Ask the policy once for all waiting lanes, and make its actions their next commands."""
    waiting = [
        (lane, lane.work, lane.observation) for lane in lanes if lane.work and lane.observation is not None
    ]
    if not waiting:
        return
    chunks = np.asarray(
        policy.act(
            [observation for _, _, observation in waiting],
            [lane.spec.task.task.instruction for lane, _, _ in waiting],
            [(lane.noise_seed, len(work.executed)) for lane, work, _ in waiting],
        ),
        dtype=np.float32,
    )
    if chunks.ndim != 3 or len(chunks) != len(waiting) or chunks.shape[1] < execute:
        raise SimulatorError(
            f"the policy returned actions of shape {chunks.shape}; "
            f"expected ({len(waiting)}, at least {execute}, A)"
        )
    for (lane, work, _), chunk in zip(waiting, chunks[:, :execute], strict=True):
        if not np.isfinite(chunk).all():
            raise SimulatorError(f"the policy returned a non-finite action for {work.begin.env_id}: {chunk}")
        work.command = Advance(lane=lane.number, actions=np.ascontiguousarray(chunk))
