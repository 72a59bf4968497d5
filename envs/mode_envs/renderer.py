"""Off-screen MuJoCo pictures on whatever OpenGL a machine has.

Nothing here runs until a picture is asked for, so stepping needs no OpenGL at all.
"""

from __future__ import annotations

import atexit
import functools
import importlib
import os
import subprocess
import sys
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np

from mode_policy.errors import SimulatorError

BACKENDS = ("egl", "osmesa")
INSTALL_LINE = "apt-get install -y libegl1 libgl1-mesa-dri libosmesa6"

_PROBE_TIMEOUT = 180  # seconds; two suffice, but where many programs share the processors

#: What else MuJoCo takes for ``MUJOCO_GL``.
_SCREEN = ("glfw", "glx", "cgl", "wgl", "on", "1", "true", "enable", "enabled")
_NO_PICTURES = ("off", "0", "false", "disable", "disabled")

# A broken driver may abort the process instead of raising, so each backend is first tried in another one.
_PROBE = """
import importlib, os, sys
try:
    import mujoco
    context = importlib.import_module("mujoco." + sys.argv[1]).GLContext(64, 64)
    context.make_current()
    mujoco.MjrContext(mujoco.MjModel.from_xml_string("<mujoco/>"), mujoco.mjtFontScale.mjFONTSCALE_100)
except Exception as error:
    print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
    os._exit(1)  # before half-made contexts complain, too
"""


@functools.cache
def rendering_available() -> tuple[bool, str]:
    """Find out, in a subprocess, whether this machine can render MuJoCo scenes; the answer is kept.

    The environment variable ``MUJOCO_GL`` ("egl" or "osmesa") restricts the search to that backend. Other
    values that MuJoCo knows change nothing here.

    Returns:
        ``(True, backend)``, or ``(False, reason)`` where the reason says what to install.
    """
    asked = os.environ.get("MUJOCO_GL", "").strip().lower()
    if asked and asked not in (*BACKENDS, *_SCREEN, *_NO_PICTURES):
        return (
            False,
            f"MUJOCO_GL is {asked!r}, which MuJoCo does not know; set it to egl or osmesa, or unset it",
        )
    reasons = []
    for backend in BACKENDS if asked not in BACKENDS else (asked,):
        if (reason := try_backend(backend)) is None:
            return True, backend
        reasons.append(f"{backend}: {reason}")
    return False, f"no off-screen OpenGL ({'; '.join(reasons)}). Install one: {INSTALL_LINE}"


def try_backend(backend: str) -> str | None:
    """Find out, in a subprocess, whether MuJoCo can render with a backend; return why not, or None."""
    # The platform of PyOpenGL is fixed at its first import; let the backend under trial choose it.
    environment = {k: v for k, v in os.environ.items() if k != "PYOPENGL_PLATFORM"}
    environment["MUJOCO_GL"] = backend
    try:
        probe = subprocess.run(
            [sys.executable, "-c", _PROBE, backend],
            env=environment,
            capture_output=True,
            text=True,
            timeout=_PROBE_TIMEOUT,
        )
    except subprocess.TimeoutExpired:
        return f"no answer in {_PROBE_TIMEOUT} s"
    if probe.returncode == 0:
        return None
    return (probe.stderr.strip().splitlines() or [f"exit code {probe.returncode}"])[-1]


class Renderer:
    """Pictures of one MuJoCo model.

    Args:
        model: ``mujoco.MjModel``.
        size: Height and width of the pictures, unless another one is asked for.
        hidden: Groups of geometries that are not drawn, such as collision shapes.

    Raises:
        SimulatorError: if this machine has no off-screen OpenGL.
    """

    def __init__(self, model: Any, size: tuple[int, int], hidden: Sequence[int] = ()) -> None:
        available, backend = rendering_available()
        if not available:
            raise SimulatorError(backend)
        import mujoco

        height, width = size
        self._mujoco = mujoco
        self._model = model
        self._context = importlib.import_module(f"mujoco.{backend}").GLContext(width, height)
        self._context.make_current()
        model.vis.global_.offheight = max(model.vis.global_.offheight, height)
        model.vis.global_.offwidth = max(model.vis.global_.offwidth, width)
        self._target = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._target)
        self._size = self._largest = (height, width)
        self._scene = mujoco.MjvScene(model, maxgeom=1000)
        self._options = mujoco.MjvOption()
        for group in hidden:
            self._options.geomgroup[group] = 0
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._posed = mujoco.MjData(model)
        _OPEN.add(self)
        _close_all_at_exit()

    def posed(
        self,
        positions: np.ndarray,
        mocap_positions: np.ndarray | None = None,
        mocap_quaternions: np.ndarray | None = None,
    ) -> Any:
        """Return ``mujoco.MjData`` in which bodies, cameras and lights are where a configuration puts them.

        After a step, a simulation's own data show them where they were *before* its last integration, which
        the state that results does not tell. Drawing this instead makes pictures a function of the state. The
        object is reused by the next call.

        Args:
            positions: ``qpos``, float64 ``(nq,)``.
            mocap_positions: Of bodies that are moved from outside, ``(nmocap, 3)``.
            mocap_quaternions: ``(nmocap, 4)``.
        """
        data = self._posed
        data.qpos[:] = positions
        if mocap_positions is not None:
            data.mocap_pos[:] = mocap_positions
        if mocap_quaternions is not None:
            data.mocap_quat[:] = mocap_quaternions
        self._mujoco.mj_kinematics(self._model, data)
        self._mujoco.mj_comPos(self._model, data)
        self._mujoco.mj_camlight(self._model, data)
        return data

    def render(self, data: Any, camera: str, size: tuple[int, int] | None = None) -> np.ndarray:
        """Return what a named camera sees, uint8 ``(height, width, 3)``, first row on top."""
        mujoco = self._mujoco
        height, width = size or self._size
        self._context.make_current()
        if height > self._largest[0] or width > self._largest[1]:
            # Far cheaper than another renderer, which would load all textures again.
            self._largest = (max(height, self._largest[0]), max(width, self._largest[1]))
            mujoco.mjr_resizeOffscreen(self._largest[1], self._largest[0], self._target)
        viewport = mujoco.MjrRect(0, 0, width, height)
        self._camera.fixedcamid = self._model.camera(camera).id
        mujoco.mjv_updateScene(
            self._model,
            data,
            self._options,
            None,
            self._camera,
            mujoco.mjtCatBit.mjCAT_ALL,
            self._scene,
        )
        mujoco.mjr_render(viewport, self._scene, self._target)
        image = np.empty((height, width, 3), np.uint8)
        mujoco.mjr_readPixels(image, None, viewport, self._target)
        return image[::-1]  # OpenGL's first row is the lowest

    def close(self) -> None:
        """Free the OpenGL context; the renderer cannot be used afterwards."""
        if self in _OPEN:
            _OPEN.discard(self)
            self._context.make_current()
            self._target.free()
            del self._context  # its destructor frees it, and must not find it freed


_OPEN: weakref.WeakSet[Renderer] = weakref.WeakSet()


@functools.cache
def _close_all_at_exit() -> None:
    # Contexts must go before their driver does. MuJoCo shuts that down in an exit hook which it registered
    # when the first context was made; ours comes after it and so runs before it.
    atexit.register(_close_all)


def _close_all() -> None:
    for renderer in list(_OPEN):
        renderer.close()
