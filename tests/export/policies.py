"""Tiny policies whose routers decide clearly, so that some experts are never used."""

from __future__ import annotations

import torch

from mode_policy.policy import MoDEPolicy
from tests import toy

SIZES = {"dim": 16, "num_layers": 2, "num_heads": 2}

#: Forms of the network, each with something of its own in a graph.
NETWORKS = {
    "default": {},
    "shared": {"experts": {"num": 4, "active": 2, "shared": True}},
    "not normalised": {"router": {"normalize": False}},
    "goal in the router": {"router": {"goal": True}},
    "prenorm": {"residual": "prenorm"},
    "paper with goal": {"residual": "paper", "router": {"goal": True}},
    "no noise token": {"noise_token": False},
}


def trained(network: str = "default", images: bool = False, **changes) -> MoDEPolicy:
    """Return a policy, with the sampler of two steps unless another is given."""
    changes = {"sampler": {"steps": 2}, "denoiser": SIZES | NETWORKS[network], **changes}
    policy = (toy.image_policy if images else toy.policy)(**changes).eval()
    with torch.no_grad():
        for block in policy.denoiser.blocks:
            for parameter in block.router.parameters():
                parameter.mul_(4)
    return policy
