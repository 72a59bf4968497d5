"""LIBERO's published initial states, read without executing what a pickle may hold.

Each task has a file ``<task>.pruned_init``, written by PyTorch: a zip archive whose ``data.pkl`` is a pickled
NumPy array. Unpickling can call any function that the file names; here it can name four.
"""

from __future__ import annotations

import _codecs
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from mode_policy.errors import SimulatorError

# What rebuilding an array of numbers takes, under the names that NumPy 1 wrote.
_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): np._core.multiarray._reconstruct,  # type: ignore[attr-defined]
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _codecs.encode,
}


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which no array needs")
        return _ALLOWED[module, name]


def load_initial_states(path: Path) -> np.ndarray:
    """Read the initial states of a task.

    Returns:
        Float64 ``(N, 1 + nq + nv)``: time (s), positions and velocities of MuJoCo's state.

    Raises:
        SimulatorError: if the file is missing, damaged or holds anything but an array of numbers.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            name = next((n for n in archive.namelist() if n.endswith("/data.pkl")), None)
            if name is None:
                raise pickle.UnpicklingError("there is no data.pkl in it")
            with archive.open(name) as file:
                states = _ArrayUnpickler(file).load()
    except FileNotFoundError:
        raise SimulatorError(f"there are no initial states at {path}; reinstall hf-libero") from None
    except (zipfile.BadZipFile, pickle.UnpicklingError, EOFError, ValueError, TypeError) as error:
        raise SimulatorError(
            f"the initial states in {path} cannot be read ({error}); reinstall hf-libero"
        ) from error
    if not isinstance(states, np.ndarray) or states.ndim != 2 or states.dtype != np.float64:
        raise SimulatorError(f"{path} does not hold initial states; reinstall hf-libero")
    return states
