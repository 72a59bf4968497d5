"""Exports that several tests look at; they copy what they damage."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mode_policy.export.write import ExportOptions, export
from tests.export.policies import trained


@pytest.fixture(scope="session")
def weights_export(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("exports") / "weights"
    export(trained(), folder, ExportOptions(target="weights"))
    return folder


@pytest.fixture(scope="session")
def aoti_export(tmp_path_factory) -> Path:
    if shutil.which("g++") is None:
        pytest.skip("there is no C++ compiler: apt-get install g++")
    folder = tmp_path_factory.mktemp("exports") / "aoti"
    export(trained(), folder, ExportOptions(target="aoti"), origin={"about": "a toy"})
    return folder


@pytest.fixture
def damaged(weights_export, tmp_path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(weights_export, tmp_path / "export"))
