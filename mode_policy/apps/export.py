"""``mode-export`` and ``export.py``: a checkpoint, written for machines without the training code."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from mode_policy.apps.bench.record import commit
from mode_policy.apps.cli import console, program
from mode_policy.checkpoint import WEIGHTS, load_policy, read_description
from mode_policy.config import FORBID_EXTRA, SamplerConfig, build, to_dict
from mode_policy.errors import ConfigError
from mode_policy.export.manifest import Manifest
from mode_policy.export.write import ExportOptions, export
from mode_policy.training.checkpoints import newest_checkpoint


@dataclass(frozen=True, kw_only=True, config=FORBID_EXTRA)
class ExportConfig:
    """Everything of ``export.py``.

    Attributes:
        checkpoint: its folder, or a run's for its newest one.
        target: see `mode_policy.export`.
        out: folder to write; must not exist.
        weights: averaged (``ema``) or as the optimizer left them (``raw``).
        device: that native code is for; ``auto`` is a GPU where there is one.
        dtype: of the large products.
        batch: samples of a call.
        threads: of torch; None for its own choice.
        sampler: fields of `SamplerConfig` that differ from the checkpoint's; None for its own.
    """

    checkpoint: str
    target: Literal["aoti", "onnx", "weights"]
    out: str
    weights: Literal["ema", "raw"] = "ema"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["float32", "bfloat16"] = "float32"
    batch: Annotated[int, Field(ge=1)] = 1
    threads: Annotated[int | None, Field(ge=1)] = None
    sampler: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check(self) -> ExportConfig:
        if not Path(self.checkpoint).expanduser().exists():
            raise ValueError(
                f"there is nothing at {self.checkpoint!r}; give a run's folder or a checkpoint's"
            )
        return self


@program("export")
def main(data: dict[str, Any]) -> None:
    """Load a checkpoint, write the export, say what it is."""
    config = build(ExportConfig, data)
    options = ExportOptions(target=config.target, batch=config.batch, dtype=config.dtype)
    device = _device(config)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    given, folder = Path(config.checkpoint).expanduser(), Path(config.out).expanduser()
    checkpoint = newest_checkpoint(given) or given
    description = read_description(checkpoint)
    policy = load_policy(checkpoint, weights=config.weights, device=device)
    changes = {k: v for k, v in config.sampler.items() if v is not None}
    sampler = build(SamplerConfig, to_dict(policy.config.sampler) | changes, "sampler")
    policy.config = replace(policy.config, sampler=sampler)
    console.print(
        f"exporting  {checkpoint} for {device}: {sampler.name}, {sampler.steps} steps, batch {config.batch}"
        + ("; the compiler takes a minute or several" if config.target == "aoti" else "")
    )
    start = time.perf_counter()
    file = WEIGHTS[config.weights]
    origin = {
        "checkpoint": checkpoint.resolve().name,
        "weights": config.weights,
        "sha256": description["sha256"].get(file),
        "about": description["about"],
    }
    manifest = export(policy, folder, options, origin=origin, commit=commit(Path(__file__).resolve().parent))
    _announce(folder, manifest, (checkpoint / file).stat().st_size, time.perf_counter() - start)


def _device(config: ExportConfig) -> str:
    """Return "cpu" or "cuda".

    Raises:
        ConfigError: if a GPU is asked for and there is none.
    """
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device=cuda, but torch finds no GPU; use device=cpu or auto")
    # Only native code is bound to what it was written on.
    cpu = config.device == "cpu" or (config.device == "auto" and config.target != "aoti")
    return "cpu" if cpu or not torch.cuda.is_available() else "cuda"


def _announce(folder: Path, manifest: Manifest, weights: int, seconds: float) -> None:
    size = sum((folder / name).stat().st_size for name in manifest.sha256)
    left_out = manifest.experts.left_out
    number = manifest.experts.number * len(manifest.experts.kept)
    assert manifest.verification is not None
    console.print(
        f"exported   {folder}, {size / 1e6:.1f} MB (the checkpoint's weights: {weights / 1e6:.1f} MB)"
    )
    console.print(f"experts    {left_out} of {number} left out, as no step uses them")
    console.print(
        f"compared   {manifest.verification.observations} observations: actions differ by at most "
        f"{manifest.verification.error:.2g} of their scale (allowed: {manifest.verification.tolerance:g})"
    )
    console.print(f"took       {seconds:.0f} s")
