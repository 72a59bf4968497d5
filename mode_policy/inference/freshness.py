"""Whether a policy still has the weights that something was computed from."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from mode_policy.encoders.film_resnet import FiLMResNet
from mode_policy.inference.weights import bank_of
from mode_policy.nn.block import MoDEBlock
from mode_policy.policy import MoDEPolicy

#: Values of a tensor that `WeightsMark.changed` compares, about.
SAMPLES = 1024


class WeightsMark:
    """Tells whether a policy's weights are still those that it saw.

    Changes in place raise a tensor's version; PyTorch's fused optimizers change weights without, but
    they change all of them, so a few values of every layer are compared, too. Tensors in the place of others
    are noticed as such. What is written through ``.data`` raises no version: `changed` looks for it.
    """

    def __init__(self, policy: MoDEPolicy) -> None:
        self.policy = policy
        # The tensors themselves, not their addresses: those are given to others when a tensor is gone.
        self._seen = [(tensor, _version(tensor)) for tensor in self._tensors()]
        self._kind = (policy.device, policy.denoiser.out.weight.dtype)
        self.probe = self._probe().clone()
        self._samples = {name: _sample(tensor) for name, tensor in self._named()}

    def versions_hold(self) -> bool:
        """Whether nothing was changed in place, replaced or moved; waits for no device."""
        now = [*self._tensors()]
        return (
            len(now) == len(self._seen)
            and (self.policy.device, self.policy.denoiser.out.weight.dtype) == self._kind
            and all(
                tensor is seen and _version(tensor) == version
                for tensor, (seen, version) in zip(now, self._seen, strict=True)
            )
        )

    def values_hold(self) -> bool:
        """Whether the values that were looked at are the same; waits for the device."""
        return torch.equal(self._probe(), self.probe)

    def changed(self) -> str | None:
        """Return the name of a tensor that differs in one of about `SAMPLES` places, or None.

        Those that were freed since cannot be compared.
        """
        for name, tensor in self._named():
            if tensor.numel() and not _same(_sample(tensor), self._samples.get(name)):
                return name
        return None

    def _tensors(self) -> itertools.chain[Tensor]:
        return itertools.chain(self.policy.parameters(), self.policy.buffers())

    def _named(self) -> itertools.chain[tuple[str, Tensor]]:
        return itertools.chain(self.policy.named_parameters(), self.policy.named_buffers())

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


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version  # those of torch.inference_mode have none


def _sample(tensor: Tensor) -> Tensor:
    step = tensor.numel() // SAMPLES | 1  # odd, so that it does not stay in one column of a matrix
    return tensor.detach().flatten()[::step].clone()


def _same(now: Tensor, seen: Tensor | None) -> bool:
    return (
        seen is not None and (now.dtype, now.device) == (seen.dtype, seen.device) and torch.equal(now, seen)
    )
