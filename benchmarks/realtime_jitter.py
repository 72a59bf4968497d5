"""Jitter of the control loop: 100 Hz with inference in another process.

    uv run benchmarks/realtime_jitter.py --checkpoint runs/…           60 seconds on this machine as it is
    uv run benchmarks/realtime_jitter.py --checkpoint runs/… --load 2  beside two processes that compute

A tick is missed if its command is not sent within its period, or if the loop had to leave it out. Counts
collections of Python's garbage collector, page faults and the growth of memory during the run. Writes a
record to ``benchmarks/results/`` with ``--record``.
"""

import argparse
import contextlib
import gc
import resource
import subprocess
import sys
import time
from pathlib import Path

sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() != Path(__file__).resolve().parents[1]]

import numpy as np  # noqa: E402

from mode_policy.apps.bench.record import write_record  # noqa: E402
from mode_policy.apps.evaluate import find_checkpoint  # noqa: E402
from mode_policy.deploy.config import ActionConfig, LateConfig, LoopConfig, SafetyConfig  # noqa: E402
from mode_policy.deploy.controller import Controller, Summary  # noqa: E402
from mode_policy.deploy.guard import ObservationGuard  # noqa: E402
from mode_policy.deploy.inference import Inference  # noqa: E402
from mode_policy.deploy.inference_worker import ProcessEndpoint  # noqa: E402
from mode_policy.deploy.robots import RobotObservation  # noqa: E402
from mode_policy.deploy.safety import SafetyFilter  # noqa: E402
from mode_policy.deploy.strategies import RealTimeChunking  # noqa: E402
from mode_policy.deploy.telemetry import TICKS, Telemetry  # noqa: E402
from mode_policy.types import Feature, feature_kind  # noqa: E402


class StillRobot:
    """Costs nothing, so that what is measured is the loop."""

    def __init__(self, shapes: dict[str, tuple[int, ...]], rate: float) -> None:
        self.rate = rate
        self._arrays = {key: np.zeros(shape, np.float32) for key, shape in shapes.items()}

    def observe(self) -> RobotObservation:
        return RobotObservation(arrays=self._arrays, time=time.monotonic())

    def act(self, action: np.ndarray) -> None:
        pass

    def stop(self) -> None:
        pass


def drive(
    checkpoint: Path, rate: float, seconds: float, priority: int | None
) -> tuple[Summary, np.ndarray, dict]:
    with Inference(ProcessEndpoint(find_checkpoint(checkpoint))) as inference:
        policy = inference.wait_until_ready(120)
        features = {k: Feature.from_json(f) for k, f in policy["features"].items()}
        shapes = {k: f.shape for k, f in features.items() if feature_kind(k) != "action"}
        dim, safety = features["action"].shape[0], SafetyConfig(velocity=1e3, acceleration=1e5, jerk=1e7)
        telemetry = Telemetry.create(
            rate=rate, actions=[str(i) for i in range(dim)], chunk=policy["chunk"], shared=False
        )
        limits = {"low": policy["action_min"], "high": policy["action_max"]}
        controller = Controller(
            StillRobot(shapes, rate),
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
        collections: list[str] = []

        def counted(phase: str, info: dict) -> None:
            collections.append(phase)

        before = resource.getrusage(resource.RUSAGE_SELF)
        gc.callbacks.append(counted)
        summary = controller.run(min(round(rate * seconds), TICKS - 1))
        gc.callbacks.remove(counted)
        after = resource.getrusage(resource.RUSAGE_SELF)
        during = {
            # One collection belongs to the preparation of the loop, before its first tick.
            "collections": max(0, collections.count("start") - 1),
            "major page faults": after.ru_majflt - before.ru_majflt,
            "minor page faults": after.ru_minflt - before.ru_minflt,
            "memory growth MB": round((after.ru_maxrss - before.ru_maxrss) / 1024, 2),
        }
        return summary, telemetry.since(0)[0], during


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--rate", type=float, default=100.0)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--load", type=int, default=0, help="processes that compute beside it")
    parser.add_argument("--priority", type=int, help="real-time priority of the loop")
    parser.add_argument("--record", action="store_true")
    arguments = parser.parse_args()
    with contextlib.ExitStack() as stack:
        for _ in range(arguments.load):
            burner = subprocess.Popen([sys.executable, "-c", "while True: sum(range(10000))"])
            stack.callback(burner.kill)
        summary, rows, during = drive(
            arguments.checkpoint, arguments.rate, arguments.seconds, arguments.priority
        )
    late = 1e3 * (rows["started"] - rows["due"])
    missed = int((rows["finished"] > rows["due"] + 1 / arguments.rate).sum()) + summary.skipped
    steps = np.diff(rows["started"]) * 1e3 - 1e3 / arguments.rate
    row = {
        "load": arguments.load,
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
        print(write_record("realtime_jitter", [row], settings))


if __name__ == "__main__":
    main()
