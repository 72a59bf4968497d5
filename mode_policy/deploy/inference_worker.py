"""A policy in a process of its own: it cannot disturb the control loop, and can be lost without losing it.

The child is ``python -m mode_policy.deploy.inference_worker`` at the other end of a socket pair; messages
are those of the policy server. It ends by itself when the socket closes, so no way of dying leaves orphans
behind.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from mode_policy.deploy.client import WireError, pack, unpack
from mode_policy.deploy.endpoints import EndpointLostError
from mode_policy.errors import InferenceError, ModePolicyError

LOADING = 120.0


class ProcessEndpoint:
    """The policy of a checkpoint in a child process, started again when it died.

    Args:
        checkpoint: its folder.
        device: "cpu" or "cuda".
        weights: "ema" or "raw".
        engine: what computes (`mode_policy.inference.pool.EnginePool`).
        precision: of its large weights.
        threads: of torch in the child.
        niceness: by which the child gives way to processes of normal priority, above all to the loop, whose
            ticks would else begin late by a time slice where they meet on one core. Up to 19; 0 for none.
        timeout: seconds within which it must answer, or it counts as dead.
    """

    def __init__(
        self,
        checkpoint: str | Path,
        *,
        device: str = "cpu",
        weights: str = "ema",
        engine: str = "auto",
        precision: str = "float32",
        threads: int = 1,
        niceness: int = 5,
        timeout: float = 30.0,
    ) -> None:
        settings = {
            "checkpoint": str(checkpoint),
            "device": device,
            "weights": weights,
            "engine": engine,
            "precision": precision,
            "threads": threads,
            "niceness": niceness,
        }
        self._settings = json.dumps(settings)
        self._timeout = timeout
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._ending = threading.Lock()  # the loop closes what the thread of inference may be giving up
        self._said = tempfile.TemporaryFile()  # noqa: SIM115  # lives as long as this object

    @property
    def pid(self) -> int | None:
        """Process id of the child, if it was started."""
        return self._process.pid if self._process else None

    def open(self) -> Mapping[str, Any]:
        """Start the child and wait until its policy is warm.

        Raises:
            EndpointLostError: if it dies meanwhile.
            InferenceError: if the checkpoint cannot be used.
        """
        self._kill()
        ours, theirs = socket.socketpair()
        self._said.seek(0)  # the child writes where this file stands
        self._said.truncate()
        with theirs:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-P",  # the working directory may hold folders named as libraries
                    "-m",
                    "mode_policy.deploy.inference_worker",
                    str(theirs.fileno()),
                    self._settings,
                ],
                stdin=subprocess.DEVNULL,
                stdout=self._said,
                stderr=self._said,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(p or "." for p in sys.path)},
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C is for the control loop, which then ends this one
            )
        self._connection = Connection(ours.detach())
        return self._receive(LOADING)

    def infer(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """Ask the child.

        Raises:
            EndpointLostError: if it is gone, or silent for too long.
            InferenceError: if it refuses the request.
        """
        if self._connection is None:
            raise EndpointLostError("the inference process is not running")
        try:
            self._connection.send_bytes(pack(dict(request)))
        except WireError as error:
            raise InferenceError(str(error)) from error
        except (OSError, ValueError) as error:
            raise self._death("ended") from error
        return self._receive(self._timeout)

    def close(self) -> None:
        """End the child at once."""
        self._kill()

    def _receive(self, timeout: float) -> Mapping[str, Any]:
        assert self._connection is not None
        try:
            if not self._connection.poll(timeout):
                raise self._death(f"did not answer within {timeout:g} s")
            answer = unpack(self._connection.recv_bytes())
        except (OSError, EOFError, WireError) as error:
            raise self._death("ended") from error
        if not isinstance(answer, dict) or "error" in answer:
            raise InferenceError(str(answer["error"]) if isinstance(answer, dict) else "no answer")
        return answer

    def _death(self, how: str) -> EndpointLostError:
        pid, code = self.pid, self._kill()
        self._said.seek(0)
        said = self._said.read().decode(errors="replace").strip()[-2000:]
        return EndpointLostError(
            f"inference process {pid} {how} (exit code {code}); it said: {said or 'nothing'}"
        )

    def _kill(self) -> int | None:
        process = self._process
        if process is None:
            return None
        with self._ending:
            process.kill()
            code = process.wait()
            if self._connection is not None and not self._connection.closed:
                self._connection.close()
        return code


def main() -> None:
    """Answer requests until the parent closes its end."""
    connection = Connection(int(sys.argv[1]))
    settings = json.loads(sys.argv[2])
    os.nice(settings.pop("niceness"))  # before there are threads: each has its own, and inherits this
    import torch

    from mode_policy.deploy.policy_service import LocalEndpoint, load_service

    torch.set_num_threads(settings.pop("threads"))
    try:
        service = load_service(settings.pop("checkpoint"), **settings)
        endpoint = LocalEndpoint(service)
        connection.send_bytes(pack(dict(endpoint.open())))
    except ModePolicyError as error:
        connection.send_bytes(pack({"error": str(error)}))
        return
    while True:
        try:
            request = unpack(connection.recv_bytes())
        except (EOFError, ConnectionError):
            return
        try:
            answer = dict(endpoint.infer(request))
        except InferenceError as error:
            answer = {"error": str(error)}
        connection.send_bytes(pack(answer))


if __name__ == "__main__":
    main()
