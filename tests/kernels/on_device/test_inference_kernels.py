"""Each inference kernel equals its plain form in float64, at every edge and in every type."""

from __future__ import annotations

import pytest
import torch

from mode_kernels.attention import attention
from mode_kernels.expert_down import expert_down
from mode_kernels.expert_up import expert_up
from mode_kernels.launch import new_counter
from mode_kernels.norm_linear import norm_linear
from mode_kernels.reference_inference import (
    attention_reference,
    expert_down_reference,
    expert_up_reference,
    norm_linear_reference,
    step_tail_reference,
)
from mode_kernels.step_tail import step_tail
from mode_kernels.tile_table import Tile
from tests.kernels.on_device.shapes import (
    ATTENTION,
    EXPERTS,
    LINEAR,
    Attention,
    Draw,
    Experts,
    Linear,
    assert_near,
    double,
)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def edges_and_types(edges: dict) -> pytest.MarkDecorator:
    """Every edge in float32 and the first in bfloat16; the rest takes long in the interpreter."""
    first, *_ = edges
    combinations = [
        pytest.param(
            edge,
            dtype,
            id=f"{edge}-{name}",
            marks=() if name == "float32" or (edge, name) == (first, "bfloat16") else pytest.mark.slow,
        )
        for edge in edges
        for name, dtype in DTYPES.items()
    ]
    return pytest.mark.parametrize(("edge", "dtype"), combinations)


# Samples, actions, their dimension, fixed tokens, width, whether there is a noise token.
TAIL = {
    "usual": (1, 10, 7, 3, 64, True),
    "width above one piece, no multiple of it": (2, 4, 2, 2, 300, True),
    "one action of one dimension, no noise token": (3, 1, 1, 1, 24, False),
    "no fixed tokens": (1, 5, 16, 0, 32, True),
}


def linear_case(shape: Linear, draw: Draw, groups: int = 1) -> dict:
    return {
        "x": draw.normal(shape.B, shape.S, shape.D),
        "weight_ED": draw.normal(shape.E, shape.D),
        "bias_TE": draw.table(shape.T, shape.E),
        "row_G": draw.rows(*range(shape.T - 1, shape.T - 1 - groups, -1)),
        "gain_D": draw.table(shape.D),
    }


def attention_case(shape: Attention, draw: Draw) -> dict:
    D = shape.A * shape.P
    return {
        "qkv_BSE": draw.normal(shape.B, shape.S, 3 * D),
        "x_BSD": draw.normal(shape.B, shape.S, D),
        "weight_DD": draw.normal(D, D, scale=D**-0.5),
        "gain_2P": draw.table(2, shape.P),
        "num_heads": shape.A,
        "last": shape.L,
    }


def up_case(shape: Experts, draw: Draw) -> dict:
    steps = 3
    return {
        "x": draw.normal(shape.B, shape.S, shape.D),
        "weight_NED": draw.normal(shape.N, 2 * shape.H, shape.D),
        "bias_NE": draw.table(shape.N, 2 * shape.H),
        "expert_TK": draw.experts(steps, shape.N, shape.K),
        "route_TK": draw.table(steps, shape.K),
        "row_G": draw.rows(*(2 - g % steps for g in range(shape.G))),
        "gain_D": draw.table(shape.D),
    }


def down_case(shape: Experts, draw: Draw) -> dict:
    up = up_case(shape, draw)
    return {
        "hidden": draw.normal(shape.B, shape.S, shape.K, shape.H),
        "x": up["x"],
        "weight_NDH": draw.normal(shape.N, shape.D, shape.H, scale=shape.H**-0.5),
        "expert_TK": up["expert_TK"],
        "row_G": up["row_G"],
        "inverse_R": draw.table(shape.B * shape.S),
        "gain_D": up["gain_D"],
    }


def tail_case(B: int, C: int, A: int, F: int, D: int, noise: bool, draw: Draw, step: int = 1) -> dict:
    return {
        "y_BCD": draw.normal(B, C, D),
        "x_BCA": draw.table(B, C, A),
        "coefficient_T5": draw.table(3, 5),
        "step_1": draw.rows(step),
        "gain_D": draw.table(D),
        "out_weight_AD": draw.normal(A, D),
        "out_bias_A": draw.table(A),
        "action_weight_DA": draw.normal(D, A),
        "position_CD": draw.table(C, D),
        "fixed_BFD": draw.normal(B, F, D),
        "noise_TD": draw.table(3, D) if noise else None,
    }


def tile(sizes: tuple[int, int, int], split: int = 0) -> list[int]:
    return list(Tile(*sizes, split=split, warps=4, stages=2))


