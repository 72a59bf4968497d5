"""Success and smoothness in real time: strategies × inference delays, on simulated robots.

    uv run benchmarks/realtime_delay.py --checkpoint runs/… --robot pusht --episodes 20
    uv run benchmarks/realtime_delay.py --checkpoint runs/… --robot pusht --rate 50
    uv run benchmarks/realtime_delay.py --checkpoint runs/… --robot metaworld --tasks reach-v3,push-v3

Every episode runs as `mode-control` runs it: the simulator in a process with a clock of its own, the policy
on a server in another, answers injected with a delay counted from the request. ``--lanes`` robots are
driven at once. The numbers come from the logs of the runs:

- jump: mean size of the change of command from one tick to the next, where the two come from different
  chunks, or one of them from none because the robot was held (seam), and where they come from the same
  (inside), and their ratio;
- jerk: mean size of the third difference of the commanded position.

Sizes are norms over the moving dimensions, each in per mille of the demonstrations' range. Writes a table,
a plot and, with ``--record``, a record to ``benchmarks/results/``.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() != Path(__file__).resolve().parents[1]]

import numpy as np  # noqa: E402

from mode_policy.apps.bench.record import write_record  # noqa: E402
from mode_policy.apps.cli import compose, to_plain  # noqa: E402
from mode_policy.apps.control import ControlConfig  # noqa: E402
from mode_policy.config import build  # noqa: E402
from mode_policy.deploy.client import PolicyClient  # noqa: E402
from mode_policy.evaluation.intervals import wilson  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
STRATEGIES = ("synchronous", "asynchronous", "ensembling", "rtc")


@contextmanager
def served(checkpoint: Path, folder: Path) -> Iterator[str]:
    log = folder / "server.log"
    with log.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, ROOT / "serve.py", f"checkpoint={checkpoint}", "port=0", "max_sessions=64"],
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    try:
        while "serving" not in log.read_text():
            if process.poll() is not None:
                raise SystemExit(log.read_text())
        address = log.read_text().split(" at ")[1].split(",")[0]
        yield address
    finally:
        process.terminate()
        process.wait()


def overrides(arguments: argparse.Namespace, task: str | None, address: str) -> list[str]:
    chosen = [f"server={address}", f"robot={arguments.robot}", f"episodes={arguments.episodes}"]
    chosen += [f"robot.task={task}"] if task else []
    chosen += [f"robot.rate={arguments.rate}"] if arguments.rate else []
    return [*chosen, f"seed={arguments.seed}", *arguments.override]


def drive(job: dict[str, Any]) -> dict[str, Any]:
    """Run `mode-control` once; return what its log says, per episode."""
    command = [*job["overrides"], f"strategy.name={job['strategy']}", f"delay_ms={job['delay']}"]
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-m", "mode_policy.apps.control", *command, f"log={folder}"],
            capture_output=True,
            text=True,
            cwd=folder,
        )
        if done.returncode:
            raise SystemExit(done.stderr or done.stdout)
        import pyarrow.parquet as pq

        (path,) = Path(folder).glob("*.parquet")
        table = pq.read_table(path)
    columns = {
        name: np.array(table[name].to_pylist(), float)
        for name in ("episode", "tick", "chunk", "action", "delay", "skipped")
    }
    lines = [line for line in done.stdout.splitlines() if line.startswith("episode")]
    return {**job, "columns": columns, "successes": [", success" in line for line in lines]}


def motion(
    columns: dict[str, np.ndarray], config: ControlConfig, scale: np.ndarray
) -> dict[str, list[float]]:
    """Return sizes of jumps at seams and inside chunks, and of the jerk."""
    move = [i for i in range(columns["action"].shape[1]) if i not in config.action.gripper]
    found: dict[str, list[float]] = {"seam": [], "inside": [], "jerk": []}
    for episode in np.unique(columns["episode"]):
        rows = columns["episode"] == episode
        command = 1e3 * columns["action"][rows][:, move] / scale[move]
        sent = np.isfinite(command).all(1)
        command, chunk, tick = command[sent], columns["chunk"][rows][sent], columns["tick"][rows][sent]
        if len(command) < 5:
            continue
        position = np.cumsum(command, 0) if config.action.kind == "delta" else command
        neighbours, other = np.diff(tick) == 1, chunk[1:] != chunk[:-1]  # held ticks have the chunk -1
        size = np.linalg.norm(np.diff(command, axis=0), axis=1)
        found["seam"] += size[neighbours & other].tolist()
        found["inside"] += size[neighbours & ~other & (chunk[1:] >= 0)].tolist()
        found["jerk"] += np.linalg.norm(np.diff(position, 3, axis=0), axis=1).tolist()
    return found


def summarise(runs: list[dict[str, Any]], config: ControlConfig, scale: np.ndarray) -> dict[str, Any]:
    successes = [s for run in runs for s in run["successes"]]
    sizes = [motion(run["columns"], config, scale) for run in runs]
    seam, inside, jerk = (np.array([x for s in sizes for x in s[k]]) for k in ("seam", "inside", "jerk"))
    mean = {k: float(v.mean()) if len(v) else float("nan") for k, v in (("seam", seam), ("inside", inside))}
    interval = wilson(sum(successes), len(successes))
    delays = np.concatenate([run["columns"]["delay"] for run in runs])
    return {
        "strategy": runs[0]["strategy"],
        "delay ms": runs[0]["delay"],
        "episodes": len(successes),
        "success": round(float(np.mean(successes)), 3),
        "low": round(interval.low, 3),
        "high": round(interval.high, 3),
        "seam": round(mean["seam"], 2),
        "inside": round(mean["inside"], 2),
        "seam / inside": round(mean["seam"] / mean["inside"], 2),
        "jerk": round(float(jerk.mean()), 2),
        "delay ticks": float(np.median(delays)),
        "missed ticks": int(sum(run["columns"]["skipped"].max() for run in runs)),
    }


def plot(rows: list[dict[str, Any]], title: str, path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(11, 3.4), layout="constrained")
    for strategy in dict.fromkeys(row["strategy"] for row in rows):
        mine = [row for row in rows if row["strategy"] == strategy]
        x = [row["delay ms"] for row in mine]
        error = np.abs([[r["success"] - r["low"] for r in mine], [r["high"] - r["success"] for r in mine]])
        axes[0].errorbar(x, [r["success"] for r in mine], error, marker="o", capsize=2, label=strategy)
        axes[1].plot(x, [r["seam / inside"] for r in mine], marker="o")
        axes[2].plot(x, [r["jerk"] for r in mine], marker="o")
    axes[0].set(ylabel="success, 95 % interval", ylim=(0, 1.02))
    axes[1].set(ylabel="jump at seams / inside chunks")
    axes[1].axhline(1, color="gray", linewidth=0.8)
    axes[2].set(ylabel="jerk, ‰ of the range per tick³", ylim=(0, None))
    for axis in axes:
        axis.set_xlabel("injected inference delay, ms")
    axes[0].legend(frameon=False)
    figure.suptitle(title)
    figure.savefig(path, dpi=110)


def markdown(rows: list[dict[str, Any]]) -> str:
    names = ("strategy", "delay ms", "success", "seam", "inside", "seam / inside", "jerk", "delay ticks")
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    for row in rows:
        shown = {**row, "success": f"{row['success']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"}
        lines.append("| " + " | ".join(str(shown[name]) for name in names) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--robot", default="pusht", help="a choice of conf/control/robot")
    parser.add_argument("--tasks", help="several tasks, comma-separated; the robot's own by default")
    parser.add_argument("--rate", type=float, help="play the simulation at another rate")
    parser.add_argument("--delays", default="0,50,100,200,400", help="milliseconds")
    parser.add_argument("--strategies", default=",".join(STRATEGIES))
    parser.add_argument("--episodes", type=int, default=20, help="for each task, strategy and delay")
    parser.add_argument("--seed", type=int, default=200000)
    parser.add_argument("--lanes", type=int, default=4, help="robots at once")
    parser.add_argument("--output", type=Path, default=Path("realtime_delay.png"), help="the plot")
    parser.add_argument("--record", action="store_true")
    parser.add_argument("override", nargs="*", help="key=value for mode-control, e.g. strategy.mask=linear")
    arguments = parser.parse_intermixed_args()
    tasks = arguments.tasks.split(",") if arguments.tasks else [None]
    with (
        tempfile.TemporaryDirectory() as folder,
        served(arguments.checkpoint.absolute(), Path(folder)) as address,
    ):
        with PolicyClient(address) as client:
            policy = client.metadata
        scale = np.maximum(np.subtract(policy["action_max"], policy["action_min"]), 1e-6)
        jobs = [
            {"strategy": s, "delay": float(d), "overrides": overrides(arguments, task, address)}
            for s in arguments.strategies.split(",")
            for d in arguments.delays.split(",")
            for task in tasks
        ]
        config = build(ControlConfig, to_plain(compose("control", jobs[0]["overrides"])))
        rows: list[dict[str, Any]] = []
        with ThreadPoolExecutor(arguments.lanes) as pool:
            done = pool.map(drive, jobs)
            for _ in range(len(jobs) // len(tasks)):
                rows.append(summarise([next(done) for _ in tasks], config, scale))
                print(json.dumps(rows[-1]), flush=True)
    title = f"{arguments.robot}, {arguments.rate or 'its own rate'}"
    plot(rows, title, arguments.output)
    print(markdown(rows))
    if arguments.record:
        settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(arguments).items()}
        print(write_record(f"realtime_delay_{arguments.robot}", rows, {**settings, "chunk": policy["chunk"]}))


if __name__ == "__main__":
    main()
