"""Statistics of a dataset, and the invertible maps that they define.

Statistics are computed once from the demonstrations, stored with them, and copied into every checkpoint:
a policy never needs its dataset to be present in order to act.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from mode_policy.errors import CheckpointError, DataError
from mode_policy.types import Feature

NormalizationMode = Literal["min_max", "mean_std", "quantile", "identity"]

#: Per feature key, per statistic (``min max mean std q01 q99``), one float32 value for each dimension.
Statistics = dict[str, dict[str, np.ndarray]]

STATISTIC_NAMES = ("min", "max", "mean", "std", "q01", "q99")


def compute_statistics(arrays: Mapping[str, np.ndarray]) -> Statistics:
    """Compute per-dimension statistics over the leading axis.

    Args:
        arrays: Feature key → ``(T, D)`` in raw units.

    Raises:
        DataError: if an array is empty or holds NaN or infinite values (the first is named).
    """
    statistics: Statistics = {}
    for key, array in arrays.items():
        if len(array) == 0:
            raise DataError(f"{key!r} has no time steps; there is nothing to compute statistics from")
        x = np.asarray(array, dtype=np.float64).reshape(len(array), -1)
        bad = np.argwhere(~np.isfinite(x))
        if len(bad):
            step, dim = bad[0]
            raise DataError(
                f"{key!r} is {x[step, dim]} at step {step}, dimension {dim} ({len(bad)} such values); "
                "remove or repair that episode"
            )
        q01, q99 = np.quantile(x, [0.01, 0.99], axis=0)
        values = (x.min(0), x.max(0), x.mean(0), x.std(0), q01, q99)
        statistics[key] = {n: v.astype(np.float32) for n, v in zip(STATISTIC_NAMES, values, strict=True)}
    return statistics


def expand_angles(x: Tensor, angles: Iterable[int]) -> Tensor:
    """Replace each angular dimension of ``x`` (..., D) by its cosine and append its sine at the end."""
    angles = list(angles)
    if not angles:
        return x
    # One by one: a list of indices would be copied to the device, which then cannot capture a graph.
    theta = torch.stack([x[..., i] for i in angles], dim=-1)
    cosines = theta.cos()
    x = x.clone()
    for k, i in enumerate(angles):
        x[..., i] = cosines[..., k]
    return torch.cat([x, theta.sin()], dim=-1)


class Normalizer(nn.Module):
    """An affine map for one feature, ``y = (x − offset) / scale``, held in buffers.

    ``min_max`` and ``quantile`` map [min, max] or [q01, q99] to [−1, 1]; ``mean_std`` to zero mean and unit
    variance. A dimension that never varies in the data is only shifted: dividing by its range would
    amplify noise that the policy has never seen. Angles become cosine and sine, which need no scaling.
    """

    offset: Tensor
    scale: Tensor

    #: Below this range a dimension counts as constant, relative to the largest range of its feature.
    CONSTANT = 1e-5

    def __init__(self, feature: Feature, mode: NormalizationMode) -> None:
        super().__init__()
        self.mode = mode
        self.angles = feature.angles
        self.in_dim = feature.shape[-1]
        self.out_dim = self.in_dim + len(self.angles)
        # Derived from the statistics, which the checkpoint carries: not part of the weights.
        self.register_buffer("offset", torch.zeros(self.out_dim), persistent=False)
        self.register_buffer("scale", torch.ones(self.out_dim), persistent=False)

    def fit(self, statistics: Mapping[str, np.ndarray], key: str) -> Normalizer:
        """Set offset and scale from the statistics of feature ``key``; return self.

        Raises:
            CheckpointError: if a needed statistic is missing or has another dimension.
        """
        names = {"min_max": ("min", "max"), "quantile": ("q01", "q99"), "mean_std": ("mean", "std")}
        if self.mode == "identity":
            return self
        a, b = (self._statistic(statistics, name, key) for name in names[self.mode])
        if self.mode == "mean_std":
            offset, scale = a, b
        else:
            offset, scale = (a + b) / 2, (b - a) / 2
        scale = torch.where(
            scale > self.CONSTANT * scale.max().clamp_min(1e-12), scale, torch.ones_like(scale)
        )
        offset[list(self.angles)] = 0.0
        scale[list(self.angles)] = 1.0
        self.offset[: self.in_dim] = offset
        self.scale[: self.in_dim] = scale
        return self

    def _statistic(self, statistics: Mapping[str, np.ndarray], name: str, key: str) -> Tensor:
        if name not in statistics:
            raise CheckpointError(
                f"statistics of {key!r} lack {name!r}, which {self.mode!r} normalisation needs"
            )
        value = torch.as_tensor(np.asarray(statistics[name]), dtype=torch.float32).clone()
        if value.shape != (self.in_dim,):
            raise CheckpointError(
                f"statistics of {key!r} have {tuple(value.shape)} values, the feature has "
                f"{self.in_dim} dimensions"
            )
        return value

    def forward(self, x: Tensor) -> Tensor:
        """Map raw ``(..., D)`` to normalised ``(..., D + number of angles)``."""
        return (expand_angles(x, self.angles) - self.offset) / self.scale

    def inverse(self, y: Tensor) -> Tensor:
        """Map normalised ``(..., D)`` to raw; defined for features without angles."""
        if self.angles:
            raise ValueError("a normaliser that expands angles cannot be inverted")
        return y * self.scale + self.offset


def statistics_to_json(statistics: Statistics) -> dict[str, Any]:
    """Return nested lists; float32 values survive the round trip exactly."""
    return {k: {n: [float(x) for x in v] for n, v in s.items()} for k, s in statistics.items()}


def statistics_from_json(data: Mapping[str, Any]) -> Statistics:
    """Invert `statistics_to_json`."""
    return {k: {n: np.asarray(v, dtype=np.float32) for n, v in s.items()} for k, s in data.items()}
