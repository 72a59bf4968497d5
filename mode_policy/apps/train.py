"""``mode-train`` and ``train.py``: demonstrations → policy → rollouts → report, with one command."""

from __future__ import annotations

import json
import math
import shlex
import sys
import zlib
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from mode_datasets.mixture import Mixture
from mode_policy.apps.cli import console, program, quote_path, to_plain
from mode_policy.apps.config import TrainConfig
from mode_policy.apps.dataset import (
    check_conventions,
    env_tasks,
    get_mixture,
    get_store,
    known_instructions,
    store_path,
)
from mode_policy.apps.evaluate import find_checkpoint
from mode_policy.apps.fit import check_fit, check_places
from mode_policy.apps.launch import restarted, start_processes
from mode_policy.apps.objective import objective
from mode_policy.apps.orientation import check_orientation
from mode_policy.apps.progress import bar
from mode_policy.apps.protocol import episodes_of
from mode_policy.apps.rollouts import announce
from mode_policy.apps.shared_rollouts import evaluate_together
from mode_policy.apps.training_data import TrainingData, training_data
from mode_policy.checkpoint import load_instructions, load_policy
from mode_policy.config import build, flatten
from mode_policy.encoders.vision_weights import check_initial_weights, load_initial_weights
from mode_policy.errors import CheckpointError, ConfigError, TrainingDivergedError
from mode_policy.files import held, write_text
from mode_policy.normalization import statistics_to_json
from mode_policy.policy import MoDEPolicy
from mode_policy.training.checkpoints import newest_checkpoint
from mode_policy.training.finetune import check_network, start_from
from mode_policy.training.metrics import import_trackio, import_wandb, read_metrics
from mode_policy.training.processes import Processes, step_seed
from mode_policy.training.trainer import Trainer, TrainingSummary
from mode_policy.types import ACTION, Features


@program("train")
def main(data: dict[str, Any]) -> float | None:
    """Collect or open demonstrations, train, evaluate, report; return what a sweep minimises."""
    data = data if data["resume"] is None else _resumed(data)
    config = build(TrainConfig, data)
    hydra = HydraConfig.get()
    chosen = hydra.runtime.output_dir if hydra.mode == RunMode.MULTIRUN else config.run_dir
    folder = Path(config.resume or chosen).expanduser().absolute()
    place = [] if config.resume else [quote_path(f"run_dir={folder}")]
    ended = start_processes(config.trainer, [*hydra.overrides.task, *place])
    if ended is None:
        try:
            run(config, folder, data)
        except TrainingDivergedError as error:
            if hydra.mode != RunMode.MULTIRUN:
                raise
            console.print(f"diverged   {error}")  # a sweep goes on without it
            return math.inf
    elif ended:
        raise SystemExit(ended)
    return objective(folder)


def run(config: TrainConfig, folder: Path, data: dict[str, Any]) -> None:
    """Carry out a training run in ``folder``; ``data`` is its configuration as plain data.

    Of several processes, the first collects and writes; all train, and all make their share of the rollouts.

    Raises:
        ConfigError: if the folder holds a run already and this one does not resume it.
        ModePolicyError: if another process writes to the folder, or nobody can.
    """
    processes = Processes(config.trainer)
    console.quiet = not processes.main
    folder = Path(processes.from_main(str(folder)))  # its name may hold the time, which passes
    with held(folder) if processes.main else nullcontext():
        if not _continues(config) and newest_checkpoint(folder) is not None:
            raise ConfigError(
                f"{folder} holds a run; continue it with resume={folder}, or choose another run_dir"
            )
        try:
            _run(config, folder, data, processes)
        except KeyboardInterrupt:
            if (folder / "config.yaml").exists():
                resume = shlex.quote(f"resume={folder}")
                console.print(f"interrupted; continue with: uv run train.py {resume}")
            raise


def _continues(config: TrainConfig) -> bool:
    return config.resume is not None or restarted()


