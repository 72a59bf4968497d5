"""Acts by an export in a fresh interpreter, and prints which parts of the package that took."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

CODE = """
import sys
import torch
from mode_policy.export.runtime import load
from mode_policy.types import STATE, Observation

exported = load(sys.argv[1])
actions = exported.act(Observation(states={STATE: torch.zeros(1, 1, 3)}), instruction="go left")
assert actions.isfinite().all() and tuple(actions.shape) == exported.manifest.output.shape
rooms = ("apps", "training", "evaluation", "nn", "policy", "checkpoint", "inference", "encoders.vision")
print(sorted(m for m in sys.modules if m.startswith(tuple(f"mode_policy.{room}" for room in rooms))
             and m != "mode_policy.encoders.vision_config"))
print(sorted({"hydra", "mode_envs", "mode_datasets", "mode_kernels"} & set(sys.modules)))
"""


def parts_in_use(export: Path) -> list[str]:
    """Return the two printed lists."""
    done = subprocess.run([sys.executable, "-c", CODE, str(export)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()
