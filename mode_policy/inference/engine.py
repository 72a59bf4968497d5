"""Engines: the same actions by different means.

All engines take the same plan and the same noise and return the same actions within a stated tolerance.
``eager`` is what the others are held to.

Legend: B batch, C chunk, A action dimension.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mode_policy.diffusion.prefix import Prefix, hold_prefix
from mode_policy.diffusion.samplers import SAMPLERS, Denoise
from mode_policy.errors import PlanError
from mode_policy.inference.checks import check_inputs
from mode_policy.inference.network import PlannedNetwork
from mode_policy.inference.plan import InferencePlan
from mode_policy.types import Observation


@dataclass(frozen=True)
class Inference:
    """One inference.

    Attributes:
        actions_BCA: Actions in raw units.
        seconds: Wall-clock time from the observation on the device to the actions, after synchronisation.
    """

    actions_BCA: Tensor
    seconds: float


class Engine(ABC):
    """Runs a plan.

    Args:
        plan: What to run.

    Attributes:
        num_draws: Noise tensors that one inference takes: the start, and the sampler's own draws.
    """

    #: As it is chosen by name.
    name: str

    def __init__(self, plan: InferencePlan) -> None:
        self.plan = plan
        self.network = PlannedNetwork(plan)
        self.num_draws = 1 + noise_draws(plan)

    @torch.inference_mode(False)  # buffers that were written there could not be written elsewhere
    @torch.no_grad()
    def act(
        self,
        observation: Observation,
        *,
        noise: Sequence[Tensor] | None = None,
        generator: torch.Generator | None = None,
        prefix: Prefix | None = None,
    ) -> Inference:
        """Sample action chunks.

        Threads may call it; those that share a plan wait for each other. The plan's precision decides, a
        `torch.autocast` around the call does not.

        Args:
            observation: Batch of B on the policy's device.
            noise: Standard normal ``(B, C, A)``: the start and, for stochastic samplers, each draw in its
                order.
            generator: For the draws that are not given.
            prefix: Committed actions that the chunk continues.

        Raises:
            PlanError: if the batch is another than the plan's, the weights have changed, the policy is in
                training mode, or there is too little noise for the sampler.
            DataError: if a tensor is missing, or has another type, shape or device.
        """
        plan, policy = self.plan, self.plan.policy
        with plan.lock, torch.autocast(policy.device.type, enabled=False):
            plan.check_fresh(values=False)
            draws = self._draws(noise, generator)
            check_inputs(policy, plan.batch, observation, draws, prefix)
            synchronize(policy.device)
            start = time.perf_counter()
            actions_BCA = self.run(observation, draws, prefix)
            synchronize(policy.device)
            seconds = time.perf_counter() - start
            plan.check_fresh()  # with the values, which nobody had to wait for while the device was busy
        return Inference(actions_BCA, seconds)

    def run(self, observation: Observation, draws: Sequence[Tensor], prefix: Prefix | None) -> Tensor:
        """Return actions in raw units; what `act` checks and times."""
        plan, policy = self.plan, self.plan.policy
        tokens_BOT, goal_BG = plan.encode(observation)
        plan.set_goal(goal_BG)
        normalised_BCA = self.sample(tokens_BOT, draws, prefix)
        if policy.config.normalize_action == "min_max":
            normalised_BCA = normalised_BCA.clamp(-1, 1)
        actions_BCA = policy.action_normalizer.inverse(normalised_BCA)
        if prefix is not None:
            actions_BCA = torch.where(prefix.weights[..., None] == 1, prefix.actions, actions_BCA)
        return actions_BCA

    @abstractmethod
    def sample(self, tokens_BOT: Tensor, draws: Sequence[Tensor], prefix: Prefix | None) -> Tensor:
        """Return normalised actions from observation tokens and all the noise that the sampler will ask
        for.
        """

    def loop(self, tokens_BOT: Tensor, draws: Sequence[Tensor], prefix: Prefix | None = None) -> Tensor:
        """The whole sampling loop in plain tensor operations."""
        plan, policy = self.plan, self.plan.policy
        fixed_BSD = self.network.prefix(tokens_BOT)

        def planned(x_BCA: Tensor, sigma: float) -> Tensor:
            return self.network.denoise(x_BCA, sigma, fixed_BSD)

        denoise: Denoise = planned
        if prefix is not None:
            held_BCA = policy.action_normalizer(prefix.actions)
            denoise = hold_prefix(planned, held_BCA, prefix.weights, policy.config.sigma_data)
        rest = iter(draws[1:])
        return SAMPLERS[plan.sampler.name](
            denoise, plan.sigmas[0] * draws[0], plan.sigmas, lambda: next(rest)
        )

    def _draws(self, noise: Sequence[Tensor] | None, generator: torch.Generator | None) -> list[Tensor]:
        policy = self.plan.policy
        needed = self.num_draws
        if noise is not None:
            if len(noise) < needed:
                raise PlanError(
                    f"{len(noise)} noise tensors; {self.plan.sampler.name} with {self.plan.sampler.steps} "
                    f"steps takes {needed}"
                )
            return list(noise[:needed])
        shape = (self.plan.batch, policy.config.chunk, policy.action_dim)
        return [
            torch.empty(shape, dtype=torch.float32, device=policy.device).normal_(generator=generator)
            for _ in range(needed)
        ]


class EagerEngine(Engine):
    """Plain tensor operations, one after another, on any device."""

    name = "eager"

    def sample(self, tokens_BOT: Tensor, draws: Sequence[Tensor], prefix: Prefix | None) -> Tensor:
        """Run the loop."""
        return self.loop(tokens_BOT, draws, prefix)


class CompileEngine(Engine):
    """The whole loop as one graph by `torch.compile`; replayed as one CUDA graph on a GPU.

    The first call compiles. A prefix makes a second graph.
    """

    name = "compile"

    def __init__(self, plan: InferencePlan) -> None:
        super().__init__(plan)
        cuda = plan.policy.device.type == "cuda"
        for tensor in plan.tensors():
            # They stay where they are; else each replay of a CUDA graph would first copy them.
            torch._dynamo.mark_static_address(tensor)
        self._compiled = torch.compile(
            self._run, fullgraph=True, dynamic=False, mode="max-autotune" if cuda else None
        )

    def _run(
        self, tokens_BOT: Tensor, draws: Sequence[Tensor], held_BCA: Tensor | None, weights_BC: Tensor | None
    ) -> Tensor:
        prefix = None
        if held_BCA is not None and weights_BC is not None:
            prefix = Held(held_BCA, weights_BC)
        return self.loop(tokens_BOT, draws, prefix)  # type: ignore[arg-type]

    def sample(self, tokens_BOT: Tensor, draws: Sequence[Tensor], prefix: Prefix | None) -> Tensor:
        """Run the compiled loop."""
        held = (None, None) if prefix is None else (prefix.actions, prefix.weights)
        actions_BCA: Tensor = self._compiled(tokens_BOT, list(draws), *held)
        return actions_BCA.clone()  # the graph's next run writes to the same memory


@dataclass(frozen=True)
class Held:
    """A prefix without its checks, which have been made and would split the graph."""

    actions: Tensor
    weights: Tensor


def noise_draws(plan: InferencePlan) -> int:
    """Return how often a plan's sampler asks for fresh noise after the start."""
    count = 0

    def draw() -> Tensor:
        nonlocal count
        count += 1
        return torch.zeros(1)

    SAMPLERS[plan.sampler.name](lambda x, _: x, torch.zeros(1), plan.sigmas, draw)
    return count


def synchronize(device: torch.device) -> None:
    """Wait until a device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
