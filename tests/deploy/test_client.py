"""The light client: alone, lost and found again."""

import ast
import shutil
import socket
import subprocess
import sys
import threading

import numpy as np
import pytest

from mode_policy.deploy.client import ConnectionLostError, PolicyClient, RefusedError
from tests.conftest import ROOT
from tests.deploy.conftest import CHUNK, request
from tests.deploy.conftest import Running as Server

CLIENT = ROOT / "mode_policy" / "deploy" / "client"

# A machine without torch and most of what we need: importing any of it raises.
WITHOUT = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "hydra", "pydantic", "zarr", "gymnasium", "omegaconf", "lerobot"}:
            raise ModuleNotFoundError(f"No module named {name!r}")

sys.meta_path.insert(0, Absent())
"""


def test_it_needs_no_torch(serve):
    server = serve()
    code = WITHOUT + (
        "import numpy as np\n"
        "from mode_policy.deploy.client import PolicyClient\n"
        f"with PolicyClient({server.address!r}) as client:\n"
        "    answer = client.infer({'observation.state': np.zeros(3, np.float32), 'prompt': 'go left'})\n"
        "    print(answer['actions'].shape, 'torch' in sys.modules)\n"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == f"({CHUNK}, 2) False\n"


def test_the_barrier_of_that_test_holds():
    """Negative control."""
    code = WITHOUT + "import mode_policy.policy"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "No module named 'torch'" in done.stderr


def test_it_imports_nothing_of_ours_and_runs_on_older_pythons():
    for path in CLIENT.glob("*.py"):
        tree = ast.parse(path.read_text(), feature_version=(3, 10))
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                assert not (node.module or "").startswith("mode_"), f"{path.name} imports {node.module}"


@pytest.mark.slow
def test_its_own_distribution_installs_alone(tmp_path, serve):
    server = serve()
    dist, venv = tmp_path / "dist", tmp_path / "venv"
    subprocess.run(["uv", "build", "--wheel", "--out-dir", dist, "client"], check=True, cwd=ROOT)
    shutil.rmtree(ROOT / "client" / "build", ignore_errors=True)
    (wheel,) = dist.glob("mode_policy_client-*.whl")
    subprocess.run(["uv", "venv", "--python", sys.executable, venv], check=True, cwd=ROOT)
    python = venv / "bin" / "python"
    subprocess.run(["uv", "pip", "install", "--python", python, wheel], check=True, cwd=ROOT)
    code = (
        "import importlib.util, numpy as np\n"
        "from mode_client import PolicyClient\n"
        f"answer = PolicyClient({server.address!r}).infer("
        "{'observation.state': np.zeros(3, np.float32), 'prompt': 'go left'})\n"
        "print(answer['actions'].shape, importlib.util.find_spec('torch'))\n"
    )
    assert subprocess.check_output([python, "-c", code], text=True, cwd=tmp_path) == f"({CHUNK}, 2) None\n"


def test_answers_are_actions_and_timings(serve):
    with PolicyClient(serve().address) as client:
        assert client.metadata["chunk"] == CHUNK
        assert client.metadata["instructions"] == ["go left", "go right"]
        answer = client.infer(request())
        assert answer["actions"].shape == (CHUNK, 2)
        assert answer["actions"].dtype == np.float32
        assert answer["policy_timing"]["infer_ms"] > 0
        assert answer["server_timing"]["infer_ms"] >= answer["policy_timing"]["infer_ms"]
        assert "prev_total_ms" not in answer["server_timing"]
        assert client.infer(request())["server_timing"]["prev_total_ms"] > 0


def test_a_server_that_is_not_there():
    client = PolicyClient("ws://127.0.0.1:9", timeout=1)
    with pytest.raises(ConnectionLostError, match=r"no server at ws://127\.0\.0\.1:9"):
        client.infer(request())


def test_it_comes_back_to_a_server_that_came_back(serve, service):
    first = serve()
    client = PolicyClient(first.address)
    client.infer(request())
    first.close()
    with pytest.raises(ConnectionLostError):
        client.infer(request())
    second = Server(service)
    try:
        client.address = second.address
        assert client.infer(request(), retry_for=10)["actions"].shape == (CHUNK, 2)
    finally:
        client.close()
        second.close()


def test_it_waits_for_a_server_that_is_late(service):
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    started: list[Server] = []
    timer = threading.Timer(0.3, lambda: started.append(Server(service, port=port)))
    timer.start()
    with PolicyClient(f"ws://127.0.0.1:{port}") as client:
        assert client.infer(request(), retry_for=20)["actions"].shape == (CHUNK, 2)
    timer.join()
    started[0].close()


def test_an_error_is_passed_on(serve):
    client = PolicyClient(serve().address)
    with pytest.raises(RefusedError, match=r"unknown instruction 'go lefft'. Did you mean 'go left'"):
        client.infer(request("go lefft"))
    assert client.infer(request())["actions"].shape == (CHUNK, 2), "a new session is opened"
    client.close()


def test_the_distribution_is_described():
    text = (ROOT / "client" / "pyproject.toml").read_text()
    assert '"../mode_policy/deploy/client"' in text
    assert "torch" not in text.split("[project]")[1].split("dependencies")[1]
