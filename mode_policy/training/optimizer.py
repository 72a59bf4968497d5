"""AdamW, its parameter groups, and its state as named tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mode_policy.errors import CheckpointError
from mode_policy.training.sharding import share_of


def parameter_groups(policy: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Split what is trained into what decays (matrices) and what does not (norms, biases, positions)."""
    decay: list[torch.nn.Parameter] = []
    keep: list[torch.nn.Parameter] = []
    for name, parameter in policy.named_parameters():
        if parameter.requires_grad:
            matrix = parameter.ndim >= 2 and not name.endswith(("up_bias_NE", "position", "gain"))
            (decay if matrix else keep).append(parameter)
    return [{"params": decay, "weight_decay": weight_decay}, {"params": keep, "weight_decay": 0.0}]


def optimizer_tensors(optimizer: torch.optim.Optimizer, policy: torch.nn.Module) -> dict[str, Tensor]:
    """Return the optimizer's state under the parameters' names, for safetensors."""
    names = _names(optimizer, policy)
    state = optimizer.state_dict()["state"]
    return {f"{names[i]}/{key}": torch.as_tensor(v) for i, entry in state.items() for key, v in entry.items()}


def load_optimizer_tensors(
    optimizer: torch.optim.Optimizer, policy: torch.nn.Module, tensors: Mapping[str, Tensor]
) -> None:
    """Invert `optimizer_tensors`.

    Raises:
        CheckpointError: if other parameters were trained.
    """
    names = _names(optimizer, policy)
    saved: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        name, entry = key.rsplit("/", 1)
        saved.setdefault(name, {})[entry] = tensor
    if saved and set(saved) != set(names):
        other = sorted(set(saved) ^ set(names))
        raise CheckpointError(
            f"the checkpoint trained other parameters ({len(other)} differ, first {other[0]!r}); an exact "
            "resume needs the same trainer.freeze_routers"
        )
    parameters = dict(policy.named_parameters())
    state = {}
    for i, name in enumerate(names if saved else []):
        state[i] = {key: share_of(tensor, parameters[name]) for key, tensor in saved[name].items()}
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _names(optimizer: torch.optim.Optimizer, policy: torch.nn.Module) -> list[str]:
    """Names of the parameters in the optimizer's order."""
    names = {id(p): name for name, p in policy.named_parameters()}
    return [names[id(p)] for group in optimizer.param_groups for p in group["params"]]
