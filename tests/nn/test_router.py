"""Laws of the routers and their losses."""

import pytest
import torch

from mode_policy.nn.router import ConditionRouter, Routing, expert_shares, load_balancing_loss, router_z_loss


def routing(expert_RK, weight_RK, num_experts=4):
    uniform = torch.full((len(expert_RK), num_experts), 1 / num_experts)
    return Routing(expert_RK, weight_RK, uniform, torch.zeros_like(uniform))


def test_uniform_routing_costs_k():
    pairs = torch.combinations(torch.arange(4), 2)
    assert load_balancing_loss([routing(pairs, torch.full((6, 2), 0.5))]).item() == pytest.approx(2.0)


def test_collapsed_routing_costs_n():
    same = torch.tensor([[0, 1]]).expand(8, 2)
    assert load_balancing_loss([routing(same, torch.full((8, 2), 0.5))]).item() == pytest.approx(4.0)


@pytest.mark.parametrize("form", ["code", "paper"])
def test_parts_of_a_batch_balance_it_as_a_whole(form):
    """With the shares of the whole batch, the mean over its parts has the whole's value and gradient."""
    torch.manual_seed(0)
    router, c = ConditionRouter(8, 4, 2), torch.randn(12, 8)
    whole = [router.eval()(c, c[:, None])]
    parts = [[router(x, x[:, None])] for x in c.chunk(3)]
    losses = [load_balancing_loss(part, form, expert_shares(whole)) for part in parts]
    expected = load_balancing_loss(whole, form)
    torch.testing.assert_close(sum(losses) / 3, expected)
    weight = router.net[0].weight
    (ours,), (theirs,) = (torch.autograd.grad(x, [weight]) for x in (sum(losses) / 3, expected))
    torch.testing.assert_close(ours, theirs)
    alone = sum(load_balancing_loss(part, form) for part in parts) / 3
    assert not torch.isclose(alone, expected), "the product of two means is not the mean of products"


def test_paper_form_uses_the_softmax():
    same = torch.tensor([[0, 1]]).expand(8, 2)
    assert load_balancing_loss([routing(same, torch.full((8, 2), 0.5))], "paper").item() == pytest.approx(2.0)


def test_z_loss_of_flat_logits():
    flat = routing(torch.zeros(3, 1, dtype=torch.int64), torch.ones(3, 1))
    assert router_z_loss([flat]).item() == pytest.approx(torch.log(torch.tensor(4.0)).item() ** 2, rel=1e-5)


def test_draws_are_distinct_and_follow_the_softmax():
    torch.manual_seed(0)
    router = ConditionRouter(8, 4, 2, num_layers=1).train()
    with torch.no_grad():
        router.net.weight.zero_()
        router.net.bias.copy_(torch.tensor([0.5, 0.3, 0.15, 0.05]).log())
    c = torch.zeros(20000, 8)
    r = router(c, c[:, None], torch.Generator().manual_seed(1))
    assert (r.expert_RK[:, 0] != r.expert_RK[:, 1]).all()
    first = torch.bincount(r.expert_RK[:, 0], minlength=4) / 20000
    torch.testing.assert_close(first, torch.tensor([0.5, 0.3, 0.15, 0.05]), rtol=0, atol=0.015)
    torch.testing.assert_close(r.weight_RK.sum(1), torch.ones(20000))


def test_evaluation_takes_the_most_probable():
    torch.manual_seed(0)
    router = ConditionRouter(8, 5, 3).eval()
    c = torch.randn(10, 8)
    r = router(c, c[:, None])
    assert torch.equal(r.expert_RK, r.probs_RN.topk(3, -1).indices)
    assert expert_shares([r]).sum().item() == pytest.approx(3.0)


def test_router_learns_through_the_weights():
    torch.manual_seed(0)
    router = ConditionRouter(8, 4, 2).train()
    c = torch.randn(10, 8)
    router(c, c[:, None]).weight_RK[:, 0].sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in router.parameters())
