"""Checkpoints of `mode_policy` as LeRobot's, and back: the same weights, statistics and instructions.

Optimizer and data order are not converted: a run is resumed by the program that began it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.utils.constants import OBS_ENV_STATE

from lerobot_policy_mode.configuration_mode import ModeConfig
from lerobot_policy_mode.demonstrations import Demonstrations
from lerobot_policy_mode.modeling_mode import ModePolicy
from lerobot_policy_mode.processor_mode import make_mode_pre_post_processors
from mode_policy.checkpoint import load_policy, read_description, save_checkpoint
from mode_policy.errors import CheckpointError, ConfigError
from mode_policy.files import atomic_folder
from mode_policy.normalization import statistics_to_json
from mode_policy.policy import MoDEPolicy
from mode_policy.types import ACTION, Feature, feature_kind


def to_lerobot(checkpoint: Path, destination: Path, **settings: Any) -> None:
    """Write the folder that ``--policy.path`` takes.

    Args:
        checkpoint: of `mode_policy`.
        destination: is made; must not exist.
        settings: of `ModeConfig`, e.g. ``device``.

    Raises:
        CheckpointError: if the checkpoint is incomplete or damaged.
        ConfigError: if the destination exists.
    """
    _free(destination)
    about = read_description(checkpoint)["about"]
    raw, averaged = load_policy(checkpoint, weights="raw"), load_policy(checkpoint)
    policy = ModePolicy(_config(averaged, settings))
    state = {f"model.{k}": v for k, v in raw.state_dict().items()}
    state |= {f"ema.{k}": v for k, v in averaged.state_dict().items()}
    state["ema_updates"] = torch.tensor(int(about.get("step") or 0))
    if averaged.instructions is not None:
        state["instructions.embeddings"] = averaged.instructions.embeddings
    policy.adopt(state, str(checkpoint))
    before, after = make_mode_pre_post_processors(policy.config, _for_lerobot(averaged))
    with atomic_folder(destination) as folder:
        for part in (policy, before, after):
            part.save_pretrained(folder)


def _config(policy: MoDEPolicy, settings: dict[str, Any]) -> ModeConfig:
    table = policy.instructions
    known = Demonstrations(
        features=policy.features,
        statistics=policy.statistics,
        convention=policy.convention,
        instructions=() if table is None else table.instructions,
        width=0 if table is None else table.embeddings.shape[1],
    )
    fixed: dict[str, Any] = {
        "cameras": list(policy.config.cameras),
        "input_features": {k: _feature(k, f) for k, f in policy.features.items() if k != ACTION},
        "output_features": {ACTION: _feature(ACTION, policy.features[ACTION])},
        "demonstrations": known.to_json(),
        "push_to_hub": False,
    }
    return ModeConfig.of_policy(policy.config, **{"device": "cpu"} | settings | fixed)


def _feature(key: str, feature: Feature) -> PolicyFeature:
    if feature_kind(key) == "image":
        height, width, channels = feature.shape
        return PolicyFeature(FeatureType.VISUAL, (channels, height, width))
    kinds = {ACTION: FeatureType.ACTION, OBS_ENV_STATE: FeatureType.ENV}
    return PolicyFeature(kinds.get(key, FeatureType.STATE), feature.shape)


def _for_lerobot(policy: MoDEPolicy) -> dict[str, dict[str, torch.Tensor]]:
    plain = statistics_to_json(policy.statistics)
    return {key: {name: torch.tensor(v) for name, v in s.items()} for key, s in plain.items()}


def from_lerobot(folder: Path, destination: Path) -> None:
    """Write a checkpoint of `mode_policy`.

    Args:
        folder: ``pretrained_model`` of a run of LeRobot's, or what was downloaded from the hub.
        destination: is made; must not exist.

    Raises:
        CheckpointError: if the folder holds no MoDE policy, or weights that do not fit.
        ConfigError: if the destination exists.
    """
    _free(destination)
    if not (folder / "config.json").is_file():
        found = sorted(str(p.parent.relative_to(folder)) for p in folder.glob("**/config.json"))[:3]
        hint = f"; did you mean {folder}/{found[-1]}?" if found else ""
        raise CheckpointError(f"{folder} is no policy of LeRobot: it has no config.json{hint}")
    config = ModeConfig.from_pretrained(folder)
    if not isinstance(config, ModeConfig):
        raise CheckpointError(
            f"{folder} holds a policy of type {config.type!r}; only 'mode' can be converted"
        )
    if config.use_peft:
        raise CheckpointError(
            f"{folder} holds adapters only; merge them into their base (peft: merge_and_unload) and convert "
            f"that"
        )
    config.device = "cpu"
    policy = ModePolicy.from_pretrained(folder, config=config)
    acting = policy.acting
    acting.instructions = None if policy.instructions is None else policy.instructions.table()
    about = {"converted_from": str(folder), "step": int(policy.ema_updates)}
    save_checkpoint(destination, acting, policy.model.state_dict(), about=about)


def _free(destination: Path) -> None:
    if destination.exists():
        raise ConfigError(f"{destination} exists; give another destination")
