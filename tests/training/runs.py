"""Short runs of the toy policy."""

from safetensors.torch import load_file

from mode_policy.config import build
from mode_policy.training.config import TrainerConfig
from mode_policy.training.trainer import Trainer
from tests import toy


def config(**changes) -> TrainerConfig:
    data = {
        "steps": 12,
        "batch_size": 16,
        "learning_rate": 3e-3,
        "log_every": 2,
        "validate_every": 4,
        "checkpoint_every": 4,
        "device": "cpu",
        "tensorboard": False,
    }
    return build(TrainerConfig, data | changes)


def trainer(folder, batch=toy.batch, **changes) -> Trainer:
    policy = toy.policy(**changes.pop("policy", {}))
    return Trainer(policy, config(**changes), batch, [toy.batch(10**6)], folder)


def weights(folder, name="weights_raw.safetensors"):
    return load_file(folder / "checkpoints" / "last" / name)
