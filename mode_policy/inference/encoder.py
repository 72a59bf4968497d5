"""Image encoders for inference: batch norms folded into the convolutions, modulations kept.

In evaluation a batch norm is an affine map of each channel, so it becomes part of the convolution before it.
FiLM's factors depend on the instruction alone, so they are computed when that changes.

Legend: N images, C channels, G condition width, T token width.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from mode_policy.encoders.film_resnet import (
    BasicBlock,
    BlockFiLM,
    Bottleneck,
    FiLMResNet,
    Modulation,
    StageFiLM,
)
from mode_policy.policy import MoDEPolicy


def with_folded_encoder(policy: MoDEPolicy, dtype: torch.dtype = torch.float32) -> MoDEPolicy:
    """Return a policy that shares everything with this one but has folded image encoders.

    Args:
        policy: in evaluation mode.
        dtype: of the convolutions; tokens are float32.
    """
    encoder = policy.image_encoder
    if encoder is None:
        return policy
    networks = [FoldedNetwork(n, dtype) for n in encoder.networks if isinstance(n, FiLMResNet)]
    return _changed(policy, image_encoder=_changed(encoder, networks=nn.ModuleList(networks)))


def _changed[M: nn.Module](module: M, **children: nn.Module) -> M:
    """A module that shares everything with another but some children."""
    other = copy.copy(module)
    other._modules = {**module._modules, **children}
    return other


class FoldedNetwork(nn.Module):
    """`FiLMResNet` without batch norms.

    Args:
        network: in evaluation mode; its convolutions are copied, the rest is referred to.
        dtype: of the convolutions.
    """

    def __init__(self, network: FiLMResNet, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.film, self.proj = network.film, network.proj
        self.resnet = copy.deepcopy(network.resnet)
        _fold(self.resnet, "conv1", "bn1")
        for block in (block for stage in self.resnet.stages for block in stage):
            assert isinstance(block, BasicBlock | Bottleneck)
            for i in range(1, 4 if isinstance(block, Bottleneck) else 3):
                _fold(block, f"conv{i}", f"bn{i}")
            if block.downsample is not None:
                _fold(block.downsample, "0", "1")
        self.resnet.requires_grad_(False).to(dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._condition_NG: Tensor | None = None
        self._modulations: list[list[Modulation]] = []

    def forward(self, image_N3hw: Tensor, condition_NG: Tensor | None = None) -> Tensor:
        """Encode normalised images; returns ``(N, T)``, float32."""
        if self.film and condition_NG is not None:
            self._modulate(condition_NG)
        x = self.resnet.stem(image_N3hw.to(self.dtype))
        for i, stage in enumerate(self.resnet.stages):
            if not self.film or condition_NG is None:
                x = stage(x)
            elif isinstance(self.film[i], BlockFiLM):
                for block, film in zip(stage, self._modulations[i], strict=True):
                    x = block(x, film)
            else:
                ((scale_NC, shift_NC),) = self._modulations[i]
                x = torch.addcmul(shift_NC[:, :, None, None], scale_NC[:, :, None, None], stage(x))
        token_NT: Tensor = self.proj(x.mean((2, 3)).float())
        return token_NT

    def _modulate(self, condition_NG: Tensor) -> None:
        """Compute each stage's factors, unless the condition is the one that they were computed for.

        Looking at it would make the host wait for a GPU, so there they are computed each time.
        """
        known = self._condition_NG if condition_NG.device.type == "cpu" else None
        if known is not None and torch.equal(known, condition_NG):
            return
        self._modulations = []
        for film in self.film:
            if isinstance(film, StageFiLM):
                factors = [(1 + film.gamma(condition_NG), film.beta(condition_NG))]
            else:
                assert isinstance(film, BlockFiLM)
                factors = film(condition_NG)
            self._modulations.append(
                [(scale.to(self.dtype), shift.to(self.dtype)) for scale, shift in factors]
            )
        self._condition_NG = condition_NG.clone()


def _fold(parent: nn.Module, conv: str, norm: str) -> None:
    folded = fuse_conv_bn_eval(getattr(parent, conv), getattr(parent, norm))
    setattr(parent, conv, folded)
    setattr(parent, norm, nn.Identity())