def _run(config: TrainConfig, folder: Path, data: dict[str, Any], processes: Processes) -> None:
    if config.trainer.wandb is not None:
        import_wandb()
    if config.trainer.trackio is not None:
        import_trackio()
    processes.check_same(flatten({name: data[name] for name in ("policy", "trainer")}))
    tasks = env_tasks(config.task)
    console.print(f"run        {folder}")
    if config.evaluation.episodes:
        episodes_of(tasks, config.evaluation)
        check_places(tasks, config.policy.cameras)
    begins = not _continues(config) or newest_checkpoint(folder) is None
    known = None  # instructions embedded by another run, in which weights begin
    if config.init_from is not None and begins:
        source = find_checkpoint(Path(config.init_from))
        check_network(config.policy, source)
        known = load_instructions(source)
    with processes.main_first():
        # Before hours of collecting or downloading; but without a network, how to get the data is said first.
        offline = config.dataset.source == "scripted" or config.policy.vision.weights != "imagenet"
        if config.policy.cameras and offline and config.init_from is None:
            check_initial_weights(config.policy.vision)
        store = get_store(config.dataset, config.task, config.policy.language, known)
        others = get_mixture(config.dataset, config.policy.language, known)
    if config.evaluation.episodes:
        check_conventions(store, tasks)
    windows = training_data([store, *others], config, processes)
    statistics = zlib.crc32(json.dumps(statistics_to_json(store.statistics)).encode())
    processes.check_same({"dataset": f"of {len(windows.windows)} windows, statistics {statistics:08x}"})
    own = windows.windows.target if isinstance(windows.windows, Mixture) else windows.windows
    features: Features = {k: store.features[k] for k in (*own.state_keys, *own.image_keys, ACTION)}
    torch.manual_seed(step_seed(config.trainer.seed, 0))
    policy = MoDEPolicy(
        config.policy,
        features,
        store.statistics,
        known_instructions([store, *others]) if config.policy.language else None,
        store.convention,
    )
    if begins:
        with processes.main_first():  # weights may have to be downloaded
            initialise(policy, config)
    demonstrated = sorted({int(s) for s in store.episode_seeds if s >= 0})
    if config.evaluation.episodes:
        check_fit(policy, tasks, config.evaluation, demonstrated)
        if config.dataset.source != "scripted" and not _continues(config):  # those were drawn here
            with processes.main_first():
                if processes.main:
                    check_orientation(store, own.image_keys, tasks)
    summary = train(policy, config, windows, folder, data, demonstrated, processes)
    console.print(
        f"trained    {summary.steps} steps in {summary.seconds / 60:.1f} min, "
        f"{summary.samples_per_second:.0f} samples/s, loss {summary.loss:.4f}"
        + (f", validation loss {summary.validation_loss:.4f}" if summary.validation_loss is not None else "")
    )
    if not config.evaluation.episodes:
        processes.close()
        console.print(f"checkpoint {summary.checkpoint}")
        return
    evaluation = evaluate_together(
        processes,
        load_policy(summary.checkpoint, weights=config.evaluation.weights, device=policy.device),
        tasks,
        config.evaluation,
        folder,
        demonstrated=demonstrated,
        settings={"task": config.task.name, "checkpoint": str(summary.checkpoint)},
        configuration=data,
        metrics=read_metrics(folder / "metrics.jsonl"),
        training_summary=_shown(summary, store.num_episodes, policy),
    )
    processes.close()
    if evaluation is not None:
        announce(evaluation, folder, summary.checkpoint)


def initialise(policy: MoDEPolicy, config: TrainConfig) -> None:
    """Give a new run its initial weights, and say where they come from.

    Raises:
        CheckpointError: if ``init_from`` is no checkpoint, or another network's.
        ConfigError: if the image encoders' weights cannot be had.
    """
    encoder = policy.image_encoder
    if encoder is not None:
        pairs = zip(config.policy.cameras, encoder.inputs, strict=True)
        seen = ", ".join(f"{name} {camera.crop or camera.size} px" for name, camera in pairs)
        start = "" if config.init_from is not None else f", {load_initial_weights(encoder)}"
        console.print(f"cameras    {seen}: {encoder.config.network}{start}")
    if config.init_from is not None:
        checkpoint = find_checkpoint(Path(config.init_from))
        start_from(policy, checkpoint)
        console.print(f"weights    from {checkpoint}")


