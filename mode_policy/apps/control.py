"""``mode-control``: a robot, simulated or real, driven by a policy in real time."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mode_policy.apps.cli import console, program
from mode_policy.apps.control_loop import ControlConfig, features_of, fit
from mode_policy.apps.evaluate import find_checkpoint
from mode_policy.apps.robots import Driven, driven
from mode_policy.apps.serve import choose_device
from mode_policy.config import build
from mode_policy.deploy.client import PolicyClient, RefusedError
from mode_policy.deploy.endpoints import DelayedEndpoint, Endpoint, RemoteEndpoint
from mode_policy.deploy.inference import Inference
from mode_policy.deploy.inference_worker import ProcessEndpoint
from mode_policy.deploy.quiet import beside
from mode_policy.deploy.server.access import read_token
from mode_policy.deploy.summary import Summary
from mode_policy.deploy.telemetry_log import LogProcess
from mode_policy.deploy.watchdog import Watchdog
from mode_policy.errors import ConfigError, InferenceError
from mode_policy.types import ACTION

#: Seconds that a server or a child process gets until it is there.
PATIENCE = 120.0


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
        ConfigError: if there is no checkpoint, or token or certificate cannot be read.
    """
    made: Endpoint
    if config.server is not None:
        token = read_token(config.token_file)
        try:
            client = PolicyClient(
                config.server, token=token.decode() if token else None, certificate=config.certificate
            )
        except (RefusedError, OSError) as error:
            raise ConfigError(str(error)) from error
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
            engine=config.engine,
            precision=config.precision,
            threads=config.threads,
            niceness=config.niceness,
        )
    return DelayedEndpoint(made, config.delay_ms / 1e3) if config.delay_ms else made


def run(config: ControlConfig) -> list[Summary]:
    """Drive all episodes; return what each came to."""
    with Inference(endpoint(config)) as inference:
        console.print(f"policy     {config.server or config.checkpoint}")
        policy = inference.wait_until_ready(PATIENCE, lambda why: console.print(f"waiting    {why}"))
        names = features_of(policy)[ACTION].names
        with driven(config.robot, config.action, names, config.seed) as robot:
            return _episodes(config, inference, robot, policy)


def _episodes(
    config: ControlConfig, inference: Inference, driven: Driven, policy: Mapping[str, Any]
) -> list[Summary]:
    driven.begin(0)
    fitted = fit(config, policy, driven.robot, driven.instruction)
    telemetry = fitted.telemetry()
    console.print(
        f"loop       {fitted.rate:g} Hz, {config.strategy.name}; watch it with: uv run mode-monitor"
    )
    log = None
    summaries: list[Summary] = []
    try:
        if config.log is not None:
            name = time.strftime("%Y-%m-%d_%H-%M-%S.parquet")
            log = LogProcess(telemetry, Path(config.log).expanduser() / name)
        for number in range(config.episodes):
            with _watchdog(config, driven) as watchdog, beside(_say) as say:
                driven.begin(number)
                controller = fitted.controller(
                    driven.robot, inference, telemetry, number, watchdog=watchdog, say=say
                )
                ticks = None if config.seconds is None else round(config.seconds * fitted.rate)
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


def _say(line: str) -> None:
    console.print(f"           {line}")


def _watchdog(config: ControlConfig, driven: Driven) -> contextlib.AbstractContextManager[Watchdog | None]:
    if config.loop.watchdog is None or driven.stopper is None:
        return contextlib.nullcontext()
    return Watchdog(config.loop.watchdog, driven.stopper, driven.arguments)


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
