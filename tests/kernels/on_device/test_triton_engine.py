"""The engine of kernels gives the actions of the plain engine, for every form of the network."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch

from mode_kernels import launch
from mode_policy.config import SamplerConfig
from mode_policy.diffusion.prefix import Prefix
from mode_policy.errors import PlanError
from mode_policy.inference import kernel_network
from mode_policy.inference.engine import EagerEngine, noise_draws
from mode_policy.inference.plan import InferencePlan
from mode_policy.inference.triton_engine import TritonEngine
from mode_policy.policy import MoDEPolicy
from tests import toy

NETWORKS = {
    "as published": {},
    "prenorm": {"residual": "prenorm"},
    "paper": {"residual": "paper"},
    "a shared expert": {"experts": {"num": 4, "active": 3, "shared": True}},
    "a shared expert, prenorm": {
        "experts": {"num": 4, "active": 2, "shared": True},
        "residual": "prenorm",
    },
    "eight experts, three active": {"experts": {"num": 8, "active": 3}},
    "one expert": {"experts": {"num": 1, "active": 1}},
    "routed by the goal, too": {"router": {"goal": True}},
    "paper, routed by the goal": {"residual": "paper", "router": {"goal": True}},
    "no noise token": {"noise_token": False},
    "weights not renormalised": {"router": {"normalize": False}},
}
#: The interpreter takes long, so only these by default.
DEFAULT = ("as published", "a shared expert")

#: Two steps that both matter: at the default's lowest noise level the network's part is a thousandth.
DDIM = SamplerConfig(steps=2, sigma_min=0.5)

#: Largest difference of actions. float32: another order of sums through two layers and two steps. With 8 bits
#: the kernels multiply in bfloat16, the plain engine on a CPU in float32; in bfloat16 both round, but not the
#: same sums.
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.1, "int8": 0.1, "fp8": 0.1}


def policy(device: str, network: str = "as published", **changes) -> MoDEPolicy:
    denoiser = {"dim": 16, "num_layers": 2, "num_heads": 2} | NETWORKS[network]
    made = toy.policy(denoiser=denoiser, **changes)
    with torch.no_grad():
        for parameter in made.denoiser.parameters():  # positions, gains and biases are no longer 0 or 1
            parameter += 0.2 * torch.randn_like(parameter)
    return made.to(device).eval()


def both(plan: InferencePlan, prefix: Prefix | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Actions of the kernels and of the plain engine."""
    policy, device = plan.policy, plan.policy.device
    generator = torch.Generator().manual_seed(0)
    shape = (plan.batch, policy.config.chunk, policy.action_dim)
    noise = [torch.randn(shape, generator=generator).to(device) for _ in range(1 + noise_draws(plan))]
    seen = toy.batch(3, plan.batch, policy.config.history).observation.to(device)
    engines = (TritonEngine(plan), EagerEngine(plan))
    found, expected = (e.act(seen, noise=noise, prefix=prefix).actions_BCA for e in engines)
    return found, expected


def assert_same(plan: InferencePlan, prefix: Prefix | None = None) -> None:
    found, expected = both(plan, prefix)
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE[plan.precision])


@pytest.mark.parametrize(
    "network", [pytest.param(n, marks=() if n in DEFAULT else pytest.mark.slow) for n in NETWORKS]
)
def test_it_equals_the_plain_engine(network, device):
    assert_same(InferencePlan(policy(device, network), DDIM, 2))


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("batch", [1, 5])
def test_other_batches_and_steps(batch, steps, device):
    assert_same(InferencePlan(policy(device), replace(DDIM, steps=steps), batch))


@pytest.mark.parametrize(
    "precision", [pytest.param(p, marks=() if p == "int8" else pytest.mark.slow) for p in TOLERANCE]
)
def test_every_precision(precision, device):
    if reason := launch.unsupported(torch.device(device), torch.float8_e4m3fn):
        pytest.skip(reason)
    made = policy(device, "a shared expert")
    plan = InferencePlan(made, DDIM, 1, precision)
    assert_same(plan)
    if precision != "float32":  # the precision matters at all
        assert not torch.equal(both(plan)[1], both(InferencePlan(made, DDIM))[1])


