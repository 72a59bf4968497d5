from __future__ import annotations

import subprocess
import sys


def test_evaluation_needs_no_simulator_and_no_display() -> None:
    """Reports are made on machines that have neither; pyplot would keep figures alive and pick a window."""
    code = (
        "import sys, mode_policy.evaluation\n"
        "unwanted = {'gymnasium', 'mujoco', 'mode_envs', 'mode_datasets', 'matplotlib.pyplot', 'imageio'}\n"
        "print(sorted(unwanted & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
