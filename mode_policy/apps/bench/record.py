"""Dated records of measurements: device, versions, configuration, commit."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from mode_policy import checkpoint
from mode_policy.errors import ConfigError
from mode_policy.files import write_json

#: Where records go, unless another folder is given.
RESULTS = Path("benchmarks/results")

Row = dict[str, Any]


def device() -> dict[str, Any]:
    """Describe this machine: processor, threads that torch uses, load, GPU with its driver and clocks."""
    model = platform.processor()
    information = Path("/proc/cpuinfo")
    if information.is_file():
        lines = information.read_text().splitlines()
        model = next((x.split(":")[1].strip() for x in lines if "model name" in x), model)
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    about = {
        "cpu": model,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2),
        "gpu": gpu,
    }
    return about if gpu is None else about | _driver()


def _driver() -> dict[str, str]:
    """Driver and clocks of the first GPU, as ``nvidia-smi`` knows them; nothing where it is missing."""
    names = ("driver_version", "clocks.sm", "clocks.mem", "clocks.max.sm", "clocks.max.mem")
    program = shutil.which("nvidia-smi")
    if program is None:
        return {}
    command = [program, f"--query-gpu={','.join(names)}", "--format=csv,noheader", "--id=0"]
    found = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip().split(", ")
    return dict(zip(names, found, strict=False))


def versions() -> dict[str, str]:
    """Return the versions that times depend on."""
    found = checkpoint.versions()
    with suppress(metadata.PackageNotFoundError):
        found["triton"] = metadata.version("triton")
    return found


def commit(folder: Path) -> str:
    """Return the commit of a checkout, with ``+changes`` if it has any; empty where there is none."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()

    head = git("rev-parse", "--short", "HEAD")
    return head + ("+changes" if head and git("status", "--porcelain") else "")


def prepare_folder(folder: Path) -> None:
    """Make the folder of a record before anything is measured for it.

    Raises:
        ConfigError: if it cannot be made, or takes no files.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        reason = None if os.access(folder, os.W_OK | os.X_OK) else "it takes no files"
    except OSError as error:
        reason = error.strerror
    if reason is not None:
        raise ConfigError(f"records cannot go to {folder}: {reason}; choose another with --record FOLDER")


def write_record(
    name: str, rows: Sequence[Row], config: dict[str, Any], folder: Path = RESULTS, about: Row | None = None
) -> Path:
    """Write ``<folder>/<name>_<device>_<date>.json``, atomically, and return its path.

    Args:
        name: Of the benchmark.
        rows: What was measured.
        config: What determined it.
        folder: Where records are kept.
        about: The machine as it was when measuring began; as it is now by default.
    """
    about = about or device()
    label = "cpu" if about["gpu"] is None else about["gpu"].lower().replace(" ", "-")
    now = datetime.now(UTC)
    path = folder / f"{name}_{label}_{now:%Y-%m-%d}.json"
    write_json(
        path,
        {
            "benchmark": name,
            "date": now.isoformat(timespec="seconds"),
            "commit": commit(folder),
            "device": about,
            "versions": versions(),
            "config": config,
            "rows": list(rows),
        },
    )
    return path
