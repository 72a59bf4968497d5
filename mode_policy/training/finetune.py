"""Starting a training from the weights of a checkpoint.

The network must be the same; what belongs to the training or to the data (dropout, augmentation, losses,
sampler, statistics, instructions) may change. As in the paper, finetuning freezes the routers
(``trainer.freeze_routers``) and has no load-balancing loss (``policy.loss.load_balance=0``).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from mode_policy.checkpoint import load_policy, load_strictly, read_description
from mode_policy.config import PolicyConfig, build, flatten, to_dict
from mode_policy.errors import CheckpointError
from mode_policy.normalization import Normalizer
from mode_policy.policy import MoDEPolicy

#: Settings that the weights do not depend on: these, and all below those that end with a dot.
FREE = (
    "density.",
    "denoiser.attention_dropout",
    "denoiser.embedding_dropout",
    "denoiser.experts.dropout",
    "execute",
    "goal_dropout",
    "goal_dropout_form",
    "loss.",
    "sampler.",
    "vision.color",
    "vision.shift",
    "vision.weights",
)


def check_network(config: PolicyConfig, checkpoint: str | Path) -> None:
    """Hold a configuration to the checkpoint that training will start from, before anything long begins.

    Raises:
        CheckpointError: if there is no such checkpoint, or naming the settings in which the networks differ.
    """
    theirs = build(PolicyConfig, read_description(Path(checkpoint))["config"], "config")
    # How actions are normalised depends on the statistics, too, which come with the demonstrations.
    _compare(config, theirs, checkpoint, {"normalize_action"})


def start_from(policy: MoDEPolicy, checkpoint: str | Path, weights: Literal["ema", "raw"] = "ema") -> None:
    """Give a policy the weights of a checkpoint; its statistics and instructions stay its own.

    Raises:
        CheckpointError: naming the settings or features in which the two networks differ.
    """
    source = load_policy(checkpoint, weights=weights)
    # A policy that was made of published weights normalises its actions, which are in [−1, 1], to themselves.
    kept = policy.config.normalize_action == "identity" and _is_identity(source.action_normalizer)
    _compare(policy.config, source.config, checkpoint, {"normalize_action"} if kept else set())
    shapes = {k: f.shape for k, f in source.features.items() if "images" not in k}
    own = {k: f.shape for k, f in policy.features.items() if "images" not in k}
    if shapes != own:
        raise CheckpointError(
            f"{checkpoint} was trained on {_list(shapes)}, this run's data are {_list(own)}; choose the same "
            "states with dataset.state_keys, or train a new policy"
        )
    load_strictly(policy, source.state_dict(), str(checkpoint))


def _compare(own: PolicyConfig, given: PolicyConfig, checkpoint: str | Path, free: set[str]) -> None:
    ours, theirs = (flatten(to_dict(config)) for config in (own, given))
    if not own.cameras and not given.cameras:
        ours, theirs = ({k: v for k, v in d.items() if not k.startswith("vision.")} for d in (ours, theirs))
    differ = {k: v for k, v in theirs.items() if ours.get(k) != v and not _free(k) and k not in free}
    if differ:
        settings = " ".join(f"policy.{k}={_yaml(v)}" for k, v in differ.items())
        raise CheckpointError(
            f"{checkpoint} is another network than this run's. Train with its settings: {settings}"
        )


def _is_identity(normalizer: Normalizer) -> bool:
    return bool((normalizer.offset == 0).all() and (normalizer.scale == 1).all())


def _free(name: str) -> bool:
    return any(name == free or (free.endswith(".") and name.startswith(free)) for free in FREE)


def _yaml(value: Any) -> str:
    if isinstance(value, tuple | list):
        return f"[{','.join(map(str, value))}]"
    return {None: "null", True: "true", False: "false"}.get(value, str(value))


def _list(shapes: dict[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{k} {shape}" for k, shape in shapes.items())
