"""A toy robot, blind or with two cameras: a policy small enough to train in a test, and data it can learn."""

from dataclasses import replace

import numpy as np
import torch

from mode_policy.config import PolicyConfig, build
from mode_policy.normalization import compute_statistics
from mode_policy.policy import MoDEPolicy
from mode_policy.types import (
    ACTION,
    IMAGE_PREFIX,
    STATE,
    Batch,
    Feature,
    Features,
    InstructionTable,
    Observation,
)

FEATURES = {STATE: Feature(shape=(3,), angles=(2,)), ACTION: Feature(shape=(2,))}
#: Not in alphabetical order, in which files keep them.
CAMERAS = ("static", "gripper")
IMAGES = {
    IMAGE_PREFIX + "static": Feature(shape=(20, 24, 3), dtype="uint8"),
    IMAGE_PREFIX + "gripper": Feature(shape=(16, 16, 3), dtype="uint8"),
}
VISION = {"width": 4, "size": 32, "shift": 2}
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


def pictures(state: np.ndarray) -> dict[str, np.ndarray]:
    """What the cameras see: static a bright column at the first coordinate, gripper the angle as a red."""
    shapes = {key: feature.shape for key, feature in IMAGES.items()}
    images = {key: np.full((len(state), *shape), 40, dtype=np.uint8) for key, shape in shapes.items()}
    columns = ((state[:, 0] + 1) / 2 * 20).astype(int)
    for image, column in zip(images[IMAGE_PREFIX + "static"], columns, strict=True):
        image[:, column : column + 4] = 220
    brightness = (127 + 100 * np.cos(state[:, 2])).astype(np.uint8)
    images[IMAGE_PREFIX + "gripper"][..., 0] = brightness[:, None, None]
    return images


def config(**changes) -> PolicyConfig:
    data = {"chunk": 4, "execute": 2, "denoiser": {"dim": 16, "num_layers": 2, "num_heads": 2}}
    return build(PolicyConfig, data | changes)


def policy(seed: int = 0, **changes) -> MoDEPolicy:
    torch.manual_seed(seed)
    table = None if changes.get("language", "") is None else INSTRUCTIONS
    return MoDEPolicy(config(**changes), FEATURES, compute_statistics(arrays()), table)


def image_policy(seed: int = 0, states: bool = True, **changes) -> MoDEPolicy:
    """A policy with two cameras, with or without the state."""
    torch.manual_seed(seed)
    table = None if changes.get("language", "") is None else INSTRUCTIONS
    features: Features = (FEATURES if states else {ACTION: FEATURES[ACTION]}) | IMAGES
    settings = config(**{"cameras": CAMERAS, "vision": VISION} | changes)
    return MoDEPolicy(settings, features, compute_statistics(arrays()), table)


def image_batch(step: int, size: int = 16, history: int = 1, chunk: int = 4) -> Batch:
    """The batch of `batch`, with images."""
    made = batch(step, size, history, chunk)
    state = made.observation.states[STATE]
    images = {
        key: torch.from_numpy(x).unflatten(0, (size, history))
        for key, x in pictures(state.flatten(0, 1).numpy()).items()
    }
    return replace(made, observation=replace(made.observation, images=images))


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
