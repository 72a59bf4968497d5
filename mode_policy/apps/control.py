"""``mode-control``: a robot, simulated or real, driven by a policy in real time."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

from mode_policy.apps.cli import console, program
from mode_policy.apps.evaluate import find_checkpoint
from mode_policy.apps.robots import Driven, RobotConfig, driven
from mode_policy.apps.serve import choose_device
from mode_policy.config import build
from mode_policy.deploy.client import PolicyClient
from mode_policy.deploy.config import ActionConfig, LateConfig, LoopConfig, SafetyConfig, StrategyConfig
from mode_policy.deploy.controller import Controller, Summary
from mode_policy.deploy.guard import ObservationGuard
from mode_policy.deploy.inference import DelayedEndpoint, Endpoint, Inference, RemoteEndpoint
from mode_policy.deploy.inference_worker import ProcessEndpoint
from mode_policy.deploy.safety import SafetyFilter
from mode_policy.deploy.server.access import read_token
from mode_policy.deploy.strategies import make_strategy
from mode_policy.deploy.telemetry import Telemetry
from mode_policy.deploy.telemetry_log import LogProcess
from mode_policy.deploy.watchdog import Watchdog
from mode_policy.errors import ConfigError, DataError, InferenceError
from mode_policy.types import ACTION, IMAGE_PREFIX, STATE, Feature, Features, feature_kind

#: Seconds that a server or a child process gets until it is there.
PATIENCE = 120.0


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class ControlConfig:
    """Everything of ``mode-control``; the keys are described in ``conf/control/control.yaml``."""

    robot: RobotConfig
    action: ActionConfig
    strategy: StrategyConfig
    late: LateConfig
    safety: SafetyConfig
    loop: LoopConfig
    server: str | None = None
    token_file: str | None = None
    certificate: str | None = None
    checkpoint: str | None = None
    weights: Literal["ema", "raw"] = "ema"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: Annotated[int, Field(ge=1)] = 1
    delay_ms: Annotated[float, Field(ge=0)] = 0.0
    prompt: str | None = None
    episodes: Annotated[int, Field(ge=1)] = 1
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 200000
    seconds: Annotated[float | None, Field(gt=0)] = None
    log: str | None = None

    @model_validator(mode="after")
    def _check(self) -> ControlConfig:
        if (self.server is None) == (self.checkpoint is None):
            raise ValueError("give either server=ws://… or checkpoint=…: where the policy is")
        return self


@program("control")
def main(data: dict[str, Any]) -> None:
    """Drive a robot."""
    config = build(ControlConfig, data)
    summaries = run(config)
    if summaries and summaries[-1].outcome == "interrupted":
        raise KeyboardInterrupt
    if summaries and summaries[-1].outcome == "inference failed":
        raise InferenceError(summaries[-1].error)


def endpoint(config: ControlConfig) -> Endpoint:
    """Return where the policy answers.

    Raises:
        ConfigError: if there is no checkpoint, or the token cannot be read.
    """
    made: Endpoint
    if config.server is not None:
        token = read_token(config.token_file)
        client = PolicyClient(
            config.server, token=token.decode() if token else None, certificate=config.certificate
        )
        made = RemoteEndpoint(client)
    else:
        assert config.checkpoint is not None
        path = Path(config.checkpoint).expanduser()
        if not path.exists():
            raise ConfigError(f"there is nothing at {path}; give a run's folder or a checkpoint's")
        made = ProcessEndpoint(
            find_checkpoint(path),
            device=choose_device(config.device),
            weights=config.weights,
            threads=config.threads,
        )
    return DelayedEndpoint(made, config.delay_ms / 1e3) if config.delay_ms else made


def run(config: ControlConfig) -> list[Summary]:
    """Drive all episodes; return what each came to."""
    where = config.server or config.checkpoint
    with Inference(endpoint(config)) as inference:
        console.print(f"policy     {where}")
        policy = inference.wait_until_ready(PATIENCE)
        features = {key: Feature.from_json(f) for key, f in policy["features"].items()}
        names = features[ACTION].names
        with driven(config.robot, config.action, names, config.seed) as robot:
            return _episodes(config, inference, robot, policy, features)


def _episodes(
    config: ControlConfig, inference: Inference, driven: Driven, policy: Any, features: Features
) -> list[Summary]:
    robot, rate = driven.robot, config.loop.rate or driven.robot.rate
    dim = features[ACTION].shape[0]
    driven.begin(0)
    arrays = robot.observe().arrays
    _compare(features, arrays)
    safety = SafetyFilter(
        config.action,
        config.safety,
        config.late,
        dim=dim,
        rate=rate,
        low=policy["action_min"],
        high=policy["action_max"],
    )
    strategy = make_strategy(config.strategy, policy["chunk"], policy["execute"])
    prompt = _prompt(config, driven, policy["instructions"])
    guard = ObservationGuard(
        {key: f.shape for key, f in features.items() if feature_kind(key) != "action"}, config.safety
    )
    cameras = {
        key.removeprefix(IMAGE_PREFIX): value.shape
        for key, value in arrays.items()
        if key.startswith(IMAGE_PREFIX)
    }
    telemetry = Telemetry.create(
        rate=rate,
        actions=features[ACTION].names or [f"action {i}" for i in range(dim)],
        states=_state_names(features),
        chunk=policy["chunk"],
        cameras=cameras,
        title=", ".join((config.robot.task or config.robot.kind, config.strategy.name, prompt or "")),
    )
    console.print(f"loop       {rate:g} Hz, {config.strategy.name}; watch it with: uv run mode-monitor")
    log = None
    if config.log is not None:
        name = time.strftime("%Y-%m-%d_%H-%M-%S.parquet")
        log = LogProcess(telemetry, Path(config.log).expanduser() / name)
    summaries: list[Summary] = []
    try:
        for number in range(config.episodes):
            with _watchdog(config, driven) as watchdog:
                driven.begin(number)
                controller = Controller(
                    robot,
                    inference,
                    strategy,
                    safety,
                    guard,
                    rate=rate,
                    history=policy["history"],
                    prompt=prompt,
                    mask=config.strategy.mask,
                    loop=config.loop,
                    stop_after=config.safety.stop_after,
                    telemetry=telemetry,
                    watchdog=watchdog,
                    seed=config.seed + number,
                    episode=number,
                    say=lambda line: console.print(f"           {line}"),
                )
                ticks = None if config.seconds is None else round(config.seconds * rate)
                summaries.append(controller.run(ticks))
            console.print(describe(number, summaries[-1]))
            if summaries[-1].outcome not in ("done", "ticks", "no action"):
                break
    finally:
        telemetry.finish()
        if log is not None:
            complete = log.close()
            console.print(f"log        {log.path}" if complete else f"log        incomplete: {log.message}")
    return summaries


def _watchdog(config: ControlConfig, driven: Driven) -> contextlib.AbstractContextManager[Watchdog | None]:
    if config.loop.watchdog is None or driven.stopper is None:
        return contextlib.nullcontext()
    return Watchdog(config.loop.watchdog, driven.stopper, driven.arguments)


def _state_names(features: Features) -> Sequence[str]:
    if STATE not in features:
        return ()
    return features[STATE].names or [str(i) for i in range(features[STATE].shape[0])]


def _prompt(config: ControlConfig, driven: Driven, known: list[str]) -> str | None:
    """The instruction: as configured, the robot's task's, or the only one that the policy knows."""
    if not known:
        return None
    prompt = config.prompt or driven.instruction or (known[0] if len(known) == 1 else None)
    if prompt is None:
        raise ConfigError(f"this policy needs an instruction: prompt=…, one of {known}")
    return prompt


def _compare(features: Features, arrays: Any) -> None:
    """Hold what the robot shows to what the policy reads, before anything moves.

    Raises:
        DataError: if a feature is absent or has another shape.
    """
    for key, feature in features.items():
        if key == ACTION:
            continue
        if key not in arrays:
            raise DataError(f"the robot gives {sorted(arrays)}, but the policy needs {key!r}")
        if arrays[key].shape != feature.shape:
            raise DataError(
                f"{key!r} has shape {arrays[key].shape} on the robot and {feature.shape} in the policy; "
                "they were made for different robots or tasks"
            )


def describe(number: int, summary: Summary) -> str:
    """Return an episode's outcome as lines of text."""
    word = summary.outcome
    if "success" in summary.info:
        word += ", success" if summary.info["success"] else ", no success"
    middle, most, worst = summary.late_ms
    lines = [
        f"episode {number:<3}{word}: {summary.ticks} ticks, {summary.skipped} missed, {summary.chunks} "
        f"chunks; ticks began late by {middle:.2f} ms (99 %: {most:.2f}, at most {worst:.2f})"
    ]
    if summary.interventions:
        found = ", ".join(f"{name} {count}" for name, count in sorted(summary.interventions.items()))
        lines.append(f"           interventions, in ticks: {found}")
    if summary.error:
        lines.append(f"           {summary.error}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
