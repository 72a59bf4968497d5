"""Fixtures for every test."""

from __future__ import annotations

import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _same_draws() -> None:
    """A test draws the same numbers alone and after others."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Data that is not part of the repository."""
    path = Path(os.environ.get("MODE_SHARED", ROOT.parent / "shared"))
    if not path.is_dir():
        pytest.skip(f"there is no {path}; set MODE_SHARED to the folder that holds data/")
    return path.resolve()
