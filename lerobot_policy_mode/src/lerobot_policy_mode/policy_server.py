"""LeRobot's asynchronous policy server with MoDE among its policies.

The server of LeRobot 0.6 neither looks for plug-ins nor serves other policies than those of a list, and it
unpickles whatever it is sent. This is that server with ``mode`` on the list, and with an unpickler that
builds nothing but the messages of LeRobot's client. Its clients are LeRobot's own.
"""

from __future__ import annotations

import io
import logging
import pickle
from concurrent import futures
from types import SimpleNamespace
from typing import Any

from mode_policy.errors import ConfigError

#: What the messages of LeRobot's ``RobotClient`` consist of: two dataclasses, numbers, texts and arrays.
ALLOWED = {
    ("lerobot.async_inference.helpers", "RemotePolicyConfig"),
    ("lerobot.async_inference.helpers", "TimedObservation"),
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy._core.numeric", "_frombuffer"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy.core.numeric", "_frombuffer"),
}


class MessageUnpickler(pickle.Unpickler):
    """Refuses to look up anything that messages do not consist of, and so cannot be made to run code."""

    def find_class(self, module: str, name: str) -> Any:
        """Return one of `ALLOWED`.

        Raises:
            UnpicklingError: for anything else.
        """
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"a message may not contain {module}.{name}")
        return super().find_class(module, name)


def loads(data: bytes) -> Any:
    """Unpickle a message of LeRobot's client.

    Raises:
        UnpicklingError: if it contains anything else.
    """
    return MessageUnpickler(io.BytesIO(data)).load()


def serve(host: str, port: int, *, fps: int, inference_latency: float, obs_queue_timeout: float) -> None:
    """Serve until the process is ended.

    Args:
        host: address to listen at; whoever can reach it can use the server.
        port: to listen at; 0 for a free one. It is logged.
        fps: control rate of the robots.
        inference_latency: seconds that an answer takes at least.
        obs_queue_timeout: seconds that a request for actions waits for an observation.

    Raises:
        ConfigError: if a package is missing, or the port is taken.
    """
    try:
        import grpc
        from lerobot.async_inference import constants, policy_server
        from lerobot.async_inference.configs import PolicyServerConfig
        from lerobot.transport import services_pb2_grpc
    except ImportError as error:
        raise ConfigError(
            f"the policy server needs {error.name}: pip install 'lerobot_policy_mode[server]'"
        ) from error
    if "mode" not in constants.SUPPORTED_POLICIES:
        constants.SUPPORTED_POLICIES.append("mode")
    policy_server.pickle = SimpleNamespace(loads=loads, dumps=pickle.dumps)
    config = PolicyServerConfig(
        host=host,
        port=port or 8080,
        fps=fps,
        inference_latency=inference_latency,
        obs_queue_timeout=obs_queue_timeout,
    )
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=4))
    services_pb2_grpc.add_AsyncInferenceServicer_to_server(policy_server.PolicyServer(config), server)
    try:
        bound = server.add_insecure_port(f"{host}:{port}")
    except RuntimeError as error:
        raise ConfigError(
            f"the server cannot listen at {host}:{port}: {error}; give another --port"
        ) from error
    server.start()
    logging.getLogger("policy_server").info("serving at %s:%d", host, bound)
    server.wait_for_termination()
