"""From observation, instruction and noise to actions, as a function of tensors alone.

What engines do step by step, with their buffers, in a form that `torch.export` can record: nothing is
written to, and an instruction is an input like any other.

Legend: B batch, C chunk, A action dimension, G goal width, N draws of noise, O observation tokens.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from mode_policy.diffusion.prefix import hold_prefix
from mode_policy.diffusion.samplers import SAMPLERS
from mode_policy.export.manifest import Array
from mode_policy.inference.engine import noise_draws
from mode_policy.inference.network import PlannedNetwork
from mode_policy.inference.plan import InferencePlan
from mode_policy.inference.tables import LayerTables
from mode_policy.nn.block import MoDEBlock
from mode_policy.types import Observation, feature_kind

#: Returns normalised actions from a network, observation tokens, noise, and a prefix as normalised actions
#: ``(B, C, A)`` and weights ``(B, C)``.
Loop = Callable[[PlannedNetwork, Tensor, Tensor, Tensor, Tensor], Tensor]


def inputs_of(plan: InferencePlan) -> tuple[Array, ...]:
    """Return what the graph of a plan takes, in its order.

    A prefix whose weights are zero has no effect.
    """
    policy, B = plan.policy, plan.batch
    chunk = (B, policy.config.chunk, policy.action_dim)
    arrays = [
        Array(
            name=key,
            dtype="uint8" if feature_kind(key) == "image" else "float32",
            shape=(B, policy.config.history, *feature.shape),
        )
        for key, feature in policy.features.items()
        if feature_kind(key) != "action"
    ]
    if policy.instructions is not None:
        arrays.append(Array(name="instruction", dtype="float32", shape=(B, policy.goal_dim)))
    return (
        *arrays,
        Array(name="noise", dtype="float32", shape=(1 + noise_draws(plan), *chunk)),
        Array(name="prefix", dtype="float32", shape=chunk),
        Array(name="prefix_weights", dtype="float32", shape=chunk[:2]),
    )


def observation_of(values: dict[str, Tensor]) -> Observation:
    """Return the observation among named inputs."""
    observed = {k: v for k, v in values.items() if k.startswith("observation.")}
    return Observation(
        states={k: v for k, v in observed.items() if feature_kind(k) == "state"},
        images={k: v for k, v in observed.items() if feature_kind(k) == "image"},
        instruction=values.get("instruction"),
    )


class ActionGraph(nn.Module):
    """Observation, instruction and noise to actions in raw units.

    Args:
        network: of the plan that is recorded.
        loop: how the sampling loop is written down.
    """

    def __init__(self, network: PlannedNetwork, loop: Loop) -> None:
        super().__init__()
        self.network = network
        self.loop = loop
        self.names = [array.name for array in inputs_of(network.plan)]
        self.policy = network.plan.policy
        self.state: nn.Module | None = getattr(network, "state", None)  # registered with what it holds

    def forward(self, *inputs: Tensor) -> Tensor:
        """Map the tensors of `inputs_of` to actions ``(B, C, A)``."""
        values = dict(zip(self.names, inputs, strict=True))
        tokens_BOT, goal_BG = self.policy.encode(observation_of(values))
        network = copy.copy(self.network)
        network.plan = at_goal(network.plan, goal_BG)
        prefix_BCA, weights_BC = values["prefix"], values["prefix_weights"]
        held_BCA = self.policy.action_normalizer(prefix_BCA)
        x_BCA = self.loop(network, tokens_BOT, values["noise"], held_BCA, weights_BC)
        if self.policy.config.normalize_action == "min_max":
            x_BCA = x_BCA.clamp(-1, 1)
        actions_BCA = self.policy.action_normalizer.inverse(x_BCA)
        return torch.where(weights_BC[..., None] == 1, prefix_BCA, actions_BCA)


def unrolled(
    network: PlannedNetwork, tokens_BOT: Tensor, noise_NBCA: Tensor, held_BCA: Tensor, weights_BC: Tensor
) -> Tensor:
    """The sampling loop, step after step: each with its own experts and numbers."""
    plan = network.plan
    fixed_BSD = network.prefix(tokens_BOT)

    def planned(x_BCA: Tensor, sigma: float) -> Tensor:
        return network.denoise(x_BCA, sigma, fixed_BSD)

    denoise = hold_prefix(planned, held_BCA, weights_BC, plan.policy.config.sigma_data)
    rest = iter(noise_NBCA[1:])
    start_BCA = plan.sigmas[0] * noise_NBCA[0]
    return SAMPLERS[plan.sampler.name](denoise, start_BCA, plan.sigmas, lambda: next(rest))


def at_goal(plan: InferencePlan, goal_BG: Tensor) -> InferencePlan:
    """Return a plan for other instructions, as `InferencePlan.set_goal` makes it, without writing to this."""
    plan = copy.copy(plan)
    denoiser = plan.policy.denoiser
    if plan.guided:
        goal_BG = torch.cat([goal_BG, torch.zeros_like(goal_BG)])
    plan.goal_BD = denoiser.goal_embedding(goal_BG)
    if plan.uses_goal:
        blocks = [block for block in denoiser.blocks if isinstance(block, MoDEBlock)]
        plan.layers = [
            LayerTables(layer.qkv_weight_ED, layer.qkv_scale_E, *plan._tables(block))
            for layer, block in zip(plan.layers, blocks, strict=True)
        ]
    return plan


def example_inputs(plan: InferencePlan) -> tuple[Tensor, ...]:
    """Return zeros of the shapes and types of a plan's inputs."""
    return tuple(
        torch.zeros(array.shape, dtype=getattr(torch, array.dtype), device=plan.policy.device)
        for array in inputs_of(plan)
    )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Context without what exporters print, log and warn of for their own developers."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
