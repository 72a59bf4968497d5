"""Residual networks whose features an instruction modulates (FiLM): one image in, one token out.

The networks are He et al.'s (arXiv 1512.03385) with torchvision's tensor names, so its ImageNet weights load
unchanged; the modulation is Perez et al.'s (arXiv 1709.07871) in the two forms of the authors' code.

Legend: N images, C channels, G condition width, T token width.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from mode_policy.encoders.vision_config import VisionConfig

#: blocks in each of the four stages
BLOCKS = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3), "resnet50": (3, 4, 6, 3)}

#: γ and β of one place, each ``(N, C)``
Modulation = tuple[Tensor, Tensor]


def _conv(channels_in: int, channels_out: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, kernel, stride, padding=kernel // 2, bias=False)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a skip connection."""

    expansion = 1

    def __init__(self, channels_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv(channels_in, width, 3, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _conv(width, width, 3)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _downsample(channels_in, width, stride)

    def forward(self, x: Tensor, film: Modulation | None = None) -> Tensor:
        """Map ``(N, C, h, w)``; ``film`` modulates the branch before it joins the skip connection."""
        h = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        if film is not None:
            h = film[0][:, :, None, None] * h + film[1][:, :, None, None]
        return self.relu(h + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    """A 3x3 convolution between two 1x1 ones around a skip connection; the stride is the 3x3's."""

    expansion = 4

    def __init__(self, channels_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv(channels_in, width, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _conv(width, width, 3, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = _conv(width, 4 * width, 1)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _downsample(channels_in, 4 * width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C, h, w)``."""
        h = self.relu(self.bn1(self.conv1(x)))
        h = self.bn3(self.conv3(self.relu(self.bn2(self.conv2(h)))))
        return self.relu(h + (x if self.downsample is None else self.downsample(x)))


def _downsample(channels_in: int, channels_out: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and channels_in == channels_out:
        return None
    return nn.Sequential(_conv(channels_in, channels_out, 1, stride), nn.BatchNorm2d(channels_out))


class ResNet(nn.Module):
    """The stem and the four stages, without classifier.

    Attributes:
        channels: width of each stage's output.
    """

    def __init__(self, name: str, width: int = 64) -> None:
        super().__init__()
        block = Bottleneck if name == "resnet50" else BasicBlock
        self.conv1 = nn.Conv2d(3, width, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        self.channels = [width * 2**i * block.expansion for i in range(4)]
        stages = []
        for i, (channels_in, out) in enumerate(itertools.pairwise([width, *self.channels])):
            blocks = [block(channels_in, width * 2**i, 1 if i == 0 else 2)]
            blocks += [block(out, width * 2**i, 1) for _ in range(BLOCKS[name][i] - 1)]
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def stem(self, image_N3hw: Tensor) -> Tensor:
        """Return features before the first stage, a quarter of the image's size."""
        features: Tensor = self.maxpool(self.relu(self.bn1(self.conv1(image_N3hw))))
        return features

    @property
    def stages(self) -> list[nn.Sequential]:
        """The four stages."""
        return [self.layer1, self.layer2, self.layer3, self.layer4]


class StageFiLM(nn.Module):
    """(1 + γ(c))·h + β(c) after a stage; starts as the identity."""

    def __init__(self, condition_dim: int, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Linear(condition_dim, channels)
        self.beta = nn.Linear(condition_dim, channels)
        for layer in (self.gamma, self.beta):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, h: Tensor, condition_NG: Tensor) -> Tensor:
        """Modulate ``(N, C, h, w)``."""
        gamma_NC, beta_NC = self.gamma(condition_NG), self.beta(condition_NG)
        return (1 + gamma_NC[:, :, None, None]) * h + beta_NC[:, :, None, None]


class BlockFiLM(nn.Module):
    """γ(c) and β(c) for the two blocks of a stage, from one linear layer of SiLU(c).

    There is no "1 +" in this form: γ is a plain factor. The authors draw it at random, which silences each
    branch at the start; here it starts as the identity. Released weights replace either.
    """

    def __init__(self, condition_dim: int, channels: int) -> None:
        super().__init__()
        self.silu = nn.SiLU()
        self.linear = nn.Linear(condition_dim, 4 * channels)
        nn.init.zeros_(self.linear.weight)
        one, zero = torch.ones(channels), torch.zeros(channels)
        self.linear.bias.data = torch.cat([one, zero, one, zero])

    def forward(self, condition_NG: Tensor) -> list[Modulation]:
        """Return (γ, β) of each block."""
        gamma0, beta0, gamma1, beta1 = self.linear(self.silu(condition_NG)).chunk(4, dim=1)
        return [(gamma0, beta0), (gamma1, beta1)]


class FiLMResNet(nn.Module):
    """A residual network with FiLM, mean-pooled to one token.

    Args:
        config: network, width and form of the modulation.
        condition_dim: G; None for a plain network that takes no condition.

    Attributes:
        token_dim: T, eight times the width (32 times for resnet50).
    """

    def __init__(self, config: VisionConfig, condition_dim: int | None) -> None:
        super().__init__()
        self.resnet = ResNet(config.network, config.width)
        self.inside_blocks = config.film == "block"
        self.token_dim = self.resnet.channels[-1]
        form = BlockFiLM if self.inside_blocks else StageFiLM
        channels = self.resnet.channels if condition_dim is not None else []
        self.film = nn.ModuleList(form(condition_dim or 0, c) for c in channels)
        self.proj = nn.Linear(self.token_dim, self.token_dim) if self.inside_blocks else nn.Identity()

    def forward(self, image_N3hw: Tensor, condition_NG: Tensor | None = None) -> Tensor:
        """Encode normalised images; returns ``(N, T)``."""
        x = self.resnet.stem(image_N3hw)
        for i, stage in enumerate(self.resnet.stages):
            if not self.film or condition_NG is None:
                x = stage(x)
            elif self.inside_blocks:
                for block, film in zip(stage, self.film[i](condition_NG), strict=True):
                    x = block(x, film)
            else:
                x = self.film[i](stage(x), condition_NG)
        token_NT: Tensor = self.proj(x.mean((2, 3)))
        return token_NT
