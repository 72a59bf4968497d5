"""Dated records of measurements: device, versions, configuration, commit."""

import json
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from mode_policy.checkpoint import versions

RESULTS = Path(__file__).parent / "results"


def device() -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((x.split(":")[1].strip() for x in lines if "model name" in x), platform.processor())
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"cpu": cpu, "threads": torch.get_num_threads(), "gpu": gpu}


def commit() -> str:
    def git(*arguments: str) -> str:
        command = ["git", "-C", str(RESULTS.parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()

    return git("rev-parse", "--short", "HEAD") + ("+changes" if git("status", "--porcelain") else "")


def write_record(name: str, rows: Any, config: dict[str, Any]) -> Path:
    """Write ``results/<name>_<device>_<date>.json`` and return its path."""
    about = device()
    label = "cpu" if about["gpu"] is None else about["gpu"].lower().replace(" ", "-")
    now = datetime.now(UTC)
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}_{label}_{now:%Y-%m-%d}.json"
    record = {
        "benchmark": name,
        "date": now.isoformat(timespec="seconds"),
        "commit": commit(),
        "device": about,
        "versions": versions(),
        "config": config,
        "rows": rows,
    }
    path.write_text(json.dumps(record, indent=1) + "\n")
    return path
