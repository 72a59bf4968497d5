"""MoDE beside LeRobot's own policies: the same data, machine, minutes and evaluation, at comparable size.

    uv run --with 'diffusers>=0.38,<0.40' benchmarks/lerobot_side_by_side.py --minutes 20
    uv run --with 'diffusers>=0.38,<0.40' benchmarks/lerobot_side_by_side.py --task push-v3 --source
    datasets/store/….zarr --work runs/side_by_side_push

Trains MoDE by our loop and by ``lerobot-train``, and LeRobot's Diffusion, ACT and Multi-task DiT by
``lerobot-train``, one after another. All see the same state vectors, execute 8 of 16 actions, and are then
evaluated by LeRobot's own evaluation in the same environments from the same seeds. Of each is measured:
samples per second in training, success (or best coverage) with 95 % intervals, error of the actions on
held-out demonstrations, time of a chunk (of all methods in turns).

``lerobot-train`` ends after a number of steps, so a short run first measures how many fit into the minutes;
our loop is treated alike. On a machine that does other things too, ``--clock processor`` counts the minutes
of the processor that training got. Each stage keeps its result in ``--work``: what was interrupted goes on
where it stopped. Writes ``table.md`` and ``plot.png`` there after each method, with ``--docs`` also a page of
the documentation when all are done, and a record to ``benchmarks/results/`` with ``--record``.
"""

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() != ROOT]

from _side_by_side_methods import CHUNK, EXECUTE, METHODS, NAMES  # noqa: E402
from _side_by_side_report import write_report  # noqa: E402

from mode_policy.errors import ModePolicyError  # noqa: E402
from mode_policy.files import write_json  # noqa: E402


