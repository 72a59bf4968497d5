"""Serve a checkpoint to robots: ``uv run serve.py checkpoint=… port=8000``."""

import sys
from pathlib import Path

# The folders datasets/ and kernels/ beside this file must not shadow the libraries of those names.
sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() != Path(__file__).resolve().parent]

from mode_policy.apps.serve import main  # noqa: E402

if __name__ == "__main__":
    main()
