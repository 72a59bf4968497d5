"""What ``mode-bench kernels`` times against each other computes the same."""

from __future__ import annotations

import pytest
import torch

from mode_policy.apps.bench import kernel_cases

SMALL = {"B": 2, "S": 6, "D": 32, "A": 2, "H": 32, "N": 4, "K": 2, "C": 4, "action": 3}


@pytest.mark.parametrize("weight", [torch.float32, torch.int8], ids=["float32", "int8"])
@pytest.mark.parametrize("kernel", ["norm_linear", "attention", "expert_up", "expert_down", "step_tail"])
def test_ours_equals_plain(kernel, weight, device):
    if kernel == "step_tail" and weight == torch.int8:
        pytest.skip("its weights are never quantised")
    case = kernel_cases.cases(kernel_cases.Size(**SMALL), weight, device)[kernel]()
    assert case.sets >= 2
    for i in (0, case.sets - 1):
        error = kernel_cases.largest_error(case.ours(i), case.plain(*case.inputs(i)))
        assert error < (1e-5 if weight == torch.float32 else 3e-2)
    assert (
        kernel_cases.largest_error(case.ours(0), case.plain(*case.inputs(1))) > 0.1 or kernel == "step_tail"
    )
