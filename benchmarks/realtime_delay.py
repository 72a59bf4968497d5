"""Success and smoothness with slow inference: strategies × injected delays, on simulated robots.

    uv run benchmarks/realtime_delay.py --robot pusht
    uv run benchmarks/realtime_delay.py --robot pusht --rate 50
    uv run benchmarks/realtime_delay.py --robot metaworld
    uv run benchmarks/realtime_delay.py --robot pusht --rate 50 --clock real --delays 0,half,200

With the virtual clock, the default, time stands still while anything computes: every delay is exactly what it
is said to be, and the same command gives the same numbers on any load. ``--lanes`` episodes run at once and
share inference, cells of the table share the cores. With ``--clock real`` each episode runs as `mode-control`
runs it, the simulator and the policy's server in processes of their own: a check of the former.

An answer comes max(delay, the policy's own time) after its request. "half" is the delay with which a chunk is
half used up when it comes. The numbers are those of the loop's telemetry:

- jump: size of the change of command from one tick to the next, at seams (the two come from different chunks,
  or the robot was held between) and inside chunks, and the ratio of their means;
- jerk: mean size of the third difference of the commanded position;
- held: share of ticks without an action of the policy, after the first chunk.

Sizes are norms over the moving dimensions, each in per mille of the demonstrations' range. What is done is
kept under ``runs/realtime_delay/``, cell by cell: a run that was interrupted goes on where it was, and more
episodes can be added (both may change the last digits: episodes are computed in batches). ``--record`` writes
a record to ``benchmarks/results/``, from which ``benchmarks/realtime_report.py`` makes tables and plots. A
record of some strategies (``--strategies rtc``) or delays is named after them, and stands beside that of all.
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from pathlib import Path
from typing import Any

sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() != Path(__file__).resolve().parents[1]]

import numpy as np  # noqa: E402
from _realtime import configuration, load, on_a_virtual_clock, on_the_system_clock, served  # noqa: E402

from mode_envs import suite  # noqa: E402
from mode_envs.realtime import RealtimeRobot  # noqa: E402
from mode_policy.apps.bench.record import RESULTS, write_record  # noqa: E402
from mode_policy.apps.evaluate import find_checkpoint  # noqa: E402
from mode_policy.apps.robots import simulation  # noqa: E402
from mode_policy.deploy.policy_service import load_service  # noqa: E402
from mode_policy.evaluation.intervals import wilson  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
STRATEGIES = "synchronous,asynchronous,ensembling,rtc"
DELAYS = "0,50,100,200,400,half"
#: What is driven: the training whose newest run is taken, its tasks, and episodes for each of them.
DEFAULTS: dict[str, tuple[str, list[str], int]] = {
    "pusht": ("pusht", ["pusht"], 20),
    "metaworld": ("metaworld_mt10", [task.task.name for task in suite("metaworld_mt10")], 5),
}


def overrides(arguments: argparse.Namespace, task: str, strategy: str, delay: float) -> list[str]:
    """Return the command line of `mode-control` for one cell."""
    chosen = [f"robot={arguments.robot}", f"robot.task={task}"]
    chosen += [f"robot.rate={arguments.rate}"] if arguments.rate else []
    chosen += [f"strategy.name={strategy}", f"delay_ms={delay}", f"seed={arguments.seed}"]
    return [*chosen, *arguments.override]


def record_name(name: str, strategies: str, delays: str) -> str:
    """Return the name of a record, with what it holds of strategies and delays where that is not all."""
    parts = [given for given, every in ((strategies, STRATEGIES), (delays, DELAYS)) if given != every]
    return "_".join([name, *(part.replace(",", "-") for part in parts)])


def digest(checkpoint: Path) -> str:
    return hashlib.sha256((checkpoint / "weights.safetensors").read_bytes()).hexdigest()[:16]


def summarise(episodes: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the row of a cell."""

    def mean(what: str) -> float:
        count = sum(e[f"{what} n"] for e in episodes)
        return sum(e[f"{what} sum"] for e in episodes) / count if count else float("nan")

    def rounded(value: float, digits: int) -> float | None:
        return round(value, digits) if np.isfinite(value) else None

    successes = sum(e["success"] for e in episodes)
    interval = wilson(successes, len(episodes))
    return {
        "episodes": len(episodes),
        "success": round(successes / len(episodes), 3),
        "low": round(interval.low, 3),
        "high": round(interval.high, 3),
        "coverage": rounded(float(np.mean(np.array([e.get("coverage") for e in episodes], float))), 3),
        "lost": dict(Counter(e["key"].split()[2] for e in episodes if not e["success"])),
        "delay ticks": float(np.median([e["delay ticks"] for e in episodes])),
        "seam": rounded(mean("seam"), 2),
        "inside": rounded(mean("inside"), 2),
        "seam / inside": rounded(mean("seam") / mean("inside"), 2),
        "jerk": rounded(mean("jerk"), 2),
        "held": round(mean("held"), 3),
        "ticks": round(float(np.mean([e["ticks"] for e in episodes])), 1),
        "missed": sum(e["missed"] for e in episodes),
    }


