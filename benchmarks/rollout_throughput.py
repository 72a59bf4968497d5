"""Rollouts per second on a task of LIBERO, ours beside those of `lerobot-eval`, on the same machine.

    uv run benchmarks/rollout_throughput.py                          20 rollouts each, three rounds in turns
    uv run benchmarks/rollout_throughput.py --rollouts 4 --rounds 1 --steps 40     a quick try

Both run the same task from its published initial states, with two cameras of the same size, as many
environments at once, one process each, and a policy that stays where it is and costs nothing: what is
compared is simulators, pictures, resets and the loops around them. No rollout succeeds, so all have the same
number of steps. Ours decides every ``--execute`` steps, as a policy of action chunks does, and draws for
decisions only; LeRobot's loop is `lerobot.scripts.lerobot_eval.rollout` over the environments of its
`make_env`, which draw in every step. Each side runs in a process of its own, offline. Needs the extras
`libero` and `lerobot`. Writes a record to ``benchmarks/results/`` with ``--record``.
"""

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() != Path(__file__).resolve().parents[1]]

import numpy as np  # noqa: E402

from mode_envs import env_task, rendering_available  # noqa: E402
from mode_envs.contract import ObservationDict  # noqa: E402
from mode_envs.libero_assets import find_assets, package_folder  # noqa: E402
from mode_envs.libero_tasks import LIBERO_SUITES  # noqa: E402
from mode_envs.registration import entry  # noqa: E402
from mode_envs.rollout import EpisodeResult, EpisodeSpec, rollout  # noqa: E402
from mode_policy.apps.bench.main import count  # noqa: E402
from mode_policy.apps.bench.record import RESULTS, device, prepare_folder, write_record  # noqa: E402
from mode_policy.apps.cli import exit_codes  # noqa: E402
from mode_policy.errors import ConfigError, SimulatorError  # noqa: E402

SIDES = ("ours", "lerobot")


class Still:
    """A policy of chunks that stays where it is."""

    history = 1

    def __init__(self, chunk: int) -> None:
        self.chunk = chunk

    def act(self, observations: list[ObservationDict], _: list[str], __: list[tuple[int, int]]) -> np.ndarray:
        return np.zeros((len(observations), self.chunk, 7), np.float32)


def ours(arguments: argparse.Namespace) -> list[float]:
    """Return when each rollout ended, in seconds since the start."""
    task = env_task(arguments.task)
    task = replace(task, max_steps=arguments.steps or task.max_steps)
    ends: list[float] = []
    start = time.perf_counter()

    def ended(_: int, result: EpisodeResult) -> None:
        assert result.steps == task.max_steps
        ends.append(time.perf_counter() - start)

    rollout(
        Still(arguments.execute),
        [EpisodeSpec(task=task, seed=0, initial_state=i) for i in range(arguments.rollouts)],
        execute=arguments.execute,
        lanes=arguments.lanes,
        workers=arguments.lanes,
        options={
            "obs_mode": "both",
            "image_size": (arguments.size,) * 2,
            "cameras": ("agentview", "eye_in_hand"),
        },
        on_episode=ended,
        timeout=600.0,
    )
    return ends


def lerobot(arguments: argparse.Namespace) -> list[float]:
    """Return when each rollout ended, in seconds since the start."""
    import torch
    from lerobot.envs.configs import LiberoEnv
    from lerobot.envs.factory import make_env, make_env_pre_post_processors
    from lerobot.scripts.lerobot_eval import rollout as their_rollout

    class StillModule(torch.nn.Module):
        def reset(self) -> None:
            pass

        def select_action(self, observation: dict[str, Any]) -> torch.Tensor:
            return torch.zeros(len(observation["observation.state"]), 7)

    def unchanged(data: Any) -> Any:
        return data

    known = entry(arguments.task)
    suite = LIBERO_SUITES[known.kwargs["suite"]]
    config = LiberoEnv(
        task=suite.folder,
        task_ids=[suite.tasks.index(known.task)],
        observation_height=arguments.size,
        observation_width=arguments.size,
        episode_length=arguments.steps or known.max_steps,
    )
    ends: list[float] = []
    start = time.perf_counter()
    (env,) = make_env(config, n_envs=arguments.lanes, use_async_envs=True)[suite.folder].values()
    before, after = make_env_pre_post_processors(env_cfg=config, policy_cfg=None)
    while len(ends) < arguments.rollouts:
        seeds = list(range(len(ends), len(ends) + arguments.lanes))
        done = their_rollout(env, StillModule(), before, after, unchanged, unchanged, seeds=seeds)["done"]
        assert done.shape == (arguments.lanes, config.episode_length)
        ends += [time.perf_counter() - start] * arguments.lanes
    env.close()
    return ends


