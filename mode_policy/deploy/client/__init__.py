"""A light client of policy servers: NumPy, msgpack and websockets, no torch and no model.

This folder is also the distribution ``mode-policy-client``, whose package is ``mode_client``; so it imports
nothing of ours and runs on older Pythons.

::

    with PolicyClient("ws://127.0.0.1:8000") as client:
        answer = client.infer({"observation.state": state, "prompt": "push the T"})
        answer["actions"]  # (chunk, action dimensions), raw units
"""

from .connection import ConnectionLostError, PolicyClient, RefusedError
from .wire import WireError, pack, unpack

__all__ = ["ConnectionLostError", "PolicyClient", "RefusedError", "WireError", "pack", "unpack"]
