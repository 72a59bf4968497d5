"""Where metrics go: JSON lines always; TensorBoard, Weights & Biases and trackio on request."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mode_policy.errors import ConfigError, DataError
from mode_policy.files import explain_failed_write, write_text


class MetricsLog:
    """Appends one JSON object a record to ``metrics.jsonl`` and mirrors numbers to other trackers.

    Args:
        folder: of the run.
        tensorboard: write events to ``folder/tensorboard``.
        wandb: project name, or None.
        trackio: project name, or None; it stays on this machine unless trackio is told otherwise.
        config: recorded with the run.
        keep_steps: when a run resumes, records after this step are dropped: they will be made again.
    """

    def __init__(
        self,
        folder: Path,
        *,
        tensorboard: bool = True,
        wandb: str | None = None,
        trackio: str | None = None,
        config: Mapping[str, Any] | None = None,
        keep_steps: int | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "metrics.jsonl"
        kept = [r for r in read_metrics(self.path) if keep_steps is not None and r["step"] <= keep_steps]
        write_text(self.path, "".join(json.dumps(r) + "\n" for r in kept))
        self._writer: Any = None
        # Both take ``log(record, step=…)`` and ``finish()``.
        self._trackers: list[Any] = []
        run_id = wandb_run_id(folder, continued=keep_steps is not None) if wandb or trackio else ""
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            # What is purged begins with the step that is named.
            purge = None if keep_steps is None else keep_steps + 1
            self._writer = SummaryWriter(folder / "tensorboard", purge_step=purge)
        about = dict(config or {})
        if wandb is not None:
            tracker = import_wandb().init(project=wandb, dir=folder, config=about, id=run_id, resume="allow")
            self._trackers.append(tracker)
        if trackio is not None:
            name = f"{folder.name}-{run_id}"
            # Embedding would open a dashboard in notebooks.
            tracker = import_trackio().init(trackio, name, config=about, resume="allow", embed=False)
            self._trackers.append(tracker)

    def write(self, record: Mapping[str, float]) -> None:
        """Append a record; it must hold ``step``."""
        with explain_failed_write(self.path), self.path.open("a") as f:
            f.write(json.dumps(dict(record)) + "\n")
        step = int(record["step"])
        if self._writer is not None:
            for name, value in record.items():
                self._writer.add_scalar(name, value, step)
        for tracker in self._trackers:
            tracker.log({name: value for name, value in record.items() if name != "step"}, step=step)

    def close(self) -> None:
        """Flush and close the trackers."""
        if self._writer is not None:
            self._writer.close()
        for tracker in self._trackers:
            tracker.finish()


def import_wandb() -> Any:
    """Return the module of Weights & Biases.

    Raises:
        ConfigError: if it is not installed.
    """
    try:
        import wandb
    except ImportError as error:
        raise ConfigError("trainer.wandb needs: pip install 'mode-policy[wandb]'") from error
    return wandb


def import_trackio() -> Any:
    """Return the module of trackio.

    Raises:
        ConfigError: if it is not installed.
    """
    try:
        import trackio
    except ImportError as error:
        raise ConfigError("trainer.trackio needs: pip install 'mode-policy[trackio]'") from error
    return trackio


def wandb_run_id(folder: Path, *, continued: bool) -> str:
    """Return the run's id at trackers: a new one, or for a run that goes on the one in its folder."""
    path = folder / "wandb_run_id.txt"
    if continued and path.exists():
        return path.read_text().strip()
    name = uuid.uuid4().hex[:12]
    write_text(path, name + "\n")
    return name


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Read ``metrics.jsonl``; an unfinished last line, which a killed run leaves, is passed over.

    Raises:
        DataError: naming file and line, if another line is no record.
    """
    if not path.exists():
        return []
    records = []
    lines = path.read_text().splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            record["step"] = int(record["step"])
            records.append(record)
        except (ValueError, KeyError, TypeError) as error:
            if number < len(lines):
                raise DataError(f"{path}, line {number} is no record: {error}; delete that line") from error
    return records
