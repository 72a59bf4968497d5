"""The denoising network F: tokens of noise, goal, observation and noisy actions in, actions out.

Legend: B batch, O observation tokens, T token width, G goal width, H history, C chunk, A action dimension,
S sequence = [noise] + goal + O + C, D width, L layers.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from mode_policy.config import DenoiserConfig
from mode_policy.nn.attention import CausalSelfAttention
from mode_policy.nn.block import MoDEBlock
from mode_policy.nn.experts import SwiGLUExperts
from mode_policy.nn.norm import RMSNorm
from mode_policy.nn.router import ConditionRouter, Routing


class DenoiserOutput(NamedTuple):
    """``prediction_BCA`` is F, before preconditioning; ``routings`` holds one `Routing` a layer."""

    prediction_BCA: Tensor
    routings: list[Routing]


class Denoiser(nn.Module):
    """MoDE's causal diffusion transformer (arXiv 2412.12953, section 4), in the form of the authors' code.

    The noise level σ enters three ways: as the first token, added to every token after the first norm of each
    block, and as the router's input. Positions are learned: slot 0 for the goal, one slot for each time
    step of the history (all tokens of a step share it), and the action at step i shares the slot of that
    step, so the first action shares that of the newest observation. The noise token has none.

    Args:
        config: sizes and options.
        token_dim: width T of the observation tokens.
        goal_dim: width G of the goal embedding.
        action_dim: A.
        chunk: C.
        history: H.
    """

    def __init__(
        self,
        config: DenoiserConfig,
        *,
        token_dim: int,
        goal_dim: int,
        action_dim: int,
        chunk: int,
        history: int = 1,
    ) -> None:
        super().__init__()
        dim = config.dim
        self.config = config
        self.chunk = chunk
        self.history = history
        self.sigma_embedding = nn.Sequential(nn.Linear(1, dim), nn.Linear(dim, dim, bias=False))
        self.goal_embedding = nn.Linear(goal_dim, dim, bias=False)
        self.observation_embedding = nn.Linear(token_dim, dim, bias=False)
        self.action_embedding = nn.Linear(action_dim, dim, bias=False)
        self.position = nn.Parameter(torch.zeros(1 + history - 1 + chunk, dim))
        self.dropout = nn.Dropout(config.embedding_dropout)
        self.blocks = nn.ModuleList(self._block(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(dim)
        self.out = nn.Linear(dim, action_dim)

    @staticmethod
    def _block(config: DenoiserConfig) -> MoDEBlock:
        shared = config.experts.shared
        router = ConditionRouter(
            config.dim,
            config.experts.num - shared,
            config.experts.active - shared,
            num_layers=config.router.num_layers,
            temperature=config.router.temperature,
            normalize=config.router.normalize,
            scope="task" if config.router.goal else "noise",
        )
        dropout = config.experts.dropout
        return MoDEBlock(
            CausalSelfAttention(config.dim, config.num_heads, config.attention_dropout),
            router,
            SwiGLUExperts(config.dim, config.experts.num - shared, dropout),
            SwiGLUExperts(config.dim, 1, dropout) if shared else None,
            config.dim,
            config.residual,
        )

    def forward(
        self,
        x_BCA: Tensor,
        sigma_B: Tensor,
        observation_BOT: Tensor,
        goal_BG: Tensor,
        generator: torch.Generator | None = None,
    ) -> DenoiserOutput:
        """Predict F for scaled noisy actions.

        Args:
            x_BCA: noisy actions times c_in.
            sigma_B: noise levels, > 0.
            observation_BOT: observation tokens, oldest step first; O is a multiple of the history.
            goal_BG: goal embedding; zeros for "no goal".
            generator: for the routers' draws in training.
        """
        noise_BD = self.sigma_embedding(sigma_B.log()[:, None] / 4)
        goal_BD = self.goal_embedding(goal_BG)
        steps = self.position[1 : 1 + self.history].repeat_interleave(
            observation_BOT.shape[1] // self.history, 0
        )
        tokens = [
            (goal_BD + self.position[0])[:, None],
            self.observation_embedding(observation_BOT) + steps,
            self.action_embedding(x_BCA) + self.position[self.history :],
        ]
        x_BSD = self.dropout(torch.cat(tokens, dim=1))
        if self.config.noise_token:
            x_BSD = torch.cat([noise_BD[:, None], x_BSD], dim=1)
        condition_BD = noise_BD + goal_BD if self.config.router.goal else noise_BD
        routings: list[Routing] = []
        for layer, block in enumerate(self.blocks, start=1):
            last = self.chunk if layer == len(self.blocks) else None
            x_BSD, routing = block(x_BSD, condition_BD, generator, last)
            routings.append(routing)
        return DenoiserOutput(self.out(self.norm(x_BSD)), routings)

    def route(self, sigma_B: Tensor, goal_BG: Tensor | None = None) -> list[Routing]:
        """Return each layer's routing by noise level alone, without running the network.

        Raises:
            ValueError: if the routers also look at the goal and none is given, or one looks at the tokens.
        """
        routers = [cast(MoDEBlock, block).router for block in self.blocks]
        for layer, router in enumerate(routers):
            if router.scope == "token":
                raise ValueError(
                    f"{type(router).__name__} of layer {layer} chooses by the tokens, so its choice is not "
                    "known before the network has run; read it from the output's routings"
                )
        noise_BD = self.sigma_embedding(sigma_B.log()[:, None] / 4)
        if self.config.router.goal:
            if goal_BG is None:
                raise ValueError("these routers also look at the goal; pass goal_BG")
            noise_BD = noise_BD + self.goal_embedding(goal_BG)
        return [router(noise_BD, noise_BD[:, None]) for router in routers]
