"""Laws of the denoiser that hold for any weights."""

import pytest
import torch

from mode_policy.config import DenoiserConfig, build
from mode_policy.errors import ConfigError
from mode_policy.nn.denoiser import Denoiser
from mode_policy.nn.router import Routing

B, C, A, G, T = 5, 6, 3, 7, 4


def make(history=1, **config) -> Denoiser:
    torch.manual_seed(0)
    config = build(DenoiserConfig, {"dim": 16, "num_layers": 2, "num_heads": 2, **config})
    return Denoiser(config, token_dim=T, goal_dim=G, action_dim=A, chunk=C, history=history).eval()


def inputs(history=1):
    g = torch.Generator().manual_seed(1)
    sigma = torch.tensor([0.002, 0.1, 0.5, 3.0, 60.0])
    return (
        torch.randn(B, C, A, generator=g),
        sigma,
        torch.randn(B, history, T, generator=g),
        torch.randn(B, G, generator=g),
    )


@pytest.mark.parametrize("residual", ["normed", "prenorm", "paper"])
@pytest.mark.parametrize("noise_token", [True, False])
@pytest.mark.parametrize(
    "experts", [{"num": 4, "active": 2}, {"num": 1, "active": 1}, {"num": 3, "active": 2, "shared": True}]
)
def test_every_form_runs_and_learns(residual, noise_token, experts):
    model = make(
        residual=residual, noise_token=noise_token, experts=experts, router={"num_layers": 1}
    ).train()
    output = model(*inputs())
    assert output.prediction_BCA.shape == (B, C, A)
    output.prediction_BCA.square().mean().backward()
    silent = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    # A single expert has weight 1 whatever its router says.
    assert not [n for n in silent if not (experts["num"] - experts.get("shared", 0) == 1 or "router" in n)], (
        silent
    )


def test_the_three_residual_forms_differ():
    outputs = [make(residual=r)(*inputs()).prediction_BCA for r in ("normed", "prenorm", "paper")]
    assert not torch.allclose(outputs[0], outputs[1])
    assert not torch.allclose(outputs[1], outputs[2])


def test_actions_never_see_later_actions():
    model, (x, sigma, tokens, goal) = make(), inputs()
    changed = x.clone()
    changed[:, 3:] += 1
    before, after = (model(v, sigma, tokens, goal).prediction_BCA for v in (x, changed))
    assert torch.equal(before[:, :3], after[:, :3])
    assert (before[:, 3:] - after[:, 3:]).abs().amax() > 1e-4


def test_samples_do_not_mix():
    model, (x, sigma, tokens, goal) = make(), inputs()
    together = model(x, sigma, tokens, goal).prediction_BCA
    alone = torch.cat(
        [
            model(x[i : i + 1], sigma[i : i + 1], tokens[i : i + 1], goal[i : i + 1]).prediction_BCA
            for i in range(B)
        ]
    )
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)


def test_history_positions():
    """The last observation and the first action share a slot; each older observation has its own."""
    model = make(history=3)
    assert model.position.shape[0] == 1 + 3 - 1 + C
    assert model(*inputs(history=3)).prediction_BCA.shape == (B, C, A)


def test_route_needs_no_network():
    model, (x, sigma, tokens, goal) = make(), inputs()
    for alone, within in zip(model.route(sigma), model(x, sigma, tokens, goal).routings, strict=True):
        assert torch.equal(alone.expert_RK, within.expert_RK)
        assert torch.equal(alone.weight_RK, within.weight_RK)


def test_routers_that_see_the_goal_say_so():
    model = make(router={"goal": True})
    assert model.blocks[0].router.scope == "task"
    with pytest.raises(ValueError, match="pass goal_BG"):
        model.route(torch.ones(2))


def test_training_draws_are_injectable_and_per_sample():
    model = make().train()
    a, b = (model(*inputs(), torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(a.prediction_BCA, b.prediction_BCA)
    assert all(r.expert_RK.shape == (B, 2) for r in a.routings)


def test_evaluation_leaves_the_module_untouched():
    model = make()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    attributes = set(vars(model.blocks[0]))
    model(*inputs())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert set(vars(model.blocks[0])) == attributes


class TokenRouter(torch.nn.Module):
    """Another router: each token goes to the expert that its first features point at."""

    scope = "token"
    num_experts, num_active = 4, 1

    def forward(self, condition_BD, x_BSD, generator=None):
        probs_RN = x_BSD.flatten(0, 1)[:, : self.num_experts].softmax(-1)
        weight_RK, expert_RK = probs_RN.topk(self.num_active)
        return Routing(expert_RK, weight_RK, probs_RN, probs_RN.log())


def test_a_router_of_tokens_plugs_in_but_is_not_known_beforehand():
    model = make()
    known = model.route(inputs()[1])
    model.blocks[1].router = TokenRouter()
    noise, tokens = model(*inputs()).routings
    assert torch.equal(noise.expert_RK, known[0].expert_RK)
    assert tokens.expert_RK.shape == (B * C, 1)
    with pytest.raises(ValueError, match="TokenRouter of layer 1 chooses by the tokens"):
        model.route(inputs()[1])


def test_compiles_into_one_graph():
    """No host synchronisation and no branch on a tensor's value in the denoising step."""
    model = make()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*inputs()).prediction_BCA, model(*inputs()).prediction_BCA)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"dim": 30, "num_heads": 4}, "dim=30 is not a multiple of num_heads=4"),
        ({"experts": {"num": 2, "active": 3}}, r"experts: active=3 experts of num=2"),
        ({"experts": {"active": 1, "shared": True}}, "a shared expert counts as active"),
        ({"num_layer": 2}, r"num_layer: unknown key. Did you mean 'num_layers'"),
        ({"router": {"temprature": 2}}, r"router.temprature: unknown key. Did you mean 'temperature'"),
        ({"residual": "post"}, "residual"),
    ],
)
def test_bad_configurations_say_what_to_change(config, message):
    with pytest.raises(ConfigError, match=message):
        build(DenoiserConfig, config)
