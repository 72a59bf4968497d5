"""The hand-written backward of the norm."""

import torch

from mode_policy.nn.norm import RMSNorm


def plain(norm: RMSNorm, x: torch.Tensor) -> torch.Tensor:
    rms = x.norm(dim=-1, keepdim=True) * x.shape[-1] ** -0.5
    return x / rms.clamp(min=norm.eps) * norm.gain


def test_gradients():
    torch.manual_seed(0)
    for shape, gain in (((3, 4, 6), (6,)), ((2, 3, 2, 4, 5), (2, 1, 5))):
        norm = RMSNorm(*gain).double()
        torch.nn.init.normal_(norm.gain)
        x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
        grad = torch.randn(shape, dtype=torch.float64)
        fast = torch.autograd.grad(norm(x), (x, norm.gain), grad)
        slow = torch.autograd.grad(plain(norm, x), (x, norm.gain), grad)
        for a, b in zip(fast, slow, strict=True):
            torch.testing.assert_close(a, b)


def test_below_epsilon_the_divisor_is_constant():
    norm = RMSNorm(4, eps=1e-2).double()
    x = torch.full((1, 4), 1e-3, dtype=torch.float64, requires_grad=True)
    y = norm(x)
    torch.testing.assert_close(y, x / 1e-2)
    torch.testing.assert_close(torch.autograd.grad(y.sum(), x)[0], torch.full_like(x, 100.0))


def test_zeros_stay_zero():
    assert torch.equal(RMSNorm(4)(torch.zeros(2, 4)), torch.zeros(2, 4))
