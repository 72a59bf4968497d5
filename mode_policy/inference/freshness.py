"""Whether a policy still has the weights that something was computed from."""

from __future__ import annotations

import torch
from torch import Tensor

from mode_policy.encoders.film_resnet import FiLMResNet
from mode_policy.inference.weights import bank_of
from mode_policy.nn.block import MoDEBlock
from mode_policy.policy import MoDEPolicy


class WeightsMark:
    """Tells whether a policy's weights are still those that it saw.

    Changes in place raise a tensor's version; PyTorch's fused optimizers change weights without, but
    they change all of them, so a few values of every layer are compared, too.
    """

    def __init__(self, policy: MoDEPolicy) -> None:
        self.policy = policy
        self.version = self._version()
        self.probe = self._probe().clone()

    def versions_hold(self) -> bool:
        """Whether nothing was changed in place; waits for no device."""
        return self._version() == self.version

    def values_hold(self) -> bool:
        """Whether the values that were looked at are the same; waits for the device."""
        return torch.equal(self._probe(), self.probe)

    def _version(self) -> int:
        policy = self.policy
        return sum(t._version for tensors in (policy.parameters(), policy.buffers()) for t in tensors)

    @torch.no_grad()
    def _probe(self) -> Tensor:
        denoiser, encoder = self.policy.denoiser, self.policy.image_encoder
        parts: list[Tensor] = [denoiser.out.bias]
        for block in denoiser.blocks:
            assert isinstance(block, MoDEBlock)
            parts += [block.attention.qkv.bias[:1], bank_of(block).up_bias_NE[0, :1]]
        for network in encoder.networks if encoder is not None else ():
            assert isinstance(network, FiLMResNet)
            convolution, norm = network.resnet.conv1, network.resnet.bn1
            assert norm.running_mean is not None
            parts += [convolution.weight.flatten()[:1], norm.weight[:1], norm.running_mean[:1]]
        return torch.cat([p.float() for p in parts])
