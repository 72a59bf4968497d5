"""LeRobot finds the plug-in by itself, and says what is wrong where it cannot."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from lerobot.configs import PreTrainedConfig
from lerobot.optim import LRSchedulerConfig
from lerobot.policies import get_policy_class, make_policy_config
from lerobot.robots import RobotConfig
from lerobot.utils.import_utils import register_third_party_plugins

from lerobot_policy_mode import ModeConfig
from lerobot_policy_mode.modeling_mode import ModePolicy

from ..conftest import ROOT

SOURCE = ROOT / "lerobot_policy_mode" / "src"


def test_every_registry_knows_it() -> None:
    register_third_party_plugins()
    assert PreTrainedConfig.get_choice_class("mode") is ModeConfig
    assert get_policy_class("mode") is ModePolicy
    assert make_policy_config("mode", device="cpu").type == "mode"
    assert "mode_tri_stage" in LRSchedulerConfig.get_known_choices()
    assert "mode_simulation" in RobotConfig.get_known_choices()


def test_the_distribution_is_found_by_its_name() -> None:
    """LeRobot compares the raw name: a hyphen in it, and the plug-in would not exist."""
    found = "import importlib.metadata as m; print([d.metadata['Name'] for d in m.distributions()])"
    names = subprocess.check_output([sys.executable, "-c", found], text=True)
    assert "'lerobot_policy_mode'" in names


def import_fails(*arguments: str, path: Path) -> str:
    """Import the plug-in in another process; return the last line of what it says."""
    done = subprocess.run(
        [sys.executable, *arguments, "-c", "import lerobot_policy_mode"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(path), str(SOURCE)))},
        capture_output=True,
        text=True,
        cwd=path,
    )
    assert done.returncode == 1
    return done.stderr.splitlines()[-1]


@pytest.mark.parametrize("version", ["0.5.2", "0.7.0", "1.0"])
def test_another_version_of_lerobot_is_named(tmp_path: Path, version: str) -> None:
    folder = tmp_path / f"lerobot-{version}.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: lerobot\nVersion: {version}\n")
    message = import_fails(path=tmp_path)
    assert f"needs lerobot>=0.6.1,<0.7, but lerobot {version} is installed" in message
    assert "pip install 'lerobot>=0.6.1,<0.7'" in message


def test_without_lerobot_the_way_out_is_named(tmp_path: Path) -> None:
    message = import_fails("-S", path=tmp_path)  # without the folder of installed packages
    assert "needs lerobot>=0.6.1,<0.7, which is not installed; run: pip install" in message