class Comparison:
    """One comparison in its folder.

    Args:
        arguments: of the command line.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.work: Path = arguments.work.absolute()
        # Programs run in `work`, so that no path of this machine is in their commands and checkpoints.
        self.data = Path("data")
        self.clip = arguments.clip or "clip"
        # A single task needs no instruction.
        self.language = "minilm-l6-v2" if arguments.task in ("metaworld_mt10", "metaworld_mt50") else "null"

    def stage(self, name: str, run: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """Return a stage's result: of the file that it left, or by running it."""
        path = self.work / f"{name}.json"
        if path.exists():
            found: dict[str, Any] = json.loads(path.read_text())
            return found
        print(f"{datetime.now():%H:%M:%S} {name}", flush=True)
        result = dict(run())
        write_json(path, result)
        print(
            f"         {json.dumps({k: v for k, v in result.items() if not isinstance(v, list)})}", flush=True
        )
        return result

    def measure(self, what: str, *values: Any) -> Any:
        """Call a function of ``_side_by_side`` in a process of its own, and return what it returns."""
        code = (
            "import json, sys; sys.path.insert(0, sys.argv[1]); import "
            "_side_by_side as s\nr = getattr(s, sys.argv[2])(*json.loads(sys.argv[3]))\n"
            "print('\\nresult ' + json.dumps(r))"
        )
        plain = [_plain(v) for v in values]
        said = self.call(
            [sys.executable, "-P", "-c", code, str(Path(__file__).parent), what, json.dumps(plain)]
        )
        return json.loads(next(line for line in said.splitlines()[::-1] if line.startswith("result "))[7:])

    def start(self, command: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
        """Start a program whose words go to a file."""
        offline = {} if self.arguments.hub else {"HF_HUB_OFFLINE": "1"}
        caches = {"HF_LEROBOT_HOME": str(self.work / "home"), "HF_DATASETS_CACHE": str(self.work / "cache")}
        with log.open("wb") as said:
            return subprocess.Popen(
                command,
                env={**os.environ, **offline, **caches, "TQDM_DISABLE": "1"},
                cwd=self.work,
                stdout=said,
                stderr=subprocess.STDOUT,
            )

    def call(self, command: Sequence[str]) -> str:
        """Run a program; return what it said.

        Raises:
            ModePolicyError: if it fails, with the end of what it said.
        """
        log = self.work / "last.log"
        return _finished(self.start(command, log), command, log)

    def train_clocked(
        self, command: Sequence[str], log: Path, every: int, records: Callable[[str], int]
    ) -> dict[str, float]:
        """Run a program that trains; return the rate between its first and its last record.

        Args:
            command: of the program.
            log: what it says.
            every: steps of a record.
            records: how many there are, given what the program has said.
        """
        process = self.start(command, log)
        seen: list[tuple[int, float, float]] = []
        while process.poll() is None:
            number = records(log.read_text(errors="replace"))
            if number > (seen[-1][0] if seen else 0):
                seen.append((number, time.monotonic(), _processor_seconds(process.pid)))
            time.sleep(0.2)
        _finished(process, command, log)
        if len(seen) < 2:
            raise ModePolicyError(f"{log} has too few records for a rate; raise --probe-steps")
        (first, wall, used), (last, wall_end, used_end) = seen[0], seen[-1]
        count = every * (last - first)
        clocks = {"wall": wall_end - wall, "processor": used_end - used}
        rate = count / clocks[self.arguments.clock]
        return {
            "steps_per_second": rate,
            "samples_per_second": rate * self.arguments.batch_size,
            "share_of_core": clocks["processor"] / clocks["wall"],
        }

    def prepare(self) -> dict[str, int]:
        """Write the data sets, and their training part as a store of ours."""
        shutil.rmtree(self.work / self.data, ignore_errors=True)
        a = self.arguments
        counts: dict[str, int] = self.measure(
            "write_datasets", a.task, a.source.absolute(), self.data, 0.05, a.demonstrations
        )
        store = [str(self.data / name) for name in ("train", "train.zarr")]
        self.call([sys.executable, "-P", "-c", _MAIN.format("mode_policy.apps.data", ["convert", *store])])
        if a.clip is None and not (self.work / self.clip).exists():
            self.measure("write_clip", Path(self.clip))
        return counts

    def train(self, method: str) -> dict[str, Any]:
        """Train one policy for the minutes that all get."""
        train = self.train_ours if method == "mode_ours" else self.train_lerobot
        rate = self.stage(f"{method}/rate", lambda: train(method, self.arguments.probe_steps, "probe"))
        steps = max(40, round(rate["steps_per_second"] * 60 * self.arguments.minutes))
        return train(method, steps, "run")

    def train_lerobot(self, method: str, steps: int, name: str) -> dict[str, Any]:
        """Run ``lerobot-train`` for a number of steps."""
        folder = Path(method) / name
        shutil.rmtree(self.work / folder, ignore_errors=True)
        every = max(1, steps // 20)
        flags = [*METHODS[method], f"n_action_steps={EXECUTE}", "push_to_hub=false", *self.extra(method)]
        if method == "mode_lerobot":
            flags.append(f"language={self.language}")
        if method == "multi_task_dit":
            flags += [f"text_encoder_name={self.clip}", f"vision_encoder_name={self.clip}"]
        command = [
            *(sys.executable, "-P", "-m", "lerobot.scripts.lerobot_train"),
            *(f"--policy.{flag}" for flag in flags),
            *("--dataset.repo_id=local/train", f"--dataset.root={self.data / 'train'}"),
            *(f"--output_dir={folder}", f"--batch_size={self.arguments.batch_size}", f"--steps={steps}"),
            *(f"--num_workers={self.arguments.workers}", f"--log_freq={every}", "--save_freq=0"),
            *("--env_eval_freq=0", f"--seed={self.arguments.seed}"),
        ]
        log = self.work / f"{method}_{name}.log"
        rate = self.train_clocked(command, log, every, lambda said: len(_RECORD.findall(said)))
        return self.trained(steps, rate, shlex.join(["lerobot-train", *command[4:]]), folder, name)

    def train_ours(self, method: str, steps: int, name: str) -> dict[str, Any]:
        """Run ``mode-train`` on the same data for a number of steps, without its own evaluation."""
        folder = Path(method) / name
        shutil.rmtree(self.work / folder, ignore_errors=True)
        a, every = self.arguments, max(1, steps // 20)
        flags = [
            # Which task it is matters to the evaluation alone, which LeRobot's does.
            *("task=metaworld_mt10", "dataset.source=path", f"dataset.path={self.data / 'train.zarr'}"),
            *("dataset.state_keys=[observation.state]", "dataset.validation_fraction=0"),
            *(f"policy.chunk={CHUNK}", f"policy.execute={EXECUTE}", "policy.history=2"),
            *("policy.state_hidden=[256,256]", "policy.state_tokens=128"),
            f"policy.language={self.language}",
            *("policy.denoiser.dim=128", "policy.denoiser.num_layers=4", "policy.denoiser.num_heads=4"),
            *("trainer.minutes=null", f"trainer.steps={steps}", f"trainer.batch_size={a.batch_size}"),
            *("trainer.learning_rate=1e-3", f"trainer.seed={a.seed}", f"trainer.log_every={every}"),
            *("evaluation.episodes=0", f"run_dir={folder}", *self.extra(method)),
        ]
        code = _MAIN.format("mode_policy.apps.train", flags).replace("main(sys.argv[1:])", "main()")
        metrics = self.work / folder / "metrics.jsonl"
        rate = self.train_clocked(
            [sys.executable, "-P", "-c", code],
            self.work / f"{method}_{name}.log",
            every,
            lambda _: metrics.read_text().count('"loss"') if metrics.exists() else 0,
        )
        if name == "run":
            self.convert(folder / "checkpoints" / "last", folder / "lerobot")
        return self.trained(steps, rate, shlex.join(["mode-train", *flags]), folder, name)

    def trained(
        self, steps: int, rate: dict[str, float], command: str, folder: Path, name: str
    ) -> dict[str, Any]:
        """Return what is kept of a training; a probe leaves nothing else."""
        if name == "probe":
            shutil.rmtree(self.work / folder)
        minutes = steps / rate["steps_per_second"] / 60
        return {"steps": steps, **rate, "minutes": minutes, "command": command}

    def convert(self, checkpoint: Path, folder: Path) -> None:
        code = _MAIN.format("lerobot_policy_mode.command", ["to-lerobot", str(checkpoint), str(folder)])
        self.call([sys.executable, "-P", "-c", code])

    def extra(self, method: str) -> list[str]:
        """Settings of the command line for one method."""
        return [text.split(":", 1)[1] for text in self.arguments.set if text.split(":", 1)[0] == method]

    def policy(self, method: str) -> Path:
        run = Path(method) / "run"
        return run / "lerobot" if method == "mode_ours" else run / "checkpoints/last/pretrained_model"

    def row(self, method: str) -> dict[str, Any]:
        """Do all stages of one method."""
        a, folder = self.arguments, self.policy(method)
        trained = self.stage(f"{method}/train", lambda: self.train(method))
        rolled = self.stage(
            f"{method}/evaluation",
            lambda: self.measure("evaluate", folder, self.tasks(), a.episodes, a.lanes, a.seed + 100_000),
        )
        figures = self.stage(
            f"{method}/figures",
            lambda: self.measure("figures", folder, self.data / "held_out", EXECUTE, a.windows),
        )
        return {"method": NAMES[method], **trained, **rolled, **figures}

    def report(self, rows: Mapping[str, Mapping[str, Any]], config: dict[str, Any]) -> None:
        """Time the methods that are done in turns, and write table and plot; documentation when all are."""
        a = self.arguments
        folders = [self.policy(method) for method in rows]
        times = self.measure("latencies", folders, self.tasks()[0], a.rounds)
        complete = [{**row, **timed} for row, timed in zip(rows.values(), times, strict=True)]
        done = len(rows) == len(a.methods)
        write_report(complete, config, self.work, a.docs if done else None, a.record if done else None)

    def tasks(self) -> list[str]:
        from mode_envs.suites import SUITES, suite

        a = self.arguments
        return [task.task.name for task in suite(a.task)] if a.task in SUITES else [a.task]

    def settings(self) -> dict[str, Any]:
        """What must be the same for a folder to be continued."""
        left_out = ("work", "docs", "record", "methods", "hub")
        plain = {k: v for k, v in vars(self.arguments).items() if k not in left_out}
        return json.loads(json.dumps(plain, default=str)) | {"methods": METHODS}


_MAIN = "import sys; sys.argv[1:] = {1}; from {0} import main; main(sys.argv[1:])"
_RECORD = re.compile(r"step:\S+ smpl:")


def _plain(value: Any) -> Any:
    """Paths as text, as JSON has it."""
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value


def _finished(process: subprocess.Popen[bytes], command: Sequence[str], log: Path) -> str:
    try:
        process.wait()
    finally:
        process.kill()
    said = log.read_text(errors="replace")
    if process.returncode:
        raise ModePolicyError(f"{shlex.join(command)[:300]} … failed:\n{said[-3000:]}")
    return said


def _processor_seconds(pid: int) -> float:
    """Return the processor time of a child that has not been waited for (proc(5), utime and stime)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task", default="pusht", help="pusht, a task of Meta-World, or metaworld_mt10")
    parser.add_argument("--source", type=Path, help="demonstrations; default: Push-T's in MODE_DATA_DIR")
    parser.add_argument("--minutes", type=float, default=10.0, help="of training, for each method")
    parser.add_argument(
        "--clock",
        choices=("wall", "processor"),
        default="wall",
        help="what the minutes are of; processor: of one core, with OMP_NUM_THREADS=1 and --workers 0",
    )
    parser.add_argument("--episodes", type=int, default=100, help="rollouts of each task")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--workers", type=int, default=0, help="of LeRobot's loader; ours needs none")
    parser.add_argument("--lanes", type=int, default=10, help="environments evaluated together")
    parser.add_argument(
        "--windows", type=int, default=512, help="held-out windows whose actions are compared"
    )
    parser.add_argument("--rounds", type=int, default=20, help="of the latency")
    parser.add_argument("--probe-steps", type=int, default=500, help="of lerobot-train, to know its speed")
    parser.add_argument("--demonstrations", type=int, help="use only so many")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--clip", help="text encoder of Multi-task DiT; default: a small random one")
    parser.add_argument("--hub", action="store_true", help="allow downloads, e.g. of --clip")
    parser.add_argument("--set", action="append", default=[], metavar="METHOD:KEY=VALUE")
    parser.add_argument("--work", type=Path, default=Path("runs/side_by_side"))
    parser.add_argument("--docs", type=Path, help="folder of the documentation")
    parser.add_argument("--record", nargs="?", type=Path, const=ROOT / "benchmarks" / "results")
    arguments = parser.parse_args()
    if arguments.source is None:
        arguments.source = (
            Path(os.environ.get("MODE_DATA_DIR", "datasets/store")) / "pusht_cchi_v7_replay.zarr"
        )
    if not arguments.source.exists():
        raise SystemExit(f"there is no {arguments.source}; give --source, or set MODE_DATA_DIR")
    comparison = Comparison(arguments)
    comparison.work.mkdir(parents=True, exist_ok=True)
    for method in arguments.methods:
        (comparison.work / method).mkdir(exist_ok=True)
    settings, kept = comparison.settings(), comparison.work / "settings.json"
    if kept.exists() and json.loads(kept.read_text()) != settings:
        raise SystemExit(f"{comparison.work} holds a comparison with other settings; give another --work")
    write_json(kept, settings)
    failed = []
    try:
        data = comparison.stage("data", comparison.prepare)
        rows: dict[str, dict[str, Any]] = {}
        for method in arguments.methods:
            try:
                rows[method] = comparison.row(method)
            except ModePolicyError as error:  # the others do not wait for it
                failed.append(method)
                print(f"error: {error}", flush=True)
                continue
            config = settings | {"source": arguments.source.name, "data": data}
            comparison.report(rows, config)
    except ModePolicyError as error:
        raise SystemExit(f"error: {error}") from None
    if failed:
        raise SystemExit(f"{', '.join(failed)} failed; the same command tries again")


if __name__ == "__main__":
    main()
