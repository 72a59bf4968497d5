"""Two hosts train as one: network namespaces with a cable between them, each with its own torchrun."""

import os
import shutil
import subprocess
import sys
import uuid

import pytest

from tests.conftest import ROOT
from tests.training.shared_run import make
from tests.training.test_processes import difference

pytestmark = pytest.mark.slow


def ip(*arguments):
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


@pytest.fixture
def hosts():
    """Names of two network namespaces that reach each other as 10.77.0.1 and 10.77.0.2."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("needs root and iproute2 (apt-get install iproute2)")
    tag = uuid.uuid4().hex[:6]
    names = [f"mode-{tag}-{i}" for i in (1, 2)]
    try:
        for name in names:
            ip("netns", "add", name)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespaces here: {error.stderr.strip()}")
    try:
        ip(
            "link",
            "add",
            f"m{tag}1",
            "netns",
            names[0],
            "type",
            "veth",
            "peer",
            f"m{tag}2",
            "netns",
            names[1],
        )
        for i, name in enumerate(names, start=1):
            ip("-n", name, "address", "add", f"10.77.0.{i}/24", "dev", f"m{tag}{i}")
            for device in (f"m{tag}{i}", "lo"):
                ip("-n", name, "link", "set", device, "up")
        yield [(name, f"m{tag}{i}") for i, name in enumerate(names, start=1)]
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], check=False)


@pytest.mark.parametrize("sharding", ["none", "full"])
def test_two_hosts_train_what_one_process_does(hosts, tmp_path, sharding):
    launcher = ("torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", "--master-addr=10.77.0.1")
    running = [
        subprocess.Popen(
            [
                *("ip", "netns", "exec", name, sys.executable, "-m", *launcher, "--master-port=29511"),
                *(f"--node-rank={rank}", "-m", "tests.training.shared_run", str(tmp_path / "hosts")),
                f"sharding={sharding}",
            ],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": device},
        )
        for rank, (name, device) in enumerate(hosts)
    ]
    try:
        for process in running:
            output, _ = process.communicate(timeout=600)
            assert process.returncode == 0, output
    finally:
        for process in running:
            process.kill()
    make(tmp_path / "one").run()
    assert difference(tmp_path / "one", tmp_path / "hosts") < 1e-6