def train(
    policy: MoDEPolicy,
    config: TrainConfig,
    windows: TrainingData,
    folder: Path,
    data: dict[str, Any],
    demonstrated: list[int],
    processes: Processes,
) -> TrainingSummary:
    """Train (or continue) with a progress bar; ``data``, once accepted, becomes the run's ``config.yaml``."""
    parameters = sum(p.numel() for p in policy.parameters())
    about = {
        "task": asdict(config.task),
        "dataset": store_path(config.dataset, config.task),
        "demonstration_seeds": demonstrated,
        "command": shlex.join(["uv", "run", Path(sys.argv[0]).name, *sys.argv[1:]]),
    }
    progress = bar("training")
    row = progress.add_task("training", total=1.0, note="")

    def show(share: float, record: dict[str, float]) -> None:
        rate = f"{record['samples_per_second']:.0f} samples/s"
        note = f"step {record['step']}  loss {record['loss']:.4f}  {rate}"
        progress.update(row, completed=share, note=note)

    trainer = Trainer(
        policy,
        config.trainer,
        windows.batch,
        windows.validation,
        folder,
        about=about,
        progress=show,
        processes=processes,
    )
    if _continues(config) and (newest := newest_checkpoint(folder)) is not None:
        trainer.resume(newest)
    if processes.main:
        write_text(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create({**data, "resume": None})))
    console.print(
        f"policy     {parameters / 1e6:.2f} M parameters on {trainer.device}, {len(windows.windows)} "
        "windows" + _continuing(trainer)
    )
    with progress:
        return trainer.run()


def _continuing(trainer: Trainer) -> str:
    if not trainer.step:
        return ""
    now, before = trainer.processes.count, trainer.state.processes
    changed = "" if now == before else f" with {now} processes (before: {before})"
    return f", continuing at step {trainer.step}{changed}"


def _resumed(data: dict[str, Any]) -> dict[str, Any]:
    """Return the interrupted run's configuration with this command line's overrides on top."""
    folder = Path(data["resume"]).expanduser()
    saved = folder / "config.yaml"
    if not saved.is_file():
        raise CheckpointError(f"nothing to resume at {folder}: it has no config.yaml; give a run's folder")
    overrides = [o for o in HydraConfig.get().overrides.task if not o.startswith("resume=")]
    groups = [o for o in overrides if "." not in o.split("=", 1)[0]]
    if groups:
        raise ConfigError(
            f"{groups} cannot change a run that is resumed; only single values can, e.g. trainer.steps=…"
        )
    try:
        merged = DictConfig(OmegaConf.merge(OmegaConf.load(saved), OmegaConf.from_dotlist(overrides)))
    except (YAMLError, OmegaConfBaseException, OSError) as error:
        raise CheckpointError(f"cannot read {saved}, or {overrides} do not fit it: {error}") from error
    return {**to_plain(merged), "resume": str(folder)}


def _shown(summary: TrainingSummary, demonstrations: int, policy: MoDEPolicy) -> dict[str, Any]:
    """The training in a few figures, for the report."""
    return {
        "demonstrations": demonstrations,
        "parameters": f"{sum(p.numel() for p in policy.parameters()) / 1e6:.2f} M",
        "steps": summary.steps,
        "minutes": round(summary.seconds / 60, 1),
        "samples per second": round(summary.samples_per_second),
        "loss": round(summary.loss, 4),
        "validation loss": None if summary.validation_loss is None else round(summary.validation_loss, 4),
        "device": torch.cuda.get_device_name() if policy.device.type == "cuda" else "CPU",
    }
