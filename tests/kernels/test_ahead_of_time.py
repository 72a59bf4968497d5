"""Every kernel compiles for every GPU, at full size, with the tiles of its table, and fits.

Fitting means: nothing is spilled from registers to memory, and shared memory is within the chip's limit.
A few combinations run by default; all of them with ``-m slow``.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

pytest.importorskip("triton")

from mode_kernels import launch
from tests.kernels.ahead_of_time import SHARED_KIB, Compiled, Launch, build, record
from tests.kernels.full_size import inference, training

pytestmark = pytest.mark.skipif(launch.INTERPRETED, reason="the interpreter compiles nothing")

BATCHES = (1, 2, 4, 8, 64)  # each has tiles of its own in a table
TYPES = (torch.bfloat16, torch.float16, torch.float32, torch.int8, torch.float8_e4m3fn)
SMALL_CHECK = {80: "expert_up", 87: "attention", 89: "norm_linear", 100: "expert_down", 120: "step_tail"}


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all, so that what was compiled once is reused."""
    return tmp_path_factory.mktemp("triton")


def launches(monkeypatch: pytest.MonkeyPatch, table: str, cases: dict) -> list[Launch]:
    with monkeypatch.context() as patch:
        return [
            launch
            for operation, (arguments, options) in cases.items()
            for launch in record(patch, table, operation, *arguments, **options)
        ]


def assert_fits(compiled: Compiled, capability: int, about: str) -> None:
    assert compiled.spilled == 0, f"{compiled.name} {about}: {compiled.spilled} bytes spilled"
    assert compiled.shared_kib <= SHARED_KIB[capability], (
        f"{compiled.name} {about}: {compiled.shared_kib} KiB"
    )


def check_inference(
    monkeypatch, folder: Path, capability: int, weight, batch: int, only="", table="", activation=None
) -> None:
    with FakeTensorMode():
        cases = inference(batch, weight, activation)
        recorded = launches(monkeypatch, table or f"sm_{capability}", cases)
    for entry in recorded:
        if only in entry.kernel.__name__:
            for pdl in (False, True) if capability >= 90 else (False,):
                compiled = build(entry, capability, folder, pdl)
                assert_fits(compiled, capability, f"sm_{capability} {weight} batch {batch} pdl {pdl}")
                # The kernel before is waited for if and only if this one may start early.
                assert ("griddepcontrol.wait" in compiled.ptx) == pdl
                prefetches = pdl and "step_tail" not in compiled.name
                assert ("prefetch.global.L2" in compiled.ptx) == prefetches


def check_training(monkeypatch, folder: Path, capability: int, dtype) -> None:
    with FakeTensorMode():
        recorded = launches(monkeypatch, f"sm_{capability}", training(512, dtype))
    assert len(recorded) == 9
    for entry in recorded:
        assert_fits(build(entry, capability, folder), capability, f"sm_{capability} {dtype} training")


def test_hopper(monkeypatch, folder):
    check_inference(monkeypatch, folder, 90, torch.bfloat16, 1)


@pytest.mark.parametrize(("capability", "kernel"), SMALL_CHECK.items())
def test_one_kernel_of_each_other_gpu(capability, kernel, monkeypatch, folder):
    check_inference(monkeypatch, folder, capability, torch.bfloat16, 1, kernel)


def test_a_tile_that_does_not_fit_is_noticed(monkeypatch, folder):
    """Negative control: Hopper's tiles on a GPU with less shared memory, and one that spills."""
    with FakeTensorMode():
        cases = inference(1, torch.bfloat16)
        up = launches(monkeypatch, "sm_90", {k: v for k, v in cases.items() if "expert_up" in str(k)})[0]
    with pytest.raises(AssertionError, match="KiB"):
        assert_fits(build(up, 89, folder), 89, "")
    huge = up._replace(options=up.options | {"BLOCK_M": 128, "BLOCK_N": 256, "BLOCK_K": 32, "num_stages": 2})
    with pytest.raises(AssertionError, match="bytes spilled"):
        assert_fits(build(huge, 80, folder), 80, "")


@pytest.mark.slow
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("weight", TYPES, ids=lambda t: str(t).removeprefix("torch."))
@pytest.mark.parametrize("capability", SHARED_KIB)
def test_inference_everywhere(capability, weight, batch, monkeypatch, folder):
    if weight is torch.float8_e4m3fn and capability < 89:
        pytest.skip("float8 needs compute capability 8.9")
    check_inference(monkeypatch, folder, capability, weight, batch)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", TYPES[:3], ids=lambda t: str(t).removeprefix("torch."))
@pytest.mark.parametrize("capability", SHARED_KIB)
def test_training_everywhere(capability, dtype, monkeypatch, folder):
    check_training(monkeypatch, folder, capability, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("weight", [torch.bfloat16, torch.int8], ids=["bfloat16", "int8"])
@pytest.mark.parametrize("capability", SHARED_KIB)
def test_a_float32_stream(capability, weight, monkeypatch, folder):
    """Small weights beside a residual stream in full precision."""
    for batch in BATCHES:
        check_inference(monkeypatch, folder, capability, weight, batch, activation=torch.float32)


@pytest.mark.slow
@pytest.mark.parametrize("weight", [torch.bfloat16, torch.float32, torch.int8], ids=["16", "32", "8"])
@pytest.mark.parametrize("capability", [80, 120])  # the oldest, and the one with the least shared memory
def test_the_default_table(capability, weight, monkeypatch, folder):
    for batch in BATCHES:
        check_inference(monkeypatch, folder, capability, weight, batch, table="default")


@pytest.mark.slow
@pytest.mark.parametrize("capability", SHARED_KIB)
def test_tensor_cores_for_float32(capability, monkeypatch, folder):
    """TF32 is another code path of the compiler than exact float32."""
    monkeypatch.setattr("mode_kernels.launch.dot_precision", lambda: "tf32")
    for module in ("grouped_forward", "grouped_backward"):
        monkeypatch.setattr(f"mode_kernels.{module}.dot_precision", lambda: "tf32")
    check_training(monkeypatch, folder, capability, torch.float32)
    for batch in BATCHES:
        check_inference(monkeypatch, folder, capability, torch.float32, batch)
