"""``mode-compare``: is one policy better than another? A paired test over the same starts.

::

    mode-compare runs/libero_object/a runs/libero_object/b
    mode-compare runs/a/evaluation_libero_goal runs/b/evaluation_libero_goal runs/c/evaluation_libero_goal

Each RUN is a run's folder, an evaluation's folder or an ``evaluation.json``. Rollouts are paired by task,
start (the benchmark's initial state, or the seed) and repeat. Of two runs, each task is compared; of more,
each with the first, and p-values are adjusted for their number (Holm).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.markup import escape
from rich.table import Column, Table

from mode_policy.apps.cli import console, exit_codes
from mode_policy.evaluation import Evaluation, ResultsError, wilson
from mode_policy.evaluation.comparison import Comparison, compare, differing_settings, holm
from mode_policy.evaluation.shards import FILE

#: Settings that make a comparison one of more than the policies.
NOTED = ("weights", "execute", "sampler", "denoising_steps", "noise_levels", "protocol", "versions")


def main(argv: Sequence[str] | None = None) -> None:
    """Run ``mode-compare``."""
    parser = argparse.ArgumentParser(
        prog="mode-compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="two or more")
    arguments = parser.parse_args(argv)
    with exit_codes():
        if len(arguments.runs) < 2:
            raise ResultsError("give two runs or more, to compare the others with the first")
        paths = [find_results(run) for run in arguments.runs]
        evaluations = [Evaluation.read(path) for path in paths]
        names = short_names(paths)
        compared = [compare(evaluations[0], other) for other in evaluations[1:]]
        if len(paths) == 2:
            console.print(tasks_table(compared[0][0], names))
        else:
            console.print(runs_table([results for results, _ in compared], names))
        for name, other, (_, remarks) in zip(names[1:], evaluations[1:], compared, strict=True):
            notes = [*remarks, *differing_settings(evaluations[0], other, NOTED)]
            for note in notes:
                console.print(f"note       {name}: {note}")
        overall = [results[-1] for results, _ in compared]
        for name, result, p_value in zip(names[1:], overall, _adjusted(overall), strict=True):
            console.print(verdict(result, p_value, names[0], name))


def find_results(run: Path) -> Path:
    """Return the results that a path means.

    Raises:
        ResultsError: if there are none, or several.
    """
    if run.is_file():
        return run
    if (run / FILE).is_file():
        return run / FILE
    found = sorted(run.glob(f"evaluation*/{FILE}"))
    if len(found) == 1:
        return found[0]
    if found:
        listed = ", ".join(str(path.parent) for path in found)
        raise ResultsError(f"{run} has several evaluations; name one of {listed}")
    raise ResultsError(f"{run} has no {FILE}; give the folder of a run that was evaluated")


def short_names(paths: Sequence[Path]) -> list[str]:
    """Return names for the runs: what tells their folders apart."""
    parts = [path.absolute().parent.parts for path in paths]
    common = 0
    while len({part[common : common + 1] for part in parts}) == 1 and parts[0][common:]:
        common += 1
    return ["/".join(part[common:]) or part[-1] for part in parts]


def tasks_table(results: Sequence[Comparison], names: Sequence[str]) -> Table:
    """Lay out the comparison of two runs, a row a task."""
    first, second = map(escape, names)
    caption = f"difference: {second} minus {first}, 95 % interval; solved by one alone: {first} / {second}"
    table = Table(Column("task", overflow="fold", min_width=9), caption=caption, caption_justify="left")
    for column in (first, second):
        table.add_column(column, justify="right", overflow="fold")
    for column in ("difference", "alone", "p", "starts"):
        table.add_column(column, justify="right", no_wrap=True)  # long names give way
    for result in results:
        if result is results[-1]:
            table.add_section()
        low, high = result.interval
        table.add_row(
            escape(result.name),
            f"{result.first:.2f}",
            f"{result.second:.2f}",
            f"{result.difference:+.2f} [{low:+.2f}, {high:+.2f}]",
            f"{result.only_first} / {result.only_second}",
            f"{result.p_value:.2g}",
            str(result.starts),
            style="bold" if result is results[-1] else None,
        )
    return table


def runs_table(compared: Sequence[Sequence[Comparison]], names: Sequence[str]) -> Table:
    """Lay out several runs, each compared with the first, a row a run."""
    overall = [results[-1] for results in compared]
    caption = f"differences from {escape(names[0])}, adjusted p-values"
    table = Table(Column("run", overflow="fold"), caption=caption, caption_justify="left")
    for column in ("success", "difference", "p", "starts"):
        table.add_column(column, justify="right")
    base = overall[0]
    table.add_row(escape(names[0]), _rate(base.first, base.rollouts), "", "", str(base.starts))
    for name, result, p_value in zip(names[1:], overall, _adjusted(overall), strict=True):
        low, high = result.interval
        table.add_row(
            escape(name),
            _rate(result.second, result.rollouts),
            f"{result.difference:+.2f} [{low:+.2f}, {high:+.2f}]",
            f"{p_value:.2g}",
            str(result.starts),
        )
    return table


def verdict(result: Comparison, p_value: float, first: str, second: str) -> str:
    """Say in a sentence what a comparison shows."""
    low, high = result.interval
    said = f"{result.difference:+.2f} [{low:+.2f}, {high:+.2f}], p = {p_value:.3g}, {result.starts} starts"
    if p_value < 0.05:
        better = second if result.difference > 0 else first
        return f"{second} against {first}: {said}: {better} is better"
    return f"{second} against {first}: {said}: no difference shown"


def _adjusted(overall: Sequence[Comparison]) -> list[float]:
    return holm([result.p_value for result in overall])


def _rate(rate: float, rollouts: int) -> str:
    low, high = wilson(round(rate * rollouts), rollouts)
    return f"{rate:.2f} [{low:.2f}, {high:.2f}]"
