"""Train a policy and evaluate it: ``uv run train.py [task=…]``."""

import sys
from pathlib import Path

# The folders datasets/ and kernels/ beside this file must not shadow the libraries of those names.
sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() != Path(__file__).resolve().parent]

from mode_policy.apps.train import main  # noqa: E402

if __name__ == "__main__":
    main()
