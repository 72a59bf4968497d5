"""A policy as rollouts call it: plain arrays in, action chunks out, one batch for all environments.

Legend: N environments, H history, C chunk, A action dimension.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from mode_policy.errors import DataError
from mode_policy.policy import MoDEPolicy
from mode_policy.types import Observation, feature_kind


class PolicyRunner:
    """Adapts a `MoDEPolicy` to rollouts.

    The noise of each decision is drawn from its own seed, so that what an episode sees never depends on
    its neighbours in the batch.
    """

    def __init__(self, policy: MoDEPolicy) -> None:
        self.policy = policy.eval()
        self.history = policy.config.history

    def act(
        self,
        observations: Sequence[Mapping[str, np.ndarray]],
        instructions: Sequence[str],
        noise_seeds: Sequence[tuple[int, int]],
    ) -> np.ndarray:
        """Return action chunks ``(N, C, A)`` in raw units.

        Args:
            observations: for each environment, feature key → ``(H, …)``, oldest first.
            instructions: for each environment.
            noise_seeds: for each environment, (episode, decision).

        Raises:
            UnknownInstructionError: if the checkpoint does not know an instruction.
            DataError: if an observation lacks a feature or has another shape.
        """
        policy = self.policy
        states, images = {}, {}
        for key, feature in policy.features.items():
            kind = feature_kind(key)
            if kind == "action":
                continue
            if key not in observations[0]:
                raise DataError(f"the environment gives {sorted(observations[0])}, the policy needs {key!r}")
            stacked = np.stack([o[key] for o in observations])
            if stacked.shape[2:] != feature.shape:
                raise DataError(
                    f"{key!r} has shape {stacked.shape[2:]} in the environment, {feature.shape} in the policy"
                )
            if kind == "image":
                images[key] = torch.from_numpy(stacked)
            else:
                states[key] = torch.from_numpy(stacked).float()
        embedded = policy.instructions.embed(instructions) if policy.instructions is not None else None
        shape = (policy.config.chunk, policy.action_dim)
        generators = [_generator(seed) for seed in noise_seeds]

        def noise() -> torch.Tensor:
            return torch.stack([torch.randn(shape, generator=g) for g in generators]).to(policy.device)

        observation = Observation(states=states, images=images, instruction=embedded).to(policy.device)
        actions: np.ndarray = policy.act(observation, noise=noise).cpu().numpy()
        return actions


def _generator(seed: Sequence[int]) -> torch.Generator:
    mixed = np.random.SeedSequence(list(seed)).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(mixed >> 1))
