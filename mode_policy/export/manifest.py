"""The description of an export: what it takes, what it gives, what it was made from and for.

::

    export/
      manifest.json             this description, with the hash of each file below
      manifest.sha256           its own hash
      model.pt2                 target aoti: native code and weights
      model.onnx                target onnx: graph and weights (large weights in model.onnx.data)
      weights.safetensors       target weights
      instructions.safetensors  embeddings of the known instructions
      check.safetensors         an observation and the policy's actions, for a check on another machine
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mode_policy.config import FORBID_EXTRA, PolicyConfig, SamplerConfig, build, to_dict
from mode_policy.errors import ConfigError, ExportError
from mode_policy.export.machine import Machine
from mode_policy.files import sha256, write_json, write_text

FORMAT = 1
DESCRIPTION = "manifest.json"
SEAL = "manifest.sha256"
INSTRUCTIONS = "instructions.safetensors"
CHECK = "check.safetensors"

Target = Literal["aoti", "onnx", "weights"]
Dtype = Literal["float32", "bfloat16"]

#: File that holds the model of each target.
MODEL: dict[Target, str] = {"aoti": "model.pt2", "onnx": "model.onnx", "weights": "weights.safetensors"}

#: Largest difference to the policy's own actions, in units of the action's scale of normalisation (for
#: ``min_max`` half the range of the demonstrations' actions). float32: the same products, added in another
#: order, through up to ten steps. bfloat16: rounded to 8 bits at every product.
TOLERANCE: dict[Dtype, float] = {"float32": 1e-3, "bfloat16": 0.1}


@dataclass(frozen=True, kw_only=True, config=FORBID_EXTRA)
class Array:
    """A tensor that goes in or comes out.

    Attributes:
        name: feature key, or ``instruction``, ``noise``, ``prefix``, ``prefix_weights``, ``action``.
        dtype: of its elements.
        shape: batch first; ``noise`` has the sampler's draws before the batch.
    """

    name: str
    dtype: Literal["float32", "uint8"]
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, config=FORBID_EXTRA)
class Instructions:
    """The known instructions, in the order of the rows of ``instructions.safetensors``."""

    encoder: str
    instructions: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, config=FORBID_EXTRA)
class Experts:
    """Which experts of each layer were exported; no step uses the others.

    Attributes:
        number: of routed experts in a layer of the policy.
        kept: their numbers, layer by layer.
    """

    number: int
    kept: tuple[tuple[int, ...], ...]

    @model_validator(mode="after")
    def _check(self) -> Experts:
        for kept in self.kept:
            if not kept or list(kept) != sorted(set(kept)) or not 0 <= kept[0] <= kept[-1] < self.number:
                raise ValueError(f"kept={list(kept)} are no experts of {self.number}, in their order")
        return self

    @property
    def left_out(self) -> int:
        """How many were left out, over all layers."""
        return sum(self.number - len(kept) for kept in self.kept)


@dataclass(frozen=True, kw_only=True, config=FORBID_EXTRA)
class Verification:
    """Result of the comparison with the policy after writing.

    Attributes:
        error: largest difference found, in units of the action's scale.
        tolerance: largest that is accepted.
        observations: compared.
    """

    error: float
    tolerance: float
    observations: int


@dataclass(frozen=True, kw_only=True, config=FORBID_EXTRA)
class Manifest:
    """See the module.

    Attributes:
        format: of the folder.
        target: aoti, onnx or weights.
        device: that native code runs on; the other targets run where they are loaded.
        dtype: type of the large products.
        batch: samples of a call B.
        inputs: in the order in which the model takes them.
        output: the actions.
        sampler: how actions are denoised.
        noise_levels: at which the network is called.
        experts: that were exported.
        config: of the policy.
        features: feature key → fields of `mode_policy.types.Feature`.
        convention: fields of `mode_policy.convention.Convention`.
        statistics: of the demonstrations; the model normalises by them itself.
        instructions: that the policy knows, or None without language.
        made_for: machine that native code needs; None for the other targets.
        verification: None only while it is being written.
        origin: free JSON: checkpoint, task, training step.
        versions: of the packages that wrote it.
        commit: of the code that wrote it, empty where unknown.
        sha256: file name → hash.
    """

    format: int = FORMAT
    target: Target
    device: Literal["cpu", "cuda"]
    dtype: Dtype
    batch: int
    inputs: tuple[Array, ...]
    output: Array
    sampler: SamplerConfig
    noise_levels: tuple[float, ...]
    experts: Experts
    config: PolicyConfig
    features: dict[str, dict[str, Any]]
    convention: dict[str, Any]
    statistics: dict[str, dict[str, list[float]]]
    instructions: Instructions | None
    made_for: Machine | None
    verification: Verification | None
    origin: dict[str, Any] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=dict)
    commit: str = ""
    sha256: dict[str, str]

    @model_validator(mode="after")
    def _check(self) -> Manifest:
        if self.target == "onnx" and self.device != "cpu":
            raise ValueError(f"device={self.device}, but exports of the target onnx run on a processor")
        if self.device == "cuda" and self.made_for is not None and self.made_for.gpu_capability is None:
            raise ValueError("device=cuda, but made_for.gpu_capability does not say which GPU")
        for array in self.inputs:
            axis = 1 if array.name == "noise" else 0
            if array.shape[axis : axis + 1] != (self.batch,):
                raise ValueError(f"batch={self.batch}, but {array.name!r} has the shape {array.shape}")
        return self


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write ``manifest.json`` and its hash."""
    write_json(folder / DESCRIPTION, to_dict(manifest))
    seal(folder)


