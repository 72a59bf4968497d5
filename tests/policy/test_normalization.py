"""Normalisation: round trips, constant dimensions, angles."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mode_policy.errors import CheckpointError, DataError
from mode_policy.normalization import (
    Normalizer,
    compute_statistics,
    statistics_from_json,
    statistics_to_json,
)
from mode_policy.types import Feature

DATA = hnp.arrays(np.float32, (20, 3), elements=st.floats(-1000, 1000, width=32))


@given(DATA, st.sampled_from(["min_max", "mean_std", "quantile", "identity"]))
def test_inverse_returns_the_raw_values(x, mode):
    normalizer = Normalizer(Feature(shape=(3,)), mode).fit(compute_statistics({"a": x})["a"], "a")
    back = normalizer.inverse(normalizer(torch.from_numpy(x)))
    assert torch.allclose(back, torch.from_numpy(x), rtol=1e-4, atol=1e-3)


@given(DATA)
def test_min_max_maps_the_data_into_the_unit_range(x):
    normalizer = Normalizer(Feature(shape=(3,)), "min_max").fit(compute_statistics({"a": x})["a"], "a")
    y = normalizer(torch.from_numpy(x))
    ranges = np.ptp(x, axis=0)
    varying = torch.from_numpy(ranges > 1e-3 * max(ranges.max(), 1))
    assert y.abs().max() <= 1 + 1e-3 or not varying.all()
    assert torch.isfinite(y).all()


def test_a_constant_dimension_is_only_shifted():
    x = np.stack([np.linspace(0, 1, 50), np.full(50, 7.0)], 1).astype(np.float32)
    normalizer = Normalizer(Feature(shape=(2,)), "mean_std").fit(compute_statistics({"a": x})["a"], "a")
    shifted = normalizer(torch.tensor([[0.5, 7.25]]))
    assert shifted[0, 1].item() == pytest.approx(0.25)


def test_angles_become_cosine_and_sine():
    x = np.array([[1.0, 0.0], [3.0, math.pi / 2]], np.float32)
    normalizer = Normalizer(Feature(shape=(2,), angles=(1,)), "min_max").fit(
        compute_statistics({"a": x})["a"], "a"
    )
    y = normalizer(torch.from_numpy(x))
    torch.testing.assert_close(y, torch.tensor([[-1.0, 1.0, 0.0], [1.0, 0.0, 1.0]]), atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="cannot be inverted"):
        normalizer.inverse(y)


def test_statistics_survive_json_exactly():
    statistics = compute_statistics({"a": np.random.default_rng(0).normal(size=(30, 2)).astype(np.float32)})
    back = statistics_from_json(statistics_to_json(statistics))
    assert all(np.array_equal(back["a"][k], v) for k, v in statistics["a"].items())


def test_bad_data_is_located():
    x = np.zeros((5, 2), np.float32)
    x[3, 1] = np.nan
    with pytest.raises(DataError, match="'a' is nan at step 3, dimension 1"):
        compute_statistics({"a": x})
    with pytest.raises(DataError, match="no time steps"):
        compute_statistics({"a": x[:0]})


def test_missing_statistics_are_named():
    with pytest.raises(CheckpointError, match="lack 'q01', which 'quantile' normalisation needs"):
        Normalizer(Feature(shape=(2,)), "quantile").fit({"min": np.zeros(2), "q99": np.ones(2)}, "a")
