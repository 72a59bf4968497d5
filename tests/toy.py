"""A toy robot: a policy small enough to train in a test, and data that it can learn."""

import numpy as np
import torch

from mode_policy.config import PolicyConfig, build
from mode_policy.normalization import compute_statistics
from mode_policy.policy import MoDEPolicy
from mode_policy.types import ACTION, STATE, Batch, Feature, InstructionTable, Observation

FEATURES = {STATE: Feature(shape=(3,), angles=(2,)), ACTION: Feature(shape=(2,))}
INSTRUCTIONS = InstructionTable(
    encoder="minilm-l6-v2",
    instructions=("go left", "go right"),
    embeddings=torch.nn.functional.normalize(
        torch.randn(2, 8, generator=torch.Generator().manual_seed(5)), dim=1
    ),
)


def arrays(steps: int = 400, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    state = rng.uniform(-1, 1, (steps, 3)).astype(np.float32)
    action = np.stack([state[:, 0] * 3, np.cos(state[:, 2])], 1).astype(np.float32)
    return {STATE: state, ACTION: action}


def config(**changes) -> PolicyConfig:
    data = {"chunk": 4, "execute": 2, "denoiser": {"dim": 16, "num_layers": 2, "num_heads": 2}}
    return build(PolicyConfig, data | changes)


def policy(seed: int = 0, **changes) -> MoDEPolicy:
    torch.manual_seed(seed)
    table = None if changes.get("language", "") is None else INSTRUCTIONS
    return MoDEPolicy(config(**changes), FEATURES, compute_statistics(arrays()), table)


def batch(step: int, size: int = 16, history: int = 1, chunk: int = 4) -> Batch:
    data = arrays()
    rows = np.random.default_rng((7, step)).integers(0, len(data[STATE]) - 1, size)
    return Batch(
        observation=Observation(
            states={STATE: torch.from_numpy(data[STATE][rows])[:, None].repeat(1, history, 1)},
            instruction=INSTRUCTIONS.embeddings[torch.from_numpy(rows % 2)],
        ),
        actions=torch.from_numpy(data[ACTION][rows])[:, None].repeat(1, chunk, 1),
        action_is_pad=torch.zeros(size, chunk, dtype=torch.bool),
    )
