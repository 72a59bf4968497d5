"""What only a GPU can show: early launches and replays change nothing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mode_kernels.expert_down import expert_down
from mode_kernels.expert_up import expert_up
from mode_kernels.launch import INTERPRETED, new_counter, supports_pdl
from tests.kernels.on_device.shapes import Draw

pytestmark = pytest.mark.skipif(INTERPRETED, reason="needs a GPU")

B, S, D, H, N, K, LAYERS = 1, 14, 256, 1024, 4, 2, 6


class Stack:
    """Layers of experts, one after the other."""

    def __init__(self) -> None:
        draw = Draw("cuda", torch.bfloat16)
        self.x, self.row = draw.normal(B, S, D), draw.rows(0)
        self.expert, self.route = draw.experts(1, N, K), draw.table(1, K)
        self.ups = [draw.normal(N, 2 * H, D, scale=D**-0.5) for _ in range(LAYERS)]
        self.downs = [draw.normal(N, D, H, scale=H**-0.5) for _ in range(LAYERS)]
        self.bias, self.counter = draw.table(N, 2 * H), new_counter(B * S, D, "cuda")

    def __call__(self, pdl: bool) -> Tensor:
        x = self.x
        for up, down in zip(self.ups, self.downs, strict=True):
            hidden, _ = expert_up(x, up, self.bias, self.expert, self.route, self.row, pdl=pdl)
            x = expert_down(hidden, x, down, self.expert, self.row, self.counter, pdl=pdl)
        return x


def test_early_launches_change_nothing():
    if not supports_pdl(torch.device("cuda")):
        pytest.skip("needs compute capability 9.0")
    stack = Stack()
    expected = stack(pdl=False)
    assert all(torch.equal(stack(pdl=True), expected) for _ in range(20))
    assert not stack.counter.any()


@pytest.mark.parametrize("pdl", [False, True])
def test_replays_of_a_graph_change_nothing(pdl):
    if pdl and not supports_pdl(torch.device("cuda")):
        pytest.skip("needs compute capability 9.0")
    stack = Stack()
    expected = stack(pdl=False)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = stack(pdl)
    for _ in range(20):
        out.zero_()
        graph.replay()
        assert torch.equal(out, expected)
