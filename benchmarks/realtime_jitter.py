"""Jitter of the control loop: 100 Hz with inference in another process.

    uv run benchmarks/realtime_jitter.py               60 seconds on this machine as it is
    uv run benchmarks/realtime_jitter.py --load 2      beside two processes that compute
    uv run benchmarks/realtime_jitter.py --niceness 0  inference at the loop's own priority, not below it
    uv run benchmarks/realtime_jitter.py --priority 50 with real-time priority, where the system grants it

A tick is missed if its command is not sent within its period, or if the loop had to leave it out. For
each tick it is kept whether Python's garbage collector ran, whether the loop's thread met a page fault
(memory that had to be allocated) and whether the system took the processor away from it (an involuntary
switch). Ticks that began more than 2 ms late are counted by these causes; those without any were woken
late. Without ``--checkpoint`` the policy has random weights and the default's size. Writes a record to
``benchmarks/results/`` with ``--record``.
"""

import argparse
import contextlib
import gc
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() != Path(__file__).resolve().parents[1]]

import numpy as np  # noqa: E402

from mode_policy.apps.bench.record import write_record  # noqa: E402
from mode_policy.apps.cli import compose, to_plain  # noqa: E402
from mode_policy.apps.evaluate import find_checkpoint  # noqa: E402
from mode_policy.checkpoint import save_checkpoint  # noqa: E402
from mode_policy.config import PolicyConfig, build  # noqa: E402
from mode_policy.deploy.config import ActionConfig, LateConfig, LoopConfig, SafetyConfig  # noqa: E402
from mode_policy.deploy.controller import Controller, Summary  # noqa: E402
from mode_policy.deploy.guard import ObservationGuard  # noqa: E402
from mode_policy.deploy.inference import Inference  # noqa: E402
from mode_policy.deploy.inference_worker import ProcessEndpoint  # noqa: E402
from mode_policy.deploy.robots import RobotObservation  # noqa: E402
from mode_policy.deploy.safety import SafetyFilter  # noqa: E402
from mode_policy.deploy.strategies import RealTimeChunking  # noqa: E402
from mode_policy.deploy.telemetry import TICKS, Telemetry  # noqa: E402
from mode_policy.normalization import compute_statistics  # noqa: E402
from mode_policy.policy import MoDEPolicy  # noqa: E402
from mode_policy.types import Feature, feature_kind  # noqa: E402

LATE_MS = 2.0
COUNTED = ("collections", "major page faults", "minor page faults", "involuntary switches")


class StillRobot:
    """Costs nothing, so that what is measured is the loop; counts what happens to its thread meanwhile.

    Attributes:
        counts: ``(n, 4)``, of each observation the `COUNTED` until then.
    """

    def __init__(self, shapes: dict[str, tuple[int, ...]], rate: float, ticks: int) -> None:
        self.rate = rate
        self.counts = np.zeros((ticks + 2, len(COUNTED)), np.int64)
        self.observed = 0
        self.collections = 0
        self._arrays = {key: np.zeros(shape, np.float32) for key, shape in shapes.items()}

    def collected(self, phase: str, info: dict) -> None:
        self.collections += phase == "start"

    def observe(self) -> RobotObservation:
        used = resource.getrusage(resource.RUSAGE_THREAD)
        row = self.counts[self.observed]
        row[0], row[1], row[2], row[3] = self.collections, used.ru_majflt, used.ru_minflt, used.ru_nivcsw
        self.observed += 1
        return RobotObservation(arrays=self._arrays, time=time.monotonic())

    def act(self, action: np.ndarray) -> None:
        pass

    def stop(self) -> None:
        pass


def drive(
    checkpoint: Path, rate: float, seconds: float, priority: int | None, niceness: int
) -> tuple[Summary, np.ndarray, dict]:
    with Inference(ProcessEndpoint(find_checkpoint(checkpoint), niceness=niceness)) as inference:
        policy = inference.wait_until_ready(120)
        features = {k: Feature.from_json(f) for k, f in policy["features"].items()}
        shapes = {k: f.shape for k, f in features.items() if feature_kind(k) != "action"}
        dim, safety = features["action"].shape[0], SafetyConfig(velocity=1e3, acceleration=1e5, jerk=1e7)
        ticks = min(round(rate * seconds), TICKS - 1)
        robot = StillRobot(shapes, rate, ticks)
        telemetry = Telemetry.create(
            rate=rate, actions=[str(i) for i in range(dim)], chunk=policy["chunk"], shared=False
        )
        limits = {"low": policy["action_min"], "high": policy["action_max"]}
        controller = Controller(
            robot,
            inference,
            RealTimeChunking(execute=policy["execute"]),
            SafetyFilter(ActionConfig(), safety, LateConfig(), dim=dim, rate=rate, **limits),
            ObservationGuard(shapes, safety),
            rate=rate,
            history=policy["history"],
            prompt=(policy["instructions"] or [None])[0],
            loop=LoopConfig(priority=priority, wait=0.0),
            telemetry=telemetry,
        )
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        gc.callbacks.append(robot.collected)
        summary = controller.run(ticks)
        gc.callbacks.remove(robot.collected)
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        rows = telemetry.since(0)[0]
        return summary, rows, causes(robot, rows) | {"memory growth MB": round((after - before) / 1024, 2)}


