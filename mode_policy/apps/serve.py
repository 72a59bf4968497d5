"""``mode-serve`` and ``serve.py``: a checkpoint, served to robots and other programs."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

from mode_policy.apps.cli import console, program
from mode_policy.apps.evaluate import find_checkpoint
from mode_policy.config import build
from mode_policy.deploy.policy_service import load_service
from mode_policy.deploy.server.config import ServerConfig
from mode_policy.deploy.server.server import PolicyServer
from mode_policy.errors import ConfigError
from mode_policy.inference.pool import EngineName
from mode_policy.inference.weights import Precision


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class ServeConfig(ServerConfig):
    """Everything of ``serve.py``: how a policy is served, and which."""

    checkpoint: str
    weights: Literal["ema", "raw"] = "ema"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    engine: EngineName = "auto"
    precision: Precision = "float32"
    threads: Annotated[int | None, Field(ge=1)] = None
    sampler: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check_checkpoint(self) -> ServeConfig:
        if not Path(self.checkpoint).expanduser().exists():
            raise ValueError(
                f"there is nothing at {self.checkpoint!r}; give a run's folder or a checkpoint's"
            )
        return self


@program("serve")
def main(data: dict[str, Any]) -> None:
    """Load a checkpoint, warm it up, serve it."""
    config = build(ServeConfig, data)
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.WARNING)
    logging.getLogger("mode_policy.server").setLevel(logging.INFO)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    path = find_checkpoint(Path(config.checkpoint).expanduser())
    service = load_service(
        path,
        device=choose_device(config.device),
        weights=config.weights,
        sampler=config.sampler,
        engine=config.engine,
        precision=config.precision,
    )
    console.print(f"engine     {service.engines.engine}: {service.engines.reason}")
    seconds = service.warm_up()
    server = PolicyServer(
        service, ServerConfig(**{f.name: getattr(config, f.name) for f in fields(ServerConfig)})
    )
    asyncio.run(_serve(server, path, seconds))
    if server.busy:  # Python would wait for its thread, for ever
        console.print("an inference did not end in time; leaving it")
        console.file.flush()
        os._exit(1)


async def _serve(server: PolicyServer, path: Path, seconds: float) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, server.drain)
    running = asyncio.create_task(server.serve())
    listening = asyncio.create_task(server.started())
    await asyncio.wait({running, listening}, return_when=asyncio.FIRST_COMPLETED)
    if listening.done():
        kind = "wss" if server.config.certificate else "ws"
        console.print(
            f"serving    {path} at {kind}://{server.config.host}:{listening.result()}, "
            f"{1e3 * seconds:.1f} ms a chunk; Ctrl-C ends it"
        )
    await running
    console.print(f"served     {server.metrics.requests} requests of {server.metrics.opened} sessions")


def choose_device(device: str) -> str:
    """Return "cpu" or "cuda".

    Raises:
        ConfigError: if a GPU is asked for and there is none.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device=cuda, but torch finds no GPU; use device=cpu or auto")
    return "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"