def run(side: str, command: list[str], lanes: int, home: Path) -> dict[str, float]:
    """Run a side in a process of its own; return its rates in rollouts per second.

    ``with_start`` counts everything, ``steady`` begins when the first rollout of each lane has ended.

    Raises:
        SystemExit: with what it printed, if it failed.
    """
    # LeRobot's environments find LIBERO's files through these two, instead of asking and downloading.
    paths = {"HOME": str(home), "LIBERO_CONFIG_PATH": str(home / ".libero")}
    environment = {**os.environ, "MUJOCO_GL": rendering_available()[1], "HF_HUB_OFFLINE": "1"}
    if side == "lerobot":
        environment |= paths
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, __file__, "--side", side, *command],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.perf_counter() - started
    answers = [line for line in done.stdout.splitlines() if line.startswith("ends ")]
    if done.returncode or not answers:
        raise SystemExit(f"{side} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    ends = json.loads(answers[-1].removeprefix("ends "))
    return {
        "with_start": len(ends) / seconds,
        "steady": (len(ends) - lanes) / (ends[-1] - ends[lanes - 1]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task", default="pick_up_the_butter_and_place_it_in_the_basket")
    parser.add_argument("--rollouts", type=count, default=20, help="a multiple of the lanes")
    parser.add_argument("--lanes", type=count, default=os.cpu_count(), help="environments at once")
    parser.add_argument("--size", type=count, default=128, help="of the images")
    parser.add_argument("--steps", type=count, help="of a rollout; the benchmark's horizon by default")
    parser.add_argument("--execute", type=count, default=10, help="actions of a chunk")
    parser.add_argument("--rounds", type=count, default=3)
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.rollouts % arguments.lanes or arguments.rollouts <= arguments.lanes:
        parser.error(f"--rollouts must be a multiple of the {arguments.lanes} lanes, and more than one")
    if arguments.side is not None:
        print("ends " + json.dumps({"ours": ours, "lerobot": lerobot}[arguments.side](arguments)))
        return
    with exit_codes():
        check(arguments)
    about = device()
    command = sys.argv[1:]
    rates: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory() as folder:
        home = prepare(Path(folder))
        for _ in range(arguments.rounds):
            for side in SIDES:
                rates[side].append(run(side, command, arguments.lanes, home))
                print(side, {k: f"{v:.3f} rollouts/s" for k, v in rates[side][-1].items()}, flush=True)
    row: dict[str, Any] = {"task": arguments.task}
    for kind in ("with_start", "steady"):
        medians = {side: statistics.median(r[kind] for r in rates[side]) for side in SIDES}
        row |= {f"{side}_{kind}_per_s": round(x, 4) for side, x in medians.items()}
        row[f"{kind}_ratio"] = round(medians["ours"] / medians["lerobot"], 2)
    print(row)
    if arguments.record:
        config = vars(arguments) | {"lerobot": metadata.version("lerobot"), "rates": rates}
        print(write_record("rollout_throughput", [row], config, about=about))


def check(arguments: argparse.Namespace) -> None:
    """Raise before anything is measured if something is missing.

    Raises:
        ConfigError: if the task is none of LIBERO's, LeRobot is missing, or a record cannot be written.
        SimulatorError: if LIBERO is missing, or nothing can draw.
    """
    if entry(arguments.task).kwargs.get("suite") not in LIBERO_SUITES:
        raise ConfigError(
            f"--task {arguments.task} is none of LIBERO's; `mode-doctor` knows what is installed"
        )
    if importlib.util.find_spec("lerobot") is None:
        raise ConfigError("the other side is LeRobot, which is not installed; run: uv sync --extra lerobot")
    package_folder()
    find_assets()
    available, reason = rendering_available()
    if not available:
        raise SimulatorError(reason)
    if arguments.record:
        prepare_folder(RESULTS)


def prepare(home: Path) -> Path:
    """Lay out a home folder in which LIBERO finds its files."""
    (home / ".libero").mkdir()
    (home / ".cache" / "libero").mkdir(parents=True)
    (home / ".cache" / "libero" / "assets").symlink_to(find_assets())
    package = package_folder()
    folders = {
        "benchmark_root": package,
        "bddl_files": package / "bddl_files",
        "init_states": package / "init_files",
        "datasets": home / "datasets",
        "assets": find_assets(),
    }
    text = "".join(f"{name}: {path}\n" for name, path in folders.items())
    (home / ".libero" / "config.yaml").write_text(text)
    return home


if __name__ == "__main__":
    main()
