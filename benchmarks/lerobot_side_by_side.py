"""MoDE beside LeRobot's own policies: the same data, machine, minutes and evaluation, at comparable size.

    uv run --with 'diffusers>=0.38' benchmarks/lerobot_side_by_side.py --minutes 20
    uv run --with 'diffusers>=0.38' benchmarks/lerobot_side_by_side.py --task push-v3 --source
    datasets/store/….zarr

Trains MoDE by our loop and by ``lerobot-train``, and LeRobot's Diffusion, ACT and Multi-task DiT by
``lerobot-train``, one after another. All see the same state vectors, execute 8 of 16 actions, and are then
evaluated by LeRobot's own evaluation in the same environments from the same seeds. Of each is measured:
samples per second in training, success (or best coverage) with 95 % intervals, error of the actions on
held-out demonstrations, time of a chunk.

``lerobot-train`` ends after a number of steps, so a short run first measures how many fit into the minutes.
Each stage keeps its result in ``--work``: what was interrupted goes on where it stopped. Writes ``table.md``
and ``plot.png`` there, with ``--docs`` also into the documentation, and a record to ``benchmarks/results/``
with ``--record``.
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
from collections.abc import Callable, Mapping
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
        self.data = self.work / "data"
        self.clip = arguments.clip or str(self.work / "clip")
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
            "import json, sys; from pathlib import Path; sys.path.insert(0, sys.argv[1]); import "
            "_side_by_side as s\na = [Path(v[5:]) if isinstance(v, str) and v.startswith('path:') else v for "
            "v in json.loads(sys.argv[3])]\nr = getattr(s, sys.argv[2])(*a); print('\\nresult ' + "
            "json.dumps(r))"
        )
        plain = [f"path:{v}" if isinstance(v, Path) else v for v in values]
        said = self.call(
            [sys.executable, "-P", "-c", code, str(Path(__file__).parent), what, json.dumps(plain)]
        )
        return json.loads(next(line for line in said.splitlines()[::-1] if line.startswith("result "))[7:])

    def call(self, command: list[str], log: Path | None = None) -> str:
        """Run a program; return what it said, which also goes to a file.

        Raises:
            ModePolicyError: if it fails, with the end of what it said.
        """
        offline = {} if self.arguments.hub else {"HF_HUB_OFFLINE": "1"}
        caches = {"HF_LEROBOT_HOME": str(self.work / "home"), "HF_DATASETS_CACHE": str(self.work / "cache")}
        done = subprocess.run(
            command,
            env={**os.environ, **offline, **caches, "TQDM_DISABLE": "1"},
            cwd=self.work,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        (log or self.work / "last.log").write_text(shlex.join(command) + "\n" + done.stdout)
        if done.returncode:
            raise ModePolicyError(f"{shlex.join(command)[:300]} … failed:\n{done.stdout[-3000:]}")
        return done.stdout

    def prepare(self) -> dict[str, int]:
        """Write the data sets, and their training part as a store of ours."""
        shutil.rmtree(self.data, ignore_errors=True)
        a = self.arguments
        counts: dict[str, int] = self.measure(
            "write_datasets", a.task, a.source.absolute(), self.data, 0.05, a.demonstrations
        )
        store = [str(self.data / "train"), str(self.data / "train.zarr")]
        self.call([sys.executable, "-P", "-c", _MAIN.format("mode_policy.apps.data", ["convert", *store])])
        if a.clip is None and not Path(self.clip).exists():
            self.measure("write_clip", Path(self.clip))
        return counts

    def train(self, method: str) -> dict[str, Any]:
        """Train one policy for the minutes that all get."""
        if method == "mode_ours":
            return self.train_ours()
        rate = self.stage(
            f"{method}/rate", lambda: self.train_lerobot(method, self.arguments.probe_steps, "probe")
        )
        steps = max(1, round(rate["steps_per_second"] * 60 * self.arguments.minutes))
        return self.train_lerobot(method, steps, "run")

    def train_lerobot(self, method: str, steps: int, name: str) -> dict[str, Any]:
        """Run ``lerobot-train`` for a number of steps; the rate is that between its first and last record."""
        folder = self.work / method / name
        shutil.rmtree(folder, ignore_errors=True)
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
        times = [stamp for stamp in map(_stamp, self.call(command, log).splitlines()) if stamp is not None]
        seconds = max(times[-1] - times[0], 1.0)  # records carry whole seconds
        rate = every * (len(times) - 1) / seconds
        if name == "probe":
            shutil.rmtree(folder)
        return {
            "steps": steps,
            "steps_per_second": rate,
            "samples_per_second": rate * self.arguments.batch_size,
            "minutes": steps / rate / 60,
            "command": shlex.join(["lerobot-train", *command[4:]]),
        }

    def train_ours(self) -> dict[str, Any]:
        """Run ``mode-train`` on the same data, without its own evaluation."""
        folder = self.work / "mode_ours" / "run"
        shutil.rmtree(folder, ignore_errors=True)
        a = self.arguments
        flags = [
            # Which task it is matters to the evaluation alone, which LeRobot's does.
            *("task=metaworld_mt10", "dataset.source=path", f"dataset.path={self.data / 'train.zarr'}"),
            *("dataset.state_keys=[observation.state]", "dataset.validation_fraction=0.01"),
            *(f"policy.chunk={CHUNK}", f"policy.execute={EXECUTE}", "policy.history=2"),
            *("policy.state_hidden=[256,256]", "policy.state_tokens=128"),
            f"policy.language={self.language}",
            *("policy.denoiser.dim=128", "policy.denoiser.num_layers=4", "policy.denoiser.num_heads=4"),
            *(f"trainer.minutes={a.minutes}", "trainer.steps=null", f"trainer.batch_size={a.batch_size}"),
            *("trainer.learning_rate=1e-3", f"trainer.seed={a.seed}", "evaluation.episodes=0"),
            *(f"run_dir={folder}", *self.extra("mode_ours")),
        ]
        code = _MAIN.format("mode_policy.apps.train", flags).replace("main(sys.argv[1:])", "main()")
        self.call([sys.executable, "-P", "-c", code], self.work / "mode_ours_run.log")
        last = folder / "checkpoints" / "last"
        self.convert(last, folder / "lerobot")
        about = json.loads((last / "training" / "progress.json").read_text())
        rate = about["step"] / about["seconds"]
        return {
            "steps": about["step"],
            "steps_per_second": rate,
            "samples_per_second": rate * a.batch_size,
            "minutes": about["seconds"] / 60,
            "command": shlex.join(["mode-train", *flags]),
        }

    def convert(self, checkpoint: Path, folder: Path) -> None:
        code = _MAIN.format("lerobot_policy_mode.command", ["to-lerobot", str(checkpoint), str(folder)])
        self.call([sys.executable, "-P", "-c", code])

    def extra(self, method: str) -> list[str]:
        """Settings of the command line for one method."""
        return [text.split(":", 1)[1] for text in self.arguments.set if text.split(":", 1)[0] == method]

    def policy(self, method: str) -> Path:
        run = self.work / method / "run"
        return run / "lerobot" if method == "mode_ours" else run / "checkpoints/last/pretrained_model"

    def row(self, method: str) -> dict[str, Any]:
        """Do all stages of one method."""
        a, folder = self.arguments, self.policy(method)
        trained = self.stage(f"{method}/train", lambda: self.train(method))
        tasks = self.tasks()
        rolled = self.stage(
            f"{method}/evaluation",
            lambda: self.measure("evaluate", folder, tasks, a.episodes, a.lanes, a.seed + 100_000),
        )
        figures = self.stage(
            f"{method}/figures",
            lambda: self.measure(
                "figures", folder, self.data / "held_out", tasks[0], EXECUTE, a.windows, a.rounds
            ),
        )
        return {"method": NAMES[method], **trained, **rolled, **figures}

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
_RECORD = re.compile(r"(\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d)\D.*step:\S+ smpl:")


def _stamp(line: str) -> float | None:
    """The time of a record in the log of ``lerobot-train``."""
    found = _RECORD.search(line)
    return datetime.fromisoformat(found[1]).timestamp() if found else None


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task", default="pusht", help="pusht, a task of Meta-World, or metaworld_mt10")
    parser.add_argument("--source", type=Path, help="demonstrations; default: Push-T's in MODE_DATA_DIR")
    parser.add_argument("--minutes", type=float, default=10.0, help="of training, for each method")
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
    began = time.time()
    try:
        data = comparison.stage("data", comparison.prepare)
        rows = [comparison.row(method) for method in arguments.methods]
    except ModePolicyError as error:
        raise SystemExit(f"error: {error}") from None
    config = settings | {"data": data, "seconds": round(time.time() - began)}
    write_report(rows, config, comparison.work, arguments.docs, arguments.record)


if __name__ == "__main__":
    main()
