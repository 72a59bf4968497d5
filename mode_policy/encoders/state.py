"""State encoder: the robot's and the scene's vectors as one token for each time step.

Legend: B batch, H history, F width of all normalised states, T token width.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from mode_policy.config import PolicyConfig
from mode_policy.normalization import Normalizer, Statistics
from mode_policy.types import Features, feature_kind


class StateEncoder(nn.Module):
    """Normalises each state feature, expands angles, concatenates, and optionally applies an MLP.

    Without an MLP the token is the normalised vector itself; the denoiser's embedding is then the only
    layer that sees it, as in the authors' code.

    Args:
        features: of the dataset; only states are looked at.
        config: normalisation mode and widths.
    """

    def __init__(self, features: Features, config: PolicyConfig) -> None:
        super().__init__()
        self.keys = [key for key in features if feature_kind(key) == "state"]
        normalizers = [Normalizer(features[k], config.normalize_state) for k in self.keys]
        self.normalizers = nn.ModuleList(normalizers)
        width = sum(n.out_dim for n in normalizers)
        sizes: Sequence[int] = [
            width,
            *config.state_hidden,
            *([config.state_tokens] if config.state_tokens else []),
        ]
        layers: list[nn.Module] = []
        for i, (a, b) in enumerate(itertools.pairwise(sizes)):
            layers += [nn.SiLU()] if i else []
            layers.append(nn.Linear(a, b))
        self.net = nn.Sequential(*layers)
        self.token_dim = sizes[-1]

    def fit(self, statistics: Statistics) -> None:
        """Set the normalisers from a dataset's statistics."""
        for key, normalizer in zip(self.keys, self.normalizers, strict=True):
            normalizer.fit(statistics[key], key)  # type: ignore[operator]

    def forward(self, states: Mapping[str, Tensor]) -> Tensor:
        """Map raw ``(B, H, D)`` states to tokens ``(B, H, T)``."""
        parts = [normalizer(states[key]) for key, normalizer in zip(self.keys, self.normalizers, strict=True)]
        tokens_BHT: Tensor = self.net(torch.cat(parts, dim=-1))
        return tokens_BHT
