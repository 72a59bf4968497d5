"""Checkpoints: a folder that holds all that a policy needs in order to act, and nothing that is executed.

::

    checkpoint/
      checkpoint.json           format, config, features, convention, statistics, instructions, all hashes
      weights.safetensors       averaged (EMA) weights: the ones to use
      weights_raw.safetensors   weights as the optimizer left them
      instructions.safetensors  embeddings of the known instructions
      training/                 optimizer and progress, for an exact resume; may be deleted

Folders are written beside their final name and renamed, so a checkpoint is whole or absent.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from mode_policy.config import PolicyConfig, build, to_dict
from mode_policy.convention import Convention
from mode_policy.errors import CheckpointError, ConfigError
from mode_policy.files import atomic_folder, sha256, write_json
from mode_policy.normalization import statistics_from_json, statistics_to_json
from mode_policy.policy import MoDEPolicy
from mode_policy.types import Feature, InstructionTable

FORMAT = 2  # 1 had no digest of the description itself
WEIGHTS = {"ema": "weights.safetensors", "raw": "weights_raw.safetensors"}
INSTRUCTIONS = "instructions.safetensors"
DESCRIPTION = "checkpoint.json"
OPTIMIZER = "training/optimizer.safetensors"
PROGRESS = "training/progress.json"


def versions() -> dict[str, str]:
    """Return the versions that a result depends on."""
    found = {"python": platform.python_version()}
    simulators = ("gymnasium", "mujoco", "metaworld", "gym-pusht", "hf-libero", "robosuite")
    for name in ("mode-policy", "torch", "numpy", *simulators, "zarr"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def save_checkpoint(
    path: Path,
    policy: MoDEPolicy,
    raw_weights: Mapping[str, Tensor],
    *,
    about: Mapping[str, Any],
    ema_weights: Mapping[str, Tensor] | None = None,
    optimizer: Mapping[str, Tensor] | None = None,
    progress: Mapping[str, Any] | None = None,
) -> None:
    """Write a checkpoint atomically.

    Args:
        path: the folder to make; must not exist.
        policy: carries the averaged weights.
        raw_weights: state dict of the policy as the optimizer left it.
        about: free JSON about its origin (task, dataset, step, command).
        ema_weights: state dict of the averaged weights, where the policy holds but a share of them.
        optimizer: tensors of the training state.
        progress: JSON of the training state.

    Raises:
        FileExistsError: if ``path`` exists.
        ModePolicyError: if the disk is full; nothing is left behind.
    """
    with atomic_folder(path) as folder:
        files = [WEIGHTS["ema"], WEIGHTS["raw"]]
        _save(policy.state_dict() if ema_weights is None else ema_weights, folder / WEIGHTS["ema"])
        _save(raw_weights, folder / WEIGHTS["raw"])
        table = policy.instructions
        if table is not None:
            _save({"embeddings": table.embeddings}, folder / INSTRUCTIONS)
            files.append(INSTRUCTIONS)
        if optimizer is not None:
            (folder / OPTIMIZER).parent.mkdir()
            _save(optimizer, folder / OPTIMIZER)
            write_json(folder / PROGRESS, dict(progress or {}))
            files += [OPTIMIZER, PROGRESS]
        description = {
            "format": FORMAT,
            "config": to_dict(policy.config),
            "features": {k: f.to_json() for k, f in policy.features.items()},
            "convention": policy.convention.to_json(),
            "statistics": statistics_to_json(policy.statistics),
            "instructions": None
            if table is None
            else {"encoder": table.encoder, "instructions": list(table.instructions)},
            "about": dict(about),
            "versions": versions(),
            "sha256": {name: sha256(folder / name) for name in files},
        }
        write_json(folder / DESCRIPTION, description | {"digest": _digest(description)})


def _save(tensors: Mapping[str, Tensor], path: Path) -> None:
    # Serialised by hand: safetensors' own writer reports a full disk as an error without a number.
    path.write_bytes(save({k: v.detach().cpu().contiguous() for k, v in tensors.items()}))


def _digest(description: Mapping[str, Any]) -> str:
    """SHA-256 of a description, of which the digest itself is no part."""
    text = json.dumps({k: v for k, v in description.items() if k != "digest"}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def read_description(path: Path) -> dict[str, Any]:
    """Return the contents of ``checkpoint.json``.

    Raises:
        CheckpointError: if ``path`` is no checkpoint, is damaged, or was written by a newer version.
    """
    file = path / DESCRIPTION
    if not file.is_file():
        inside = " or ".join(str(p) for p in sorted(path.glob("**/checkpoints/last"))[:3])
        hint = f"; did you mean {inside}?" if inside else ""
        raise CheckpointError(f"{path} is no checkpoint: it has no {DESCRIPTION}{hint}")
    try:
        data: dict[str, Any] = json.loads(file.read_text())
        needed = ("config", "features", "statistics", "instructions", "about", "sha256")
        if missing := [key for key in needed if key not in data]:
            raise ValueError(f"no {', '.join(missing)}")
        if data["format"] > FORMAT:
            raise CheckpointError(
                f"{path} has format {data['format']}, this version reads up to {FORMAT}; update mode-policy"
            )
        if (data["format"] > 1 or "digest" in data) and data.get("digest") != _digest(data):
            raise ValueError("its contents do not fit its digest")
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file} is damaged ({error}); use another checkpoint of the run") from error
    return data


def load_policy(
    path: str | Path, *, weights: Literal["ema", "raw"] = "ema", device: str | torch.device = "cpu"
) -> MoDEPolicy:
    """Load a policy, ready to act (evaluation mode). The dataset need not be present.

    Raises:
        CheckpointError: naming the file that is missing or corrupt, or the tensors that do not fit.
    """
    path = Path(path)
    data = read_description(path)
    for name, expected in data["sha256"].items():
        if not name.startswith("training/"):
            _verify(path / name, expected)
    features = {k: Feature.from_json(f) for k, f in data["features"].items()}
    table = _instructions(path, data)
    try:
        config = build(PolicyConfig, data["config"], "config")
    except ConfigError as error:
        raise CheckpointError(f"{path} was made for another architecture: {error}") from None
    # Checkpoints of earlier versions carry no convention.
    convention = Convention(**data.get("convention", {}))
    policy = MoDEPolicy(config, features, statistics_from_json(data["statistics"]), table, convention)
    load_strictly(policy, _load(path / WEIGHTS[weights]), str(path))
    return policy.to(device).eval()


def load_instructions(path: str | Path) -> InstructionTable | None:
    """Load the instructions that a checkpoint's policy knows, without its weights; None if it takes none.

    Raises:
        CheckpointError: naming the file that is missing or corrupt.
    """
    path = Path(path)
    data = read_description(path)
    if data["instructions"] is not None:
        _verify(path / INSTRUCTIONS, data["sha256"][INSTRUCTIONS])
    return _instructions(path, data)


def _instructions(path: Path, data: Mapping[str, Any]) -> InstructionTable | None:
    about = data["instructions"]
    if about is None:
        return None
    return InstructionTable(
        encoder=about["encoder"],
        instructions=tuple(about["instructions"]),
        embeddings=_load(path / INSTRUCTIONS)["embeddings"],
    )


def _verify(file: Path, expected: str) -> None:
    if not file.is_file():
        raise CheckpointError(f"{file} is missing; copy the whole folder")
    if sha256(file) != expected:
        raise CheckpointError(
            f"{file} is corrupt: its SHA-256 differs from {DESCRIPTION}; copy it again, or use another "
            "checkpoint of the run"
        )


def load_strictly(policy: torch.nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load weights; every name and every shape must match.

    Raises:
        CheckpointError: listing what differs.
    """
    own = policy.state_dict()
    problems = [f"missing {k}" for k in own if k not in state]
    problems += [f"unknown {k}" for k in state if k not in own]
    problems += [
        f"{k} has shape {tuple(state[k].shape)}, the policy needs {tuple(own[k].shape)}"
        for k in own
        if k in state and state[k].shape != own[k].shape
    ]
    if problems:
        shown = "; ".join(problems[:5]) + ("; …" if len(problems) > 5 else "")
        raise CheckpointError(
            f"{source} was made for another architecture ({len(problems)} differences): {shown}"
        )
    policy.load_state_dict(dict(state), strict=True)


def load_training_state(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the optimizer's tensors and the progress that `save_checkpoint` stored.

    Raises:
        CheckpointError: if they were deleted or are damaged.
    """
    if not (path / PROGRESS).is_file():
        raise CheckpointError(f"{path} has no training state; it can be evaluated but not resumed")
    for name, expected in read_description(path)["sha256"].items():
        if name.startswith("training/"):
            _verify(path / name, expected)
    return _load(path / OPTIMIZER), json.loads((path / PROGRESS).read_text())


def _load(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
