"""The grouped experts equal the dense reference, forward and backward."""

import pytest
import torch

from mode_kernels import expert_mlp, expert_mlp_reference


def arguments(R, S, D, H, N, K, dtype=torch.float64):
    g = torch.Generator().manual_seed(R * 31 + N)

    def draw(*shape):
        return torch.randn(*shape, generator=g, dtype=dtype).requires_grad_()

    expert = torch.rand(R, N, generator=g).topk(K, dim=1).indices
    return draw(R, S, D), expert, draw(R, K), draw(N, 2 * H, D), draw(N, 2 * H), draw(N, D, H)


@pytest.mark.parametrize(
    ("R", "S", "D", "H", "N", "K"),
    [
        (7, 5, 8, 32, 4, 2),  # usual
        (1, 1, 8, 16, 4, 1),  # one token of one sample
        (6, 3, 8, 16, 4, 4),  # all experts
        (9, 2, 5, 7, 7, 3),  # odd widths, prime number of experts
        (2, 3, 8, 16, 16, 1),  # most experts idle
        (5, 2, 8, 16, 1, 1),  # dense
    ],
)
def test_equals_the_reference(R, S, D, H, N, K):
    args = arguments(R, S, D, H, N, K)
    grad = torch.randn(R, S, D, dtype=torch.float64)
    leaves = [args[0], *args[2:]]
    fast, slow = expert_mlp(*args), expert_mlp_reference(*args)
    # float64 and the same products in another order: rounding only.
    torch.testing.assert_close(fast, slow, rtol=1e-12, atol=1e-12)
    for a, b in zip(
        torch.autograd.grad(fast, leaves, grad), torch.autograd.grad(slow, leaves, grad), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


def test_all_rows_to_one_expert():
    x, expert, weight, *rest = arguments(6, 3, 8, 16, 4, 1)
    expert = torch.full_like(expert, 2)
    torch.testing.assert_close(
        expert_mlp(x, expert, weight, *rest), expert_mlp_reference(x, expert, weight, *rest)
    )


def test_unused_experts_get_zero_gradient():
    x, expert, weight, up, bias, down = arguments(6, 3, 8, 16, 4, 1)
    out = expert_mlp(x, torch.full_like(expert, 2), weight, up, bias, down)
    for gradient in torch.autograd.grad(out.sum(), (up, bias, down)):
        used = gradient.flatten(1).abs().sum(1) > 0
        assert used.tolist() == [False, False, True, False]


def test_a_wrong_expert_is_noticed():
    """Negative control."""
    args = arguments(7, 5, 8, 32, 4, 2)
    wrong = (args[0], (args[1] + 1) % 4, *args[2:])
    assert (expert_mlp(*args) - expert_mlp_reference(*wrong)).abs().max() > 0.1


def test_dropout_drops_hidden_units_and_keeps_the_mean():
    torch.manual_seed(0)
    args = [a.detach() for a in arguments(4, 2, 8, 64, 2, 1)]
    plain = expert_mlp(*args)
    dropped = torch.stack([expert_mlp(*args, 0.2) for _ in range(4000)])
    assert not torch.equal(dropped[0], plain)
    torch.testing.assert_close(dropped.mean(0), plain, rtol=0, atol=0.25 * float(plain.abs().mean()))