def units(
    arguments: argparse.Namespace, delays: dict[str, float], done: dict[str, Any]
) -> Iterator[tuple[dict[str, Any], list[tuple[str, int]]]]:
    """Yield what is left to do of each cell: tasks, and numbers of episodes."""
    for strategy in arguments.strategies.split(","):
        for delay in delays:
            cell = {"strategy": strategy, "delay": delay}
            every = [(task, n) for n in range(arguments.episodes) for task in arguments.tasks]
            left = [(task, n) for task, n in every if key({**cell, "task": task}, n) not in done]
            if arguments.clock == "virtual":
                if left:
                    yield cell, left
                continue
            for task in dict.fromkeys(task for task, _ in left):  # it begins with the first episode
                yield cell, [(task, n) for n in range(arguments.episodes)]


def key(unit: dict[str, Any], number: int) -> str:
    return f"{unit['strategy']} {unit['delay']} {unit['task']} {number}"


def read(path: Path, about: dict[str, Any]) -> dict[str, Any]:
    """Return the finished episodes of runs with the same settings."""
    lines = path.read_text().splitlines() if path.exists() else []
    found = [json.loads(line) for line in lines if line.endswith("}")]  # the last may be half-written
    return {line["key"]: line for line in found if line["about"] == about}


def main() -> None:
    arguments = parse()
    training, tasks, episodes = DEFAULTS[arguments.robot]
    runs = sorted((ROOT / "runs" / training).glob("*/checkpoints"), key=lambda p: p.stat().st_mtime)
    if arguments.checkpoint is None and not runs:
        print(f"nothing measured: there is no run of {training}; uv run train.py task={training}")
        return
    checkpoint = find_checkpoint((arguments.checkpoint or runs[-1].parent).absolute())
    arguments.tasks = arguments.tasks.split(",") if arguments.tasks else tasks
    arguments.episodes = arguments.episodes or episodes
    config = configuration(overrides(arguments, arguments.tasks[0], "rtc", 0))
    with RealtimeRobot(simulation(config.robot, config.action)) as robot:
        rate = robot.rate
    policy = load_service(checkpoint).metadata
    half = 1e3 * (policy["chunk"] // 2 - 0.5) / rate
    delays = {name: half if name == "half" else float(name) for name in arguments.delays.split(",")}
    name = f"realtime_delay_{arguments.robot}_{rate:g}hz_{arguments.clock}"
    about = {
        "checkpoint": digest(checkpoint),
        "robot": arguments.robot,
        "rate": rate,
        "clock": arguments.clock,
        "inference_ms": arguments.inference_ms if arguments.clock == "virtual" else None,
        "seed": arguments.seed,
        "override": arguments.override,
        "chunk": policy["chunk"],
        "execute": config.strategy.execute or policy["execute"],
    }
    path = arguments.state / f"{name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    done = read(path, about)
    began = time.monotonic()

    def commands(cell: dict[str, Any], left: list[tuple[str, int]]) -> list[tuple[list[str], int]]:
        delay = delays[cell["delay"]]
        return [(overrides(arguments, task, cell["strategy"], delay), n) for task, n in left]

    with ExitStack() as stack:
        pool: Executor
        call: Callable[..., list[dict[str, Any]]]
        given: tuple[Any, ...]
        if arguments.clock == "virtual":
            context = multiprocessing.get_context("spawn")
            pool = ProcessPoolExecutor(arguments.processes, context, load, (checkpoint,))
            call, given = on_a_virtual_clock, (arguments.inference_ms / 1e3, arguments.lanes)
        else:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            pool = ThreadPoolExecutor(arguments.lanes)
            call, given = on_the_system_clock, (stack.enter_context(served(checkpoint, folder)),)
        stack.enter_context(pool)
        waiting = {
            pool.submit(call, commands(cell, left), *given): (cell, left)
            for cell, left in units(arguments, delays, done)
        }
        total = sum(len(left) for _, left in waiting.values())
        ended = 0
        with path.open("a") as log:
            for future in as_completed(waiting):
                cell, left = waiting[future]
                for (task, number), result in zip(left, future.result(), strict=True):
                    line = {"key": key({**cell, "task": task}, number), "about": about, **result}
                    log.write(json.dumps(line) + "\n")
                    done[line["key"]] = line
                log.flush()
                ended += len(left)
                print(f"{ended}/{total} episodes, {time.monotonic() - began:.0f} s", file=sys.stderr)
    rows = []
    for strategy in arguments.strategies.split(","):
        for delay, ms in delays.items():
            cell = {"strategy": strategy, "delay": delay}
            found = [
                done[key(cell | {"task": task}, n)]
                for task in arguments.tasks
                for n in range(arguments.episodes)
            ]
            rows.append({**cell, "delay ms": round(ms, 1), **summarise(found)})
            print(json.dumps(rows[-1]))
    if arguments.record:
        about |= {"episodes": arguments.episodes, "tasks": arguments.tasks, "lanes": arguments.lanes}
        recorded = record_name(name, arguments.strategies, arguments.delays)
        print(write_record(recorded, rows, about, RESULTS))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--robot", default="pusht", choices=DEFAULTS)
    parser.add_argument("--checkpoint", type=Path, help="the newest run of its training by default")
    parser.add_argument("--tasks", help="comma-separated; Push-T, or all of MT10 by default")
    parser.add_argument("--rate", type=float, help="play the simulation at another rate")
    parser.add_argument("--delays", default=DELAYS, help="milliseconds, or half a chunk")
    parser.add_argument("--strategies", default=STRATEGIES)
    parser.add_argument("--episodes", type=int, help="of each task; 20 of Push-T, 5 of each of Meta-World's")
    parser.add_argument("--seed", type=int, default=200000)
    parser.add_argument("--clock", default="virtual", choices=("virtual", "real"))
    parser.add_argument("--inference-ms", type=float, default=10.0, help="virtual: the policy's own time")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="virtual: at once")
    parser.add_argument("--lanes", type=int, help="robots at once: 20 on the virtual clock, 4 in real time")
    parser.add_argument("--state", type=Path, default=ROOT / "runs" / "realtime_delay")
    parser.add_argument("--record", action="store_true")
    parser.add_argument("override", nargs="*", help="key=value for mode-control, e.g. strategy.execute=5")
    arguments = parser.parse_intermixed_args()
    arguments.lanes = arguments.lanes or (20 if arguments.clock == "virtual" else 4)
    return arguments


if __name__ == "__main__":
    main()
