"""Importing LIBERO and robosuite without their side effects, and building a scene.

Left alone, LIBERO asks on standard input where data shall go and writes to the home folder; robosuite 1.4
writes to /tmp/robosuite.log, sets ``MUJOCO_GL`` and needs OpenGL to be imported. None of that happens here.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from mode_envs.contract import Size
from mode_envs.libero_assets import find_assets, package_folder
from mode_envs.registration import require
from mode_envs.renderer import Renderer
from mode_policy.errors import SimulatorError

_COLLISION_GROUP = 0  # of geometries
_ENDLESS = 10**9  # control steps; truncation is TimeLimit's business


class Scene:
    """A compiled model, shared by all environments of this process whose scenes are the same.

    Compiling takes seconds and hundreds of megabytes, nearly all of it for textures.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.users = 0
        self._renderer: Renderer | None = None

    def render(self, positions: np.ndarray, camera: str, size: Size) -> np.ndarray:
        """Return what a camera sees of a configuration ``(nq,)``, uint8 ``(*size, 3)``, upright RGB."""
        if self._renderer is None:
            self._renderer = Renderer(self.model, size, hidden=(_COLLISION_GROUP,))
        return self._renderer.render(self._renderer.posed(positions), camera, size)

    def close(self) -> None:
        """Free what draws."""
        if self._renderer is not None:
            self._renderer.close()


_SCENES: dict[str, Scene] = {}  # by the XML text that they are compiled from


def release(scene: Scene) -> None:
    """Note that an environment has done with its scene, which goes when another one is compiled."""
    scene.users -= 1


def build(folder: str, task: str) -> tuple[Any, Scene]:
    """Build the scene of a task.

    Args:
        folder: LIBERO's name of the suite, e.g. ``"libero_object"``.
        task: LIBERO's name of the task.

    Returns:
        Robosuite's environment, which draws nothing itself, and its scene, to be given back with `release`.

    Raises:
        SimulatorError: if LIBERO or its assets are missing, incomplete or damaged.
    """
    envs = _libero()
    path = str(package_folder() / "bddl_files" / folder / f"{task}.bddl")
    problem = importlib.import_module("libero.libero.envs.bddl_utils").get_problem_info(path)["problem_name"]
    controller = importlib.import_module("robosuite").load_controller_config(default_controller="OSC_POSE")
    try:
        with seeded(0), _shared_models() as scenes:
            env = envs.TASK_MAPPING[problem](
                path,
                robots=["Panda"],
                controller_configs=controller,
                initialization_noise=None,
                use_camera_obs=False,
                has_renderer=False,
                has_offscreen_renderer=False,
                control_freq=20,
                horizon=_ENDLESS,
                ignore_done=True,
                hard_reset=False,  # robosuite would compile the model again in each reset
            )
    except (OSError, ValueError) as error:  # MuJoCo's answer to a damaged mesh is a ValueError
        raise SimulatorError(
            f"the scene of {task!r} cannot be built: {error}. If a file is damaged, install the assets "
            "again; mode-doctor says how"
        ) from error
    for observable in env._observables.values():
        observable.set_enabled(False)  # computed 25 times a step, and never asked for
    (scene,) = scenes
    scene.users += 1
    return env, scene


@contextmanager
def _shared_models() -> Iterator[list[Scene]]:
    """Let robosuite compile a scene only where that was not done; yield the list of those it asks for."""
    import mujoco
    from robosuite.utils.binding_utils import MjSim

    asked: list[Scene] = []

    def from_xml_string(xml: str) -> Any:
        if xml not in _SCENES:
            for text in [text for text, scene in _SCENES.items() if not scene.users]:
                _SCENES.pop(text).close()
            _SCENES[xml] = Scene(mujoco.MjModel.from_xml_string(xml))
        asked.append(_SCENES[xml])
        return MjSim(asked[-1].model)

    original = MjSim.__dict__["from_xml_string"]
    MjSim.from_xml_string = staticmethod(from_xml_string)
    try:
        yield asked
    finally:
        MjSim.from_xml_string = original


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Let NumPy's global generator, which LIBERO draws from, start from a seed; restore it afterwards."""
    before = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(before)


@functools.cache
def _libero() -> ModuleType:
    """Import LIBERO's environments."""
    package_folder()
    assets = find_assets()
    with _environment(), tempfile.TemporaryDirectory() as configuration, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of their own deprecated habits
        # The prompt comes if LIBERO finds no configuration file; ours is empty and gone after the import.
        Path(configuration, "config.yaml").touch()
        os.environ["LIBERO_CONFIG_PATH"] = configuration
        if "robosuite" not in sys.modules:
            _configure_robosuite()
        libero = require("libero.libero", "libero")
        libero.__dict__["_assets_path_cache"] = str(assets)
        return require("libero.libero.envs", "libero")


def _configure_robosuite() -> None:
    """Load robosuite's settings before robosuite, which acts on them while it is imported."""
    spec = importlib.util.find_spec("robosuite")
    if spec is None or not spec.submodule_search_locations:
        return  # `require` says so
    name = "robosuite.macros"
    path = Path(spec.submodule_search_locations[0], "macros.py")
    settings = importlib.util.spec_from_file_location(name, path)
    assert settings is not None
    assert settings.loader is not None
    macros: Any = importlib.util.module_from_spec(settings)
    settings.loader.exec_module(macros)
    macros.MUJOCO_GPU_RENDERING = False
    macros.FILE_LOGGING_LEVEL = None
    macros.CONSOLE_LOGGING_LEVEL = "ERROR"
    sys.modules[name] = macros


@contextmanager
def _environment() -> Iterator[None]:
    """Keep robosuite from choosing an OpenGL, and undo what the imports set."""
    before = dict(os.environ)
    os.environ["MUJOCO_GL"] = "disable"
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
