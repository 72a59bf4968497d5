"""The authors' network, imported from a checkout of their repository."""

import importlib.util
from pathlib import Path
from types import ModuleType

from mode_policy.errors import ConfigError

NETWORK = "mode/models/networks/modedit.py"


def authors_module(folder: Path) -> ModuleType:
    """Import the file of their network; it needs nothing else of their repository.

    Raises:
        ConfigError: if the folder is no checkout of it, or a package is missing that it needs.
    """
    path = folder.expanduser() / NETWORK
    if not path.is_file():
        raise ConfigError(
            f"--authors {folder}: there is no {NETWORK}; give a checkout of the authors' repository"
        )
    spec = importlib.util.spec_from_file_location("authors", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"the authors' network needs {error.name!r}, which is not installed: uv pip install {error.name}"
        ) from error
    return module
