"""Whether a policy can act in environments, found out before anything long begins."""

from __future__ import annotations

import importlib.util
from collections.abc import Collection, Sequence
from typing import Any

from mode_envs import EnvTask, convention, features, rendering_available
from mode_envs.features import camera_names
from mode_envs.registration import EnvEntry, entry
from mode_policy.apps.config import EvaluationConfig
from mode_policy.apps.protocol import rollout_seeds
from mode_policy.convention import Side, check_same
from mode_policy.errors import DataError, SimulatorError, did_you_mean
from mode_policy.policy import MoDEPolicy
from mode_policy.types import IMAGE_PREFIX, Features, feature_kind

_MODULES = {"metaworld": "metaworld", "pusht": "gym_pusht"}
"""Extra of the package → module of its simulator."""


def check_fit(
    policy: MoDEPolicy, tasks: Sequence[EnvTask], config: EvaluationConfig, demonstrated: Collection[int]
) -> None:
    """Compare a policy with the environments.

    Raises:
        SimulatorError: if an environment cannot be built or cannot draw on this machine.
        DataError: if a feature or a camera differs, an instruction is unknown to the checkpoint, or a rollout
            would start where a demonstration did.
    """
    seeded = any(not entry(task.env_id).initial_states for task in tasks)
    if seeded and (seen := sorted(set(rollout_seeds(config)) & set(demonstrated))):
        raise DataError(
            f"{len(seen)} rollouts would start from initial states of the demonstrations (seed {seen[0]}); "
            f"choose another seed than {config.seed} for the evaluation"
        )
    own = Side(name="the policy", features=policy.features, convention=policy.convention)
    for env_id in dict.fromkeys(task.env_id for task in tasks):
        _check_cameras(env_id, [key for key in policy.features if feature_kind(key) == "image"])
        given = features(env_id, **observation_options(env_id, policy.features))
        for key, feature in policy.features.items():
            if key not in given:
                raise DataError(f"{env_id} gives {sorted(given)}, but the policy needs {key!r}")
            if feature_kind(key) == "image" and given[key].shape != feature.shape:
                raise DataError(
                    f"{key!r} has shape {given[key].shape} in {env_id} and {feature.shape} in the policy; "
                    "render at that size"
                )
        check_same(own, Side(name=env_id, features=given, convention=convention(env_id)))
    if policy.instructions is not None:
        policy.instructions.index([t.task.instruction for t in tasks])
    check_simulators(tasks, pictures=any(feature_kind(key) == "image" for key in policy.features))


def check_places(tasks: Sequence[EnvTask], cameras: Sequence[str]) -> None:
    """Hold environments to what a policy will need of them, before demonstrations are fetched or collected.

    Args:
        tasks: Where the policy will act.
        cameras: Names of those that it sees.

    Raises:
        DataError: if an environment has no such cameras.
        SimulatorError: as `check_simulators`.
    """
    for env_id in dict.fromkeys(task.env_id for task in tasks):
        _check_cameras(env_id, [IMAGE_PREFIX + name for name in cameras])
    check_simulators(tasks, pictures=bool(cameras))


def check_simulators(tasks: Sequence[EnvTask], *, pictures: bool) -> None:
    """Look for the simulators' packages and files and, where pictures are needed, for something that draws.

    Raises:
        SimulatorError: naming what is missing, and the line that installs it.
    """
    entries = [entry(task.env_id) for task in tasks]
    if any("suite" in known.kwargs for known in entries):
        from mode_envs.libero_assets import find_assets, package_folder

        package_folder()
        find_assets()
    for extra in {_extra(known) for known in entries if "suite" not in known.kwargs}:
        if extra in _MODULES and importlib.util.find_spec(_MODULES[extra]) is None:
            raise SimulatorError(
                f"this environment needs {_MODULES[extra]!r}, which is not installed; "
                f"run: pip install 'mode-policy[{extra}]'"
            )
    if pictures and any(known.opengl for known in entries):
        available, reason = rendering_available()
        if not available:
            raise SimulatorError(f"the policy sees images, which cannot be drawn on this machine: {reason}")


def observation_options(env_id: str, needed: Features) -> dict[str, Any]:
    """Return the arguments with which an environment delivers what a policy reads.

    Raises:
        DataError: if its cameras have different sizes, which no environment renders.
    """
    images = {key: f.shape[:2] for key, f in needed.items() if feature_kind(key) == "image"}
    if not images:
        return {}
    if len(set(images.values())) > 1:
        raise DataError(f"the policy's cameras have different sizes ({images}); train on images of one size")
    names = tuple(key.removeprefix(IMAGE_PREFIX) for key in images)
    return {
        "obs_mode": "both" if any(feature_kind(key) == "state" for key in needed) else "pixels",
        "image_size": next(iter(images.values())),
    } | ({"cameras": names} if _several_cameras(env_id) else {"camera": names[0]})


def _check_cameras(env_id: str, keys: Sequence[str]) -> None:
    known = camera_names(env_id)
    for key in keys:
        name = key.removeprefix(IMAGE_PREFIX)
        if name not in known:
            raise DataError(
                f"the policy sees the camera {name!r}, which {env_id} does not have."
                f"{did_you_mean(name, known)} If it is one of these by another name, train with "
                f"dataset.adapt.rename={{{key}: {IMAGE_PREFIX}{known[0]}}}"
            )
    if len(keys) > 1 and not _several_cameras(env_id):
        names = ", ".join(key.removeprefix(IMAGE_PREFIX) for key in keys)
        raise DataError(
            f"the policy sees {names}, but {env_id} shows one camera at a time; choose one of them"
        )


def _several_cameras(env_id: str) -> bool:
    return "suite" in entry(env_id).kwargs  # LIBERO


def _extra(known: EnvEntry) -> str:
    """Return the extra of an environment: by convention the name of its module."""
    return known.entry_point.partition(":")[0].rpartition(".")[2]
