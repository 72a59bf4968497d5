"""Fully sharded training (FSDP2, arXiv 2304.11277): each process holds a share of every tensor.

Blocks of the denoiser are gathered one at a time when they run, and freed after. What is written to disk is
whole, so a run may continue with another number of processes, sharded or not.

Importing what shards takes seconds, so it happens where a run is sharded and not here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, TypeGuard

import torch
from torch import Tensor, nn

from mode_policy.policy import MoDEPolicy

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def shard(policy: MoDEPolicy, count: int) -> None:
    """Spread a policy's parameters over ``count`` processes, in place; they must hold the same values."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(policy.device.type, (count,))
    for block in policy.denoiser.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(policy, mesh=mesh)


def is_sharded(tensor: Tensor) -> TypeGuard[DTensor]:
    """Whether this process holds but a share of a tensor."""
    return hasattr(tensor, "full_tensor")


def local(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Return this process's shares of tensors, which keep their memory."""
    return [t.to_local() if is_sharded(t) else t for t in tensors]


def whole(tensors: Mapping[str, Tensor], keep: bool) -> dict[str, Tensor]:
    """Gather tensors from all processes, which must all ask; one at a time, and on the host.

    Args:
        tensors: sharded or not.
        keep: whether this process wants them; the others get nothing.
    """
    gathered = {}
    for name, tensor in tensors.items():
        full: Tensor = tensor.full_tensor() if is_sharded(tensor) else tensor
        if keep:
            gathered[name] = full.detach().cpu()
    return gathered


@torch.no_grad()
def load_whole(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Take this process's share of a whole state, whose names and shapes have been checked."""
    for name, tensor in module.state_dict().items():
        tensor.copy_(share_of(state[name], tensor))


def share_of(full: Tensor, like: Tensor) -> Tensor:
    """Return a whole tensor sharded as its counterpart is, if that is of the same shape and sharded."""
    if not is_sharded(like) or full.shape != like.shape:
        return full
    from torch.distributed.tensor import distribute_tensor

    # Every process has read the whole tensor: nothing need be sent.
    return distribute_tensor(full.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
