"""8-bit weights: bounds of the error, exact cases, bad input."""

import pytest
import torch

from mode_kernels import quantize as module
from mode_kernels.quantize import Quantised, dequantize, quantize

FORMATS = ("int8", "fp8")


@pytest.mark.parametrize("format", FORMATS)
def test_error_is_half_a_step(format):
    weight = (
        torch.randn(3, 40, 25, generator=torch.Generator().manual_seed(0))
        * torch.logspace(-3, 3, 40)[:, None]
    )
    quantised = quantize(weight, format)
    error = (dequantize(quantised) - weight).abs()
    step = quantised.scale[..., None]
    bound = step / 2 if format == "int8" else torch.maximum(weight.abs() / 16, step * 2**-10)
    assert (error <= bound * (1 + 1e-5)).all()  # the division by the scale is rounded, too
    assert quantised.value.shape == weight.shape
    assert quantised.scale.shape == (3, 40)


@pytest.mark.parametrize("format", FORMATS)
def test_rounding_twice_changes_nothing(format):
    weight = torch.randn(8, 16, generator=torch.Generator().manual_seed(1))
    once = quantize(weight, format)
    twice = quantize(dequantize(once), format)
    torch.testing.assert_close(twice.scale, once.scale, rtol=1e-6, atol=0)
    assert torch.equal(once.value.float(), twice.value.float())


@pytest.mark.parametrize("format", FORMATS)
def test_zero_channels_stay_zero(format):
    weight = torch.zeros(2, 4)
    weight[1, 2] = -3.0
    quantised = quantize(weight, format)
    assert torch.equal(dequantize(quantised), weight)
    assert (quantised.scale > 0).all()


def test_bad_weights_are_refused():
    with pytest.raises(ValueError, match="not finite"):
        quantize(torch.tensor([[1.0, float("nan")]]), "int8")
    with pytest.raises(ValueError, match="'int3'"):
        quantize(torch.ones(1, 1), "int3")  # type: ignore[arg-type]


def test_types():
    weight = torch.randn(4, 8).bfloat16()
    assert quantize(weight, "int8").value.dtype == torch.int8
    assert quantize(weight, "fp8").value.dtype == torch.float8_e4m3fn
    assert dequantize(Quantised(*quantize(weight, "int8")), torch.bfloat16).dtype == torch.bfloat16


@pytest.mark.parametrize("format", FORMATS)
def test_parts_are_rounded_as_the_whole(format, monkeypatch):
    weight = torch.randn(3, 7, 10, generator=torch.Generator().manual_seed(2))
    whole = quantize(weight, format)
    monkeypatch.setattr(
        module, "_PART", 45
    )  # four channels, over the border of a matrix; the last part is cut
    parts = quantize(weight, format)
    assert torch.equal(parts.value.float(), whole.value.float())
    assert torch.equal(parts.scale, whole.scale)
    weight[2, 6, 9] = torch.inf
    with pytest.raises(ValueError, match="not finite"):
        quantize(weight, format)


def test_tiny_channels_do_not_wrap():
    weight = torch.tensor([[190.0, -190.0]]) * 2**-149  # whose scale is rounded to a third less
    assert (quantize(weight, "int8").value == torch.tensor([[127, -127]])).all()
