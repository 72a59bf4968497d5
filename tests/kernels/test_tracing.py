"""What PyTorch's compiler sees of the operations on a GPU: whole graphs with the kernels in them.

Fake tensors stand for those of a GPU, so all of it runs without one, up to the graphs that Inductor would
get. Only the autograd engine needs a device; that part is tested in `on_device/test_grouped_experts.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule

pytest.importorskip("triton")

from mode_kernels import expert_mlp, experts, launch
from mode_kernels.grouped import grouped_experts_backward
from tests.kernels.ahead_of_time import target
from tests.kernels.full_size import inference, training

pytestmark = pytest.mark.skipif(launch.INTERPRETED, reason="the interpreter's kernels cannot be traced")

FORWARD = ["_group_kernel", "_up_kernel", "_rows_kernel", "_combine_kernel"]
BACKWARD = ["_hidden_kernel", "_rows_kernel", "_outer_kernel", "_outer_kernel", "_combine_kernel"]
# Arguments that the kernels write; every other one must be left as it was.
WRITTEN = {
    "_group_kernel": {"slot_ptr", "place_ptr", "start_ptr"},
    "_up_kernel": {"h_ptr", "hidden_ptr"},
    "_hidden_kernel": {"dh_ptr", "weighted_ptr", "droute_ptr"},
    "_outer_kernel": {"out_ptr", "sum_ptr"},
    "_attention_kernel": {"part_ptr", "counter_ptr", "out_ptr"},
    "_expert_up_kernel": {"hidden_ptr", "inverse_ptr"},
    "_expert_down_kernel": {"part_ptr", "counter_ptr", "out_ptr"},
    "_step_tail_kernel": {"x_next_ptr", "tokens_ptr"},
}


@pytest.fixture(autouse=True)
def _hopper(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    yes = torch.compiler.assume_constant_result(lambda device, dtype: True)
    monkeypatch.setattr(experts, "_kernels_run", yes)
    monkeypatch.setattr("mode_kernels.tile_table.architecture", lambda device: "sm_90")
    torch._dynamo.reset()
    with target(90), FakeTensorMode(), torch.no_grad():
        yield
    torch._dynamo.reset()


def kernels(graph: GraphModule) -> list[str]:
    """Names of the kernels that a graph launches; checks that the compiler knows what they write."""
    table = torch._higher_order_ops.triton_kernel_wrap.kernel_side_table
    names = []
    for node in graph.graph.nodes:
        if "triton_kernel_wrapper" in str(node.target):
            kernel: Any = table.get_kernel(node.kwargs["kernel_idx"])
            while hasattr(kernel, "configs"):  # warps and stages are a layer around it
                kernel = kernel.fn
            names.append(kernel.__name__)
            given = {name for name, value in node.kwargs["kwargs"].items() if value is not None}
            expected = WRITTEN.get(kernel.__name__, {"out_ptr"}) & given
            assert set(node.kwargs["tensors_to_clone"]) == expected
    return names


def trace(function: Any, *arguments: Any, **options: Any) -> tuple[Any, list[str]]:
    """Compile into one graph and run it; return the result and the kernels."""
    seen: list[str] = []

    def keep(graph: GraphModule, inputs: list[Tensor]) -> GraphModule:
        seen.extend(kernels(graph))
        return graph

    compiled = torch.compile(function, fullgraph=True, backend=aot_autograd(fw_compiler=keep))
    return compiled(*arguments, **options), seen


def test_forward_is_one_graph():
    arguments = next(iter(training(8, torch.bfloat16).values()))[0]
    out, seen = trace(lambda *a: expert_mlp(*a) * 2, *arguments)
    assert seen == FORWARD
    assert out.shape == (8, 14, 1024)


def test_backward_is_one_graph():
    arguments = training(8, torch.bfloat16)[grouped_experts_backward][0]
    gradients, seen = trace(lambda *a: grouped_experts_backward(*a), *arguments)
    assert seen == BACKWARD
    for gradient, like in zip(gradients, arguments[1:6], strict=True):
        assert (gradient.shape, gradient.dtype) == (like.shape, like.dtype)


def test_dropout_takes_the_dense_form():
    arguments = next(iter(training(8, torch.float32).values()))[0]
    assert trace(lambda *a: expert_mlp(*a, 0.1) * 2, *arguments)[1] == []


@pytest.mark.parametrize(
    "weight",
    [
        pytest.param(torch.bfloat16, id="bfloat16"),
        pytest.param(torch.int8, id="int8", marks=pytest.mark.slow),
    ],
)
def test_a_step_is_one_graph(weight):
    """As a plan calls them: with programmatic dependent launch, which tracing leaves out."""
    for operation, (arguments, options) in inference(2, weight).items():
        _, seen = trace(lambda *a, op=operation, **k: op(*a, pdl=True, **k), *arguments, **options)
        assert seen == [f"_{operation._name}_kernel"]


def test_compiled_graphs_are_cached_with_their_kernels():
    """PyTorch finds an operation's kernels by reading its source; a kernel that it misses could go stale."""
    known = torch._library.triton.get_triton_kernels_for_op
    for operation in inference(1, torch.bfloat16):
        name = operation._qualname
        assert [k.__name__ for k in known(name)] == [f"_{name.removeprefix('mode::')}_kernel"]
    for operation, expected in zip(training(1, torch.bfloat16), (FORWARD, BACKWARD), strict=True):
        assert {k.__name__ for k in known(operation._qualname)} == set(expected)
