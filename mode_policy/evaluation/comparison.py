"""Two evaluations start by start: is one policy better, and by how much?

Policies that start from the same states are compared pair by pair, which removes that some starts are harder
than others. A start counts once, however often it was rolled out: repeats share it and are not independent.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mode_policy.evaluation.intervals import Interval
from mode_policy.evaluation.records import EpisodeRecord, ResultsError
from mode_policy.evaluation.results import OVERALL, Evaluation

Start = tuple[str, str, int]
"""Task, kind of start and its number."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A policy against another one, on one task or on all.

    Attributes:
        name: Of the task, or ``"overall"``.
        starts: Number of starts that both have.
        rollouts: Of each policy, from these starts.
        first, second: Success rate of each.
        only_first, only_second: Pairs of rollouts that only one of them solved.
        difference: ``second - first``.
        interval: 95 % bootstrap interval of the difference; resamples starts, each task's for itself.
        p_value: Of the hypothesis that both solve each start equally often (`sign_flip_test`).
    """

    name: str
    starts: int
    rollouts: int
    first: float
    second: float
    only_first: int
    only_second: int
    difference: float
    interval: Interval
    p_value: float


@dataclass(frozen=True)
class _Pairs:
    """Outcomes of the rollouts that both policies made, by start and then by repeat."""

    first: dict[Start, list[bool]]
    second: dict[Start, list[bool]]

    def of_task(self, task: str) -> _Pairs:
        def part(side: Mapping[Start, list[bool]]) -> dict[Start, list[bool]]:
            return {start: outcomes for start, outcomes in side.items() if start[0] == task}

        return _Pairs(part(self.first), part(self.second))


def compare(first: Evaluation, second: Evaluation) -> tuple[list[Comparison], list[str]]:
    """Compare two evaluations by the starts that they share.

    Returns:
        A comparison for each task in the order of the first evaluation, the last one of all; and remarks on
        what is not compared.

    Raises:
        ResultsError: if they share no start.
    """
    a, b = _by_start(first.episodes), _by_start(second.episodes)
    shared = [start for start in a if start in b]
    if not shared:
        raise ResultsError(
            f"no start in common: the first has {_shown(a)}, the second {_shown(b)}; evaluate both on the "
            "same tasks with the same seed and episodes"
        )
    remarks = []
    for name, side, other in (("first", a, b), ("second", b, a)):
        if alone := [start for start in side if start not in other]:
            remarks.append(f"{len(alone)} starts of the {name} are left out, such as {_shown(alone)}")
    pairs = _Pairs({}, {})
    for start in shared:
        repeats = sorted(set(a[start]) & set(b[start]))
        if len(repeats) < max(len(a[start]), len(b[start])):
            remarks.append("repeats that only one of them has are left out")
        pairs.first[start] = [a[start][repeat] for repeat in repeats]
        pairs.second[start] = [b[start][repeat] for repeat in repeats]
    tasks = dict.fromkeys(start[0] for start in shared)
    results = [_compared(task, pairs.of_task(task)) for task in tasks]
    return [*results, _compared(OVERALL, pairs)], list(dict.fromkeys(remarks))


def sign_flip_test(differences: Sequence[int]) -> float:
    """Return the two-sided p-value of a paired randomisation test, exactly.

    Under the hypothesis that two policies are equal, the difference of their successes on a start is as
    likely negative as positive; the p-value is the share of all sign patterns whose sum is at least as far
    from 0. If every start was rolled out once, this is McNemar's exact test (Psychometrika 12, 1947): a
    binomial test on the pairs that differ.

    Args:
        differences: Of each start, successes of one minus successes of the other.
    """
    sizes = [abs(int(d)) for d in differences if d]
    # How many of the 2^n patterns give each sum, from -total to total: one convolution a start.
    counts, total = {0: 1}, 0
    for size in sizes:
        total += size
        grown: dict[int, int] = {}
        for value, count in counts.items():
            for signed in (value + size, value - size):
                grown[signed] = grown.get(signed, 0) + count
        counts = grown
    observed = abs(sum(int(d) for d in differences))
    return sum(count for value, count in counts.items() if abs(value) >= observed) / 2 ** len(sizes)


def paired_bootstrap(
    differences: Mapping[str, Sequence[float]],
    seed: int = 0,
    confidence: float = 0.95,
    resamples: int = 10000,
) -> Interval:
    """Return the percentile bootstrap interval of a mean difference; the same seed gives the same one.

    Args:
        differences: Task → difference of each start; starts are drawn anew within each task.
    """
    generator = np.random.default_rng(seed)
    sums, count = np.zeros(resamples), 0
    for values in differences.values():
        sample = np.asarray(values, np.float64)
        sums += sample[generator.integers(sample.size, size=(resamples, sample.size))].sum(axis=1)
        count += sample.size
    tail = (1 - confidence) / 2
    low, high = np.quantile(sums / count, [tail, 1 - tail])
    return Interval(float(low), float(high))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for their number, so that the chance of any false claim stays bounded.

    Source: Holm, "A simple sequentially rejective multiple test procedure", Scandinavian J. of Statistics 6
    (1979).
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def differing_settings(first: Evaluation, second: Evaluation, names: Iterable[str]) -> list[str]:
    """Return how two evaluations were made differently, of some settings."""
    pairs = ((name, first.settings.get(name), second.settings.get(name)) for name in names)
    return [f"{name}: {a} and {b}" for name, a, b in pairs if a != b]


def _compared(name: str, pairs: _Pairs) -> Comparison:
    first = np.concatenate([np.asarray(x) for x in pairs.first.values()]).astype(int)
    second = np.concatenate([np.asarray(x) for x in pairs.second.values()]).astype(int)
    successes = [sum(pairs.second[start]) - sum(pairs.first[start]) for start in pairs.first]
    rates: dict[str, list[float]] = {}
    for start, difference in zip(pairs.first, successes, strict=True):
        rates.setdefault(start[0], []).append(difference / len(pairs.first[start]))
    return Comparison(
        name=name,
        starts=len(pairs.first),
        rollouts=len(first),
        first=float(first.mean()),
        second=float(second.mean()),
        only_first=int((first > second).sum()),
        only_second=int((second > first).sum()),
        difference=float(second.mean() - first.mean()),
        interval=paired_bootstrap(rates),
        p_value=sign_flip_test(successes),
    )


def _by_start(episodes: Iterable[EpisodeRecord]) -> dict[Start, dict[int, bool]]:
    found: dict[Start, dict[int, bool]] = {}
    for episode in episodes:
        repeats = found.setdefault((episode.task, *episode.start), {})
        if episode.repeat in repeats:
            raise ResultsError(f"{episode.task!r}, {episode.label} appears twice, with several seeds")
        repeats[episode.repeat] = episode.success
    return found


def _shown(starts: Iterable[Start]) -> str:
    task, kind, number = next(iter(starts), ("nothing", "seed", 0))
    return f"{task}, {kind} {number}"
