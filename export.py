"""Export a checkpoint for a robot: ``uv run export.py checkpoint=… target=aoti out=…``."""

import sys
from pathlib import Path

# The folders datasets/ and kernels/ beside this file must not shadow the libraries of those names.
sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() != Path(__file__).resolve().parent]

from mode_policy.apps.export import main  # noqa: E402

if __name__ == "__main__":
    main()