@pytest.mark.parametrize(
    "sampler",
    [
        replace(DDIM, guidance=2.5),
        pytest.param(replace(DDIM, name="euler"), marks=pytest.mark.slow),
        pytest.param(replace(DDIM, name="dpmpp_2m", steps=3), marks=pytest.mark.slow),
        pytest.param(replace(DDIM, name="euler_ancestral"), marks=pytest.mark.slow),
    ],
    ids=lambda s: f"{s.name} guidance {s.guidance:g}",
)
def test_other_samplers_and_guidance(sampler, device):
    assert_same(InferencePlan(policy(device), sampler, 2))


@pytest.mark.slow
def test_guidance_routed_by_the_goal(device):
    assert_same(InferencePlan(policy(device, "routed by the goal, too"), replace(DDIM, guidance=2.0), 2))


def test_a_prefix_is_held(device):
    weights = torch.tensor([[1.0, 0.5, 0.0, 0.0]], device=device)
    prefix = Prefix(actions=torch.full((1, 4, 2), 0.3, device=device), weights=weights)
    plan = InferencePlan(policy(device), DDIM)
    assert_same(plan, prefix)
    assert torch.equal(both(plan, prefix)[0][:, 0], prefix.actions[:, 0])


@pytest.mark.slow
def test_another_instruction_and_history(device):
    """The second instruction meets tables, buffers and graphs that the first has used."""
    made = policy(device, "routed by the goal, too", history=2)
    plan = InferencePlan(made, DDIM)
    engines = (TritonEngine(plan), EagerEngine(plan))
    seen, noise = toy.batch(3, 1, 2).observation, torch.randn(1, 4, 2)
    results = []
    for embedding in toy.INSTRUCTIONS.embeddings:
        observation = replace(seen, instruction=embedding[None]).to(device)
        found, expected = (e.act(observation, noise=[noise.to(device)]).actions_BCA for e in engines)
        torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE["float32"])
        results.append(found)
    assert (results[0] - results[1]).abs().max() > 1e-3


def test_four_kernels_a_layer_and_one_a_step(device, monkeypatch):
    counts: Counter[str] = Counter()

    def counted(name):
        kernel = getattr(kernel_network, name)

        def run(*arguments, **options):
            counts[name] += 1
            return kernel(*arguments, **options)

        return run

    names = ("norm_linear", "attention", "expert_up", "expert_down", "step_tail")
    for name in names:
        monkeypatch.setattr(kernel_network, name, counted(name))
    plan = InferencePlan(policy(device), SamplerConfig(steps=3))
    engine = TritonEngine(plan)
    engine.sample(
        torch.zeros(1, 1, plan.policy.state_encoder.token_dim, device=device),
        [torch.zeros(1, 4, 2, device=device)],
        None,
    )
    assert counts == dict.fromkeys(names[:4], 2 * 3) | {"step_tail": 3}


def test_a_wrong_weight_is_noticed(device):
    """Negative control."""
    plan = InferencePlan(policy(device), DDIM)
    plan.layers[1].qkv_bias_VE.add_(0.3)
    kernels, _ = both(plan)
    _, plain = both(InferencePlan(plan.policy, DDIM))
    assert (kernels - plain).abs().max() > 10 * TOLERANCE["float32"]


@pytest.mark.skipif(not launch.INTERPRETED, reason="a GPU knows how to run it")
def test_what_the_kernels_cannot_run_is_refused_by_name(device, monkeypatch):
    monkeypatch.setattr(launch, "INTERPRETED", False)
    with pytest.raises(
        PlanError, match="a cpu device; the kernels need an NVIDIA GPU; use 'compile' or 'eager'"
    ):
        TritonEngine(InferencePlan(policy(device)))


@pytest.mark.skipif(launch.INTERPRETED, reason="graphs need a GPU")
def test_other_shapes_than_the_graph_was_captured_for_are_refused(device):
    plan = InferencePlan(policy(device), DDIM)
    engine, seen = TritonEngine(plan), toy.batch(3, 1, 1).observation.to(device)
    engine.act(seen)
    with pytest.raises(PlanError, match=r"captured for torch\.float32"):
        engine.act(replace(seen, states={k: v[..., :1] for k, v in seen.states.items()}))
