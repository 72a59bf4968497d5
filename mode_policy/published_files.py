"""Reading the files in which the authors publish weights, without executing anything in them.

A Lightning checkpoint is a pickle: loaded the usual way it can run any code. Here torch's restricted loader
reads it. Objects that describe a training (configuration, paths, callbacks) become stand-ins that hold their
state and do nothing; a file with any other object is refused.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mode_policy.errors import CheckpointError

#: Files that hold weights, the preferred first.
WEIGHTS = ("model_cleaned.safetensors", "model_cleaned.pt", "*.safetensors", "*.ckpt", "*.pt")

#: Packages whose objects training states hold besides tensors.
HARMLESS = {
    "argparse",
    "collections",
    "hydra",
    "lightning",
    "lightning_fabric",
    "lightning_utilities",
    "mode",
    "numpy",
    "omegaconf",
    "pathlib",
    "pytorch_lightning",
    "typing",
}
HARMLESS_BUILTINS = {
    f"builtins.{t}" for t in ("bool", "dict", "float", "int", "list", "object", "str", "tuple")
}


@dataclass(frozen=True)
class PublishedFile:
    """What a published file holds.

    Attributes:
        path: of the weights.
        raw: tensors under the authors' full names, as the optimizer left them.
        averaged: the same, averaged over training (EMA), or None where the file has none.
        settings: arguments of the authors' agent, as far as the file or its neighbours tell them.
        about: what else is worth keeping, as JSON.
    """

    path: Path
    raw: Mapping[str, Tensor]
    averaged: Mapping[str, Tensor] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)


def read_published(source: Path, *, averaged: bool = True) -> PublishedFile:
    """Read a Lightning ``.ckpt``, a ``.pt`` of tensors, a ``.safetensors``, or the folder that holds one.

    Args:
        source: the file or folder.
        averaged: also look for averaged weights.

    Raises:
        CheckpointError: if there is no such file, it is damaged, or holds objects that are not loaded.
    """
    path = find_weights(source)
    settings = read_settings(path.parent)
    if path.suffix == ".safetensors":
        try:
            return PublishedFile(path, load_file(path), settings=settings)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} cannot be read: {error}") from error
    data = load_restricted(path)
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} holds a {type(data).__name__}, not a checkpoint")
    raw = data.get("state_dict", data)
    if not raw or not all(isinstance(v, Tensor) for v in raw.values()):
        raise CheckpointError(
            f"{path} is no Lightning checkpoint and no state dict: it has {sorted(data)[:8]}"
        )
    stored = plain(data.get("hyper_parameters", {}))
    about = {k: data[k] for k in ("epoch", "global_step", "pytorch-lightning_version") if k in data}
    ema = _averaged(path, data, raw) if averaged else None
    return PublishedFile(path, raw, ema, settings | stored, {k: plain(v) for k, v in about.items()})


def find_weights(source: Path) -> Path:
    """Return the file of weights that ``source`` is or holds.

    Raises:
        CheckpointError: if there is none, or several between which nothing decides.
    """
    if source.is_file():
        return source
    if not source.exists():
        raise CheckpointError(
            f"there is nothing at {source}; give a .ckpt or .safetensors, the folder that holds it, or the "
            "name of a repository on the hub (owner/name)"
        )
    for pattern in WEIGHTS:
        found = sorted(source.glob(pattern)) or sorted(source.glob(f"*/{pattern}"))
        if len(found) > 1:
            names = ", ".join(str(p.relative_to(source)) for p in found[:6])
            raise CheckpointError(f"{source} holds several checkpoints ({names}); name one of them")
        if found:
            return found[0]
    raise CheckpointError(f"{source} holds no weights: no file is named {' or '.join(WEIGHTS)}")


def read_settings(folder: Path) -> dict[str, Any]:
    """Return the agent's arguments from ``config.json`` or Hydra's ``config.yaml`` beside the weights.

    Hydra's may also be beside the folder: a run keeps its weights in one of their own.
    Values that refer to others (``${…}``) are left out.

    Raises:
        CheckpointError: if such a file is damaged.
    """
    from omegaconf import OmegaConf
    from yaml import YAMLError

    hydra = [file for place in (folder, folder.parent) for file in sorted(place.glob("*hydra/config.yaml"))]
    for file in (folder / "config.json", *hydra):
        if not file.is_file():
            continue
        try:
            # JSON is YAML, too.
            data = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
        except (OSError, ValueError, YAMLError) as error:
            raise CheckpointError(f"{file} is damaged: {error}") from error
        if isinstance(data, dict):
            found: dict[str, Any] = plain(data.get("model_config") or data.get("model") or {})
            module = data.get("datamodule")
            return found | ({"datamodule": module.get("_target_")} if isinstance(module, dict) else {})
    return {}


def load_restricted(path: Path) -> Any:
    """Load a file of ``torch.save``; see the module's text.

    Raises:
        CheckpointError: if it is damaged, or holds objects that could run code.
    """
    try:
        unknown = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        if refused := sorted(name for name in unknown if not _harmless(name)):
            raise CheckpointError(
                f"{path} refers to {', '.join(refused[:5])}, which a checkpoint has no use for and which "
                "could run code when it is opened; nothing of it was executed. If you trust where it comes "
                "from, save its tensors alone (`state_dict`) there, as safetensors, and import those"
            )
        stand_ins: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
            (_PlainDict if name in _DICTS else _StandIn, name) for name in unknown
        ]
        with torch.serialization.safe_globals(stand_ins):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, ValueError, OSError, EOFError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path} cannot be read safely: {reason}") from error


def _harmless(name: str) -> bool:
    return name.split(".")[0] in HARMLESS or name in HARMLESS_BUILTINS


class _StandIn:
    """Stands for an object whose class is not loaded: holds its state, does nothing."""

    state: Any = None

    def __new__(cls, *_: object) -> _StandIn:
        return object.__new__(cls)

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state


#: Kinds of dict, which are filled item by item: they are read as plain ones.
_DICTS = {
    "collections.defaultdict",
    "lightning.fabric.utilities.data.AttributeDict",
    "lightning_fabric.utilities.data.AttributeDict",
    "pytorch_lightning.utilities.parsing.AttributeDict",
}


class _PlainDict:
    """Makes a plain dict in place of a subclass."""

    def __new__(cls, *_: object) -> dict[Any, Any]:  # type: ignore[misc]
        return {}


def plain(data: Any) -> Any:
    """Turn stand-ins of OmegaConf's containers into dicts, lists and values; drop references and others."""
    if isinstance(data, _StandIn):
        state = data.state if isinstance(data.state, dict) else {}
        return plain(state.get("_content", state.get("_val")))
    if isinstance(data, dict):
        return dict(_known(data.items()))
    if isinstance(data, list | tuple):
        return [v for _, v in _known(enumerate(data))]
    return data if isinstance(data, bool | int | float | str) else None


def _known(items: Any) -> Iterator[tuple[Any, Any]]:
    for key, value in items:
        value = plain(value)
        if value is not None and not (isinstance(value, str) and "${" in value):
            yield key, value


def _averaged(path: Path, data: Mapping[str, Any], raw: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """Return the averaged weights that the authors' callback keeps as a list in the order of the state dict.

    Raises:
        CheckpointError: if they do not fit the state dict.
    """
    states = data.get("callbacks")
    for name, state in states.items() if isinstance(states, dict) else ():
        if str(name).startswith("EMA") and isinstance(state, dict) and state.get("ema_weights") is not None:
            averaged = list(state["ema_weights"])
            if [tuple(x.shape) for x in averaged] != [tuple(x.shape) for x in raw.values()]:
                raise CheckpointError(
                    f"{path}: the {len(averaged)} averaged weights do not have the shapes of the {len(raw)} "
                    "tensors of the state dict, so which is which is not known; import the raw ones with "
                    "--weights raw"
                )
            return dict(zip(raw, averaged, strict=True))
    return None