def seal(folder: Path) -> None:
    """Write the hash of ``manifest.json``, in the form that ``sha256sum --check`` reads."""
    write_text(folder / SEAL, f"{sha256(folder / DESCRIPTION)}  {DESCRIPTION}\n")


def hashes(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Return the SHA-256 of each file."""
    return {name: sha256(folder / name) for name in names}


def read_manifest(folder: Path) -> Manifest:
    """Return the description of an export.

    Raises:
        ExportError: if the folder is no export, its description is damaged, or it is of a newer format.
    """
    file = folder / DESCRIPTION
    if not file.is_file():
        raise ExportError(f"{folder} is no export: it has no {DESCRIPTION}; write one with export.py")
    if not (folder / SEAL).is_file():
        raise ExportError(f"{folder / SEAL} is missing; copy the whole folder")
    if (folder / SEAL).read_bytes().split()[:1] != [sha256(file).encode()]:
        raise ExportError(f"{file} is corrupt: its SHA-256 differs from {SEAL}; copy the folder again")
    try:
        data = json.loads(file.read_text())
        if not isinstance(data, dict):
            raise ExportError(f"{file} is damaged: it holds no object; export the checkpoint again")
        if isinstance(data.get("format"), int) and data["format"] > FORMAT:
            raise ExportError(
                f"{folder} has format {data['format']}, this version reads up to {FORMAT}; update mode-policy"
            )
        return build(Manifest, data)
    except (json.JSONDecodeError, UnicodeDecodeError, ConfigError) as error:
        raise ExportError(f"{file} is damaged: {error}; export the checkpoint again") from error


def check_files(folder: Path, manifest: Manifest) -> None:
    """Hold the files of an export to the hashes that were taken when they were written.

    Raises:
        ExportError: naming the file that is missing or has changed.
    """
    needed = {MODEL[manifest.target], CHECK, *([INSTRUCTIONS] if manifest.instructions else [])}
    if unlisted := sorted(needed - set(manifest.sha256)):
        raise ExportError(f"{folder / DESCRIPTION} lists no hash of {unlisted}; export the checkpoint again")
    for name, expected in manifest.sha256.items():
        file = folder / name
        if Path(name).name != name:
            raise ExportError(f"{folder / DESCRIPTION} names {name!r}, which lies outside of the folder")
        if not file.is_file():
            raise ExportError(f"{file} is missing; copy the whole folder")
        if sha256(file) != expected:
            raise ExportError(
                f"{file} is corrupt: its SHA-256 differs from {DESCRIPTION}; copy the folder again"
            )


def check_package(file: Path) -> None:
    """Look for native code in a ``.pt2``; torch's loader crashes on an archive that holds none.

    Raises:
        ExportError: if there is none, or the file is no archive.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            found = any(name.endswith(".so") for name in archive.namelist())
    except (zipfile.BadZipFile, OSError) as error:
        raise ExportError(f"{file} cannot be loaded: {error}; export the checkpoint again") from error
    if not found:
        raise ExportError(f"{file} cannot be loaded: it holds no native code; export the checkpoint again")


def read_tensors(file: Path, *needed: str) -> dict[str, Tensor]:
    """Return the tensors of a file.

    Raises:
        ExportError: if it cannot be read, or one that is needed is not in it.
    """
    try:
        tensors = load_file(file)
    except (SafetensorError, OSError) as error:
        raise ExportError(f"{file} cannot be read: {error}") from error
    if missing := sorted(set(needed) - set(tensors)):
        raise ExportError(f"{file} lacks {missing} (it has {sorted(tensors)}); export the checkpoint again")
    return tensors