def causes(robot: StillRobot, rows: np.ndarray) -> dict[str, int]:
    """Count what happened during the ticks, and what happened to those that began late."""
    # Of tick k: between the observation of the one before and its own. The first observation precedes tick 0.
    during = np.diff(robot.counts[: robot.observed], axis=0)[: len(rows)]
    late = 1e3 * (rows["started"] - rows["due"]) > LATE_MS
    found = {name: int(column.sum()) for name, column in zip(COUNTED, during.T, strict=True)}
    found[f"began > {LATE_MS:g} ms late"] = int(late.sum())
    found |= {
        f"… with {name}": int((late & (c > 0)).sum()) for name, c in zip(COUNTED, during.T, strict=True)
    }
    found["… without any"] = int((late & ~(during > 0).any(1)).sum())
    return found


def random_policy(folder: Path) -> Path:
    """Save a policy of the default's size with random weights; return its checkpoint."""
    data = to_plain(compose("train", []))["policy"]
    features = {"observation.state": Feature(shape=(39,)), "action": Feature(shape=(4,))}
    rng = np.random.default_rng(0)
    samples = {key: rng.normal(size=(50, *f.shape)).astype(np.float32) for key, f in features.items()}
    policy = MoDEPolicy(
        build(PolicyConfig, {**data, "language": None}), features, compute_statistics(samples)
    )
    save_checkpoint(folder / "random", policy, policy.state_dict(), about={})
    return folder / "random"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path, help="or a run; random weights by default")
    parser.add_argument("--rate", type=float, default=100.0)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--load", type=int, default=0, help="processes that compute beside it")
    parser.add_argument("--priority", type=int, help="real-time priority of the loop")
    parser.add_argument("--niceness", type=int, default=5, help="of the process of inference")
    parser.add_argument("--record", action="store_true")
    arguments = parser.parse_args()
    with contextlib.ExitStack() as stack:
        for _ in range(arguments.load):
            burner = subprocess.Popen([sys.executable, "-c", "while True: sum(range(10000))"])
            stack.callback(burner.kill)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        checkpoint = arguments.checkpoint or random_policy(folder)
        summary, rows, during = drive(
            checkpoint, arguments.rate, arguments.seconds, arguments.priority, arguments.niceness
        )
    late = 1e3 * (rows["started"] - rows["due"])
    missed = int((rows["finished"] > rows["due"] + 1 / arguments.rate).sum()) + summary.skipped
    steps = np.diff(rows["started"]) * 1e3 - 1e3 / arguments.rate
    row = {
        "load": arguments.load,
        "niceness": arguments.niceness,
        "ticks": summary.ticks + summary.skipped,
        "missed": missed,
        "missed %": round(100 * missed / max(1, summary.ticks + summary.skipped), 4),
        **{f"late ms {q} %": round(float(np.percentile(late, q)), 3) for q in (50, 99, 99.9)},
        "late ms max": round(float(late.max()), 3),
        "jitter ms 99 %": round(float(np.percentile(np.abs(steps), 99)), 3),
        "busy ms 50 %": round(float(np.median(rows["finished"] - rows["started"])) * 1e3, 3),
        "chunks": summary.chunks,
        "chunk ms 50 %": round(float(np.median(rows["inference"][rows["inference"] > 0])) * 1e3, 1),
        **during,
    }
    for name, value in row.items():
        print(f"{name:20} {value}")
    if arguments.record:
        settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(arguments).items()}
        name = f"realtime_jitter_{arguments.rate:g}hz_load{arguments.load}"
        name += f"_niceness{arguments.niceness}" if arguments.niceness != 5 else ""
        name += f"_priority{arguments.priority}" if arguments.priority else ""
        print(write_record(name, [row], settings))


if __name__ == "__main__":
    main()
