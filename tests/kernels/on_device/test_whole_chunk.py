"""The kernels in a row are the network: a denoised chunk equals that of `Denoiser` and `ddim`.

`Chain` is also the shortest description of how they fit together, for every form of the network.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from mode_kernels.attention import attention
from mode_kernels.expert_down import expert_down
from mode_kernels.expert_up import expert_up
from mode_kernels.launch import new_counter
from mode_kernels.norm_linear import norm_linear
from mode_kernels.reference_inference import embed_tokens
from mode_kernels.step_tail import step_tail
from mode_policy.config import DenoiserConfig, build
from mode_policy.diffusion.edm import scalings
from mode_policy.diffusion.samplers import ddim
from mode_policy.nn.block import MoDEBlock
from mode_policy.nn.denoiser import Denoiser

SIGMA_DATA = 0.5
SIGMAS = [80.0, 0.5, 0.0]
BATCH, CHUNK, ACTION = 2, 3, 2

NETWORKS = {
    "as published": {},
    "prenorm": {"residual": "prenorm"},
    "paper": {"residual": "paper"},
    "a shared expert": {"experts": {"num": 4, "active": 3, "shared": True}},
    "eight experts, three active": {"experts": {"num": 8, "active": 3}},
    "one expert": {"experts": {"num": 1, "active": 1}},
    "routed by the goal, too": {"router": {"goal": True}},
    "no noise token": {"noise_token": False},
    "weights not renormalised": {"router": {"normalize": False}},
}


class Chain:
    """All steps of a chunk by the kernels; tables are indexed by step, or by step and sample."""

    def __init__(self, model: Denoiser, goal_BG: Tensor, observation_BOT: Tensor) -> None:
        self.model = model
        self.steps = len(SIGMAS) - 1
        sigma_T = torch.tensor(SIGMAS[:-1], device=goal_BG.device)
        self.noise_TD = model.sigma_embedding(sigma_T.log()[:, None] / 4)
        goal_BD = model.goal_embedding(goal_BG)
        self.groups = len(goal_BG) if model.config.router.goal else 1
        self.condition_TD = self.noise_TD
        if model.config.router.goal:
            self.condition_TD = (self.noise_TD[:, None] + goal_BD).flatten(0, 1)
        observation_BOD = model.observation_embedding(observation_BOT) + model.position[1]
        self.fixed_BFD = torch.cat([(goal_BD + model.position[0])[:, None], observation_BOD], 1)
        self.position_CD = model.position[model.history :].contiguous()

    def coefficients(self) -> Tensor:
        """Computed in double precision, rounded once."""
        rows = []
        for sigma, sigma_next in itertools.pairwise(SIGMAS):
            skip, out, _ = (c.item() for c in scalings(torch.tensor([sigma]).double(), SIGMA_DATA))
            into = scalings(torch.tensor([sigma_next]).double(), SIGMA_DATA).into.item()
            rows.append((skip, out, sigma_next / sigma, 1 - sigma_next / sigma, into))
        return torch.tensor(rows, dtype=torch.float64).float().to(self.fixed_BFD.device)

    def block(
        self, block: MoDEBlock, x_BSD: Tensor, row_G: Tensor, counter: Tensor, last: int | None
    ) -> Tensor:
        qkv, norm, c = block.attention.qkv, block.attention_norm, self.condition_TD
        paper, normed = block.residual == "paper", block.residual == "normed"
        bias_TE = qkv.bias.expand(len(c), -1).contiguous() if paper else c @ qkv.weight.T + qkv.bias
        gain_D, shift_TD = norm.gain, c if paper else None
        qkv_BSE = norm_linear(x_BSD, qkv.weight, bias_TE, row_G, gain_D, shift_TD)
        gain_2P, A = block.attention.qk_norm.gain[:, 0], block.attention.num_heads
        u_BSD = attention(qkv_BSE, x_BSD, block.attention.proj.weight, gain_2P, counter, A, last)

        routing = block.router(c, c[:, None])
        expert_TK, route_TK = routing.expert_RK, routing.weight_RK
        up, bias, down = block.experts.up_weight_NED, block.experts.up_bias_NE, block.experts.down_weight_NDH
        if block.shared is not None:  # one more expert of the stack, chosen everywhere with weight 1
            up = torch.cat([up, block.shared.up_weight_NED])
            bias = torch.cat([bias, block.shared.up_bias_NE])
            down = torch.cat([down, block.shared.down_weight_NDH])
            expert_TK = torch.cat([expert_TK, torch.full_like(expert_TK[:, :1], len(up) - 1)], 1)
            route_TK = torch.cat([route_TK, torch.ones_like(route_TK[:, :1])], 1)
        gain_D = block.expert_norm.gain
        hidden, inverse_R = expert_up(u_BSD, up, bias, expert_TK, route_TK, row_G, gain_D)
        residual = {"inverse_R": inverse_R, "gain_D": gain_D} if normed else {}
        return expert_down(hidden, u_BSD, down, expert_TK, row_G, counter, **residual)

    def __call__(self, x_BCA: Tensor) -> Tensor:
        model, coefficient_T5 = self.model, self.coefficients()
        into = scalings(torch.tensor(SIGMAS[:1]), SIGMA_DATA).into.to(x_BCA.device)
        noise_TD = self.noise_TD if model.config.noise_token else None
        first = None if noise_TD is None else noise_TD[:1]
        embedding = model.action_embedding.weight
        x_BSD = embed_tokens(x_BCA * into, embedding, self.position_CD, self.fixed_BFD, first)
        counter = new_counter(x_BSD[..., 0].numel(), x_BSD.shape[-1], x_BSD.device)
        rows_TG = torch.arange(self.steps * self.groups, dtype=torch.int32, device=x_BCA.device)
        rows_TG = rows_TG.view(self.steps, self.groups)
        for step in range(self.steps):
            for layer, block in enumerate(model.blocks, start=1):
                last = model.chunk if layer == len(model.blocks) else None
                x_BSD = self.block(block, x_BSD, rows_TG[step], counter, last)
            x_BCA, x_BSD = step_tail(
                x_BSD,
                x_BCA,
                coefficient_T5,
                torch.tensor([step], dtype=torch.int32, device=x_BCA.device),
                model.norm.gain,
                model.out.weight,
                model.out.bias,
                embedding,
                self.position_CD,
                self.fixed_BFD,
                noise_TD,
            )
        return x_BCA


def network(changes: dict, device: str) -> Denoiser:
    config = {"dim": 16, "num_layers": 2, "num_heads": 2, "experts": {"num": 4, "active": 2}} | changes
    model = Denoiser(
        build(DenoiserConfig, config), token_dim=5, goal_dim=6, action_dim=ACTION, chunk=CHUNK, history=1
    )
    for parameter in model.parameters():  # positions, gains and biases that are no longer 0 or 1
        parameter.data += 0.2 * torch.randn_like(parameter)
    return model.to(device).eval().requires_grad_(False)


@pytest.mark.parametrize(
    "name",  # the interpreter takes long, so one by default
    [pytest.param(n, marks=() if n == "as published" else pytest.mark.slow) for n in NETWORKS],
)
def test_equals_the_network(name, device):
    torch.manual_seed(3)
    model = network(NETWORKS[name], device)
    goal, observation = torch.randn(BATCH, 6, device=device), torch.randn(BATCH, 2, 5, device=device)
    start = SIGMAS[0] * torch.randn(BATCH, CHUNK, ACTION, device=device)

    def denoise(x: Tensor, sigma: float) -> Tensor:
        sigma_B = x.new_full((BATCH,), sigma)
        s = scalings(sigma_B, SIGMA_DATA)
        return s.skip * x + s.out * model(x * s.into, sigma_B, observation, goal).prediction_BCA

    expected = ddim(denoise, start, SIGMAS, lambda: start)
    actual = Chain(model, goal, observation)(start)
    # float32 in another order, through two layers and two steps.
    tolerance = 2e-5 * float(expected.abs().max())
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)
    if name == "paper":  # negative control
        model.blocks[1].experts.down_weight_NDH += 0.05
        assert (Chain(model, goal, observation)(start) - expected).abs().max() > 50 * tolerance