def counter(x: torch.Tensor) -> torch.Tensor:
    return new_counter(x.numel() // x.shape[-1], x.shape[-1], x.device)


def in_double(case: dict) -> dict:
    return {key: double(value) for key, value in case.items()}


@edges_and_types(LINEAR)
def test_norm_linear(edge, dtype, device):
    shape = LINEAR[edge]
    case = linear_case(shape, Draw(device, dtype))
    out = norm_linear(**case, tile=tile(shape.tile))
    assert out.dtype == dtype
    assert_near(out, norm_linear_reference(**in_double(case)), dtype)


@pytest.mark.parametrize(
    "options", ["folded gain", "shift before the norm", "a row for each sample", "float32 x"]
)
def test_norm_linear_options(options, device):
    shape, draw = Linear(3, 5, 32, 48, 4), Draw(device, torch.float32)
    case = linear_case(shape, draw, groups=3 if options == "a row for each sample" else 1)
    dtype = torch.float32
    if options == "folded gain":
        case["gain_D"] = None
    elif options == "shift before the norm":
        case["shift_TD"] = draw.table(4, 32)
    elif options == "float32 x":
        dtype = torch.bfloat16
        case["weight_ED"] = case["weight_ED"].to(dtype)
    out = norm_linear(**case, tile=tile(shape.tile))
    assert out.dtype == torch.float32
    assert_near(out, norm_linear_reference(**in_double(case)), dtype)


def test_the_norm_is_clamped(device):
    """A token of zeros stays zero, a tiny one is divided by eps: no eps inside the root."""
    case = linear_case(Linear(1, 3, 32, 16, 1), Draw(device, torch.float32))
    case["x"][0, 0] = 0
    case["x"][0, 1] *= 1e-8
    out = norm_linear(**case, tile=tile((16, 16, 32)))
    assert torch.equal(out[0, 0], case["bias_TE"][0])
    assert_near(out, norm_linear_reference(**in_double(case)), torch.float32)


@edges_and_types(ATTENTION)
def test_attention(edge, dtype, device):
    shape = ATTENTION[edge]
    case = attention_case(shape, Draw(device, dtype))
    zeros = counter(case["x_BSD"])
    out = attention(**case, counter=zeros, tile=tile((16, shape.block_n, 16), shape.parts))
    assert out.dtype == dtype
    assert not zeros.any()
    assert_near(out, attention_reference(**in_double(case)), dtype)


def test_attention_is_causal(device):
    """Changing the last token leaves the others' results alone, to the bit."""
    case = attention_case(Attention(1, 6, 2, 16, None, 2), Draw(device, torch.float32))
    before = attention(**case, counter=counter(case["x_BSD"]), tile=tile((16, 16, 16), 2))
    case["qkv_BSE"][0, -1] += 1
    after = attention(**case, counter=counter(case["x_BSD"]), tile=tile((16, 16, 16), 2))
    assert torch.equal(before[:, :-1], after[:, :-1])
    assert not torch.equal(before[:, -1], after[:, -1])


@edges_and_types(EXPERTS)
def test_expert_up(edge, dtype, device):
    shape = EXPERTS[edge]
    case = up_case(shape, Draw(device, dtype))
    hidden, inverse = expert_up(**case, tile=tile(shape.tile))
    expected, expected_inverse = expert_up_reference(**in_double(case))
    assert hidden.dtype == dtype
    assert_near(hidden, expected, dtype)
    assert_near(inverse, expected_inverse, torch.float32)


@edges_and_types(EXPERTS)
def test_expert_down(edge, dtype, device):
    shape = EXPERTS[edge]
    case = down_case(shape, Draw(device, dtype))
    zeros = counter(case["x"])
    out = expert_down(**case, counter=zeros, tile=tile(shape.tile, shape.split))
    assert out.dtype == dtype
    assert not zeros.any()
    assert_near(out, expert_down_reference(**in_double(case)), dtype)


def test_expert_down_with_a_plain_residual(device):
    case = down_case(EXPERTS["usual"], Draw(device, torch.float32)) | {"inverse_R": None, "gain_D": None}
    out = expert_down(**case, counter=counter(case["x"]), tile=tile((16, 16, 32), 2))
    assert_near(out, expert_down_reference(**in_double(case)), torch.float32)


@edges_and_types(TAIL)
def test_step_tail(edge, dtype, device):
    case = tail_case(*TAIL[edge], Draw(device, dtype))
    (x, tokens), expected = step_tail(**case), step_tail_reference(**in_double(case))
    assert (x.dtype, tokens.dtype) == (torch.float32, dtype)
    assert_near(x, expected[0], torch.float32)  # everything but the operands is float32
    assert_near(tokens, expected[1], dtype)


def test_the_last_step_ends_inside_its_tables(device):
    case = tail_case(1, 4, 2, 2, 32, True, Draw(device, torch.float32), step=2)
    _, tokens = step_tail(**case)
    assert torch.equal(tokens[0, 0], case["noise_TD"][2])


@pytest.mark.parametrize("kernel", ["norm_linear", "attention", "expert_up", "expert_down", "step_tail"])
def test_repeats_to_the_bit(kernel, device):
    draw = Draw(device, torch.float32)
    if kernel == "attention":
        case = attention_case(ATTENTION["sequence of 30, two heads for each program"], draw)
        run = lambda: attention(**case, counter=counter(case["x_BSD"]), tile=tile((16, 16, 16), 2))  # noqa: E731
    elif kernel == "expert_down":
        case = down_case(EXPERTS["usual"], draw)
        run = lambda: expert_down(**case, counter=counter(case["x"]), tile=tile((16, 16, 32), 2))  # noqa: E731
    elif kernel == "expert_up":
        case = up_case(EXPERTS["usual"], draw)
        run = lambda: expert_up(**case, tile=tile((16, 16, 32)))[0]  # noqa: E731
    elif kernel == "norm_linear":
        case = linear_case(LINEAR["one sample, rows below the tile"], draw)
        run = lambda: norm_linear(**case, tile=tile((16, 16, 32)))  # noqa: E731
    else:
        case = tail_case(1, 10, 7, 3, 64, True, draw)
        run = lambda: step_tail(**case)[1]  # noqa: E731
    assert torch.equal(run(), run())


def test_a_broken_weight_is_noticed(device):
    """Negative control: one entry of one weight moves each result out of its tolerance."""
    draw = Draw(device, torch.float32)
    linear, attend = linear_case(LINEAR["odd width"], draw), attention_case(ATTENTION["one token"], draw)
    up, down = up_case(EXPERTS["usual"], draw), down_case(EXPERTS["usual"], draw)
    tail = tail_case(1, 10, 7, 3, 64, True, draw)
    runs = [
        (linear, "weight_ED", lambda c: norm_linear(**c, tile=tile((16, 16, 32))), norm_linear_reference),
        (
            attend,
            "weight_DD",
            lambda c: attention(**c, counter=counter(c["x_BSD"]), tile=tile((16, 16, 16), 2)),
            attention_reference,
        ),
        (
            up,
            "weight_NED",
            lambda c: expert_up(**c, tile=tile((16, 16, 32)))[0],
            lambda **c: expert_up_reference(**c)[0],
        ),
        (
            down,
            "weight_NDH",
            lambda c: expert_down(**c, counter=counter(c["x"]), tile=tile((16, 16, 32), 2)),
            expert_down_reference,
        ),
        (tail, "out_weight_AD", lambda c: step_tail(**c)[0], lambda **c: step_tail_reference(**c)[0]),
    ]
    for case, weight, kernel, reference in runs:
        expected = reference(**in_double(case))
        assert_near(kernel(case), expected, torch.float32)
        expert = int(case["expert_TK"][int(case["row_G"][0]), 0]) if "expert_TK" in case else 0
        (case[weight][expert, 0] if "expert_TK" in case else case[weight][0])[0] += 0.5
        with pytest.raises(AssertionError, match="relative error"):
            assert_near(kernel(case), expected, torch.float32)


def test_what_does_not_fit_is_refused_by_name(device):
    draw = Draw(device, torch.float32)
    linear, attend = linear_case(LINEAR["odd width"], draw), attention_case(ATTENTION["one token"], draw)
    up, down = up_case(EXPERTS["usual"], draw), down_case(EXPERTS["usual"], draw)
    tail = tail_case(1, 10, 7, 3, 64, True, draw)
    zeros, none = counter(down["x"]), draw.rows()
    half = down["hidden"].to(torch.bfloat16)
    refused = [
        (norm_linear, linear | {"row_G": draw.rows(0, 0)}, "7 rows cannot form 2 groups"),
        (norm_linear, linear | {"weight_ED": draw.normal(17, 32)}, r"weight \(17, 32\)"),
        (norm_linear, linear | {"x": linear["x"].double()}, "activations of torch.float64"),
        (norm_linear, linear | {"x": draw.normal(1, 33, 7).transpose(1, 2)}, "not contiguous"),
        (attention, attend | {"counter": none}, r"0 counters, \d needed"),
        (attention, attend | {"counter": zeros, "num_heads": 3}, "3 heads"),
        (attention, attend | {"counter": zeros, "last": 2}, "last 2"),
        (expert_up, up | {"bias_NE": draw.table(4, 3)}, r"bias \(4, 3\)"),
        (expert_down, down | {"counter": none}, r"0 counters, \d needed"),
        (expert_down, down | {"counter": zeros, "hidden": half}, "hidden units of torch.bfloat16"),
        (step_tail, tail | {"coefficient_T5": draw.table(3, 4)}, r"coefficients \(3, 4\)"),
    ]
    for kernel, case, words in refused:
        with pytest.raises(ValueError, match=words):
            kernel(**case)
