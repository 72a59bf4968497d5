"""A control loop, put together: its configuration, fitted to one policy and one robot."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass as configuration

from mode_policy.apps.robots import RobotConfig
from mode_policy.deploy.clock import Clock
from mode_policy.deploy.config import ActionConfig, LateConfig, LoopConfig, SafetyConfig, StrategyConfig
from mode_policy.deploy.controller import Controller
from mode_policy.deploy.guard import ObservationGuard
from mode_policy.deploy.inference import ChunkSource
from mode_policy.deploy.robots import RobotInterface
from mode_policy.deploy.safety import SafetyFilter
from mode_policy.deploy.strategies import Strategy, make_strategy
from mode_policy.deploy.telemetry import Telemetry
from mode_policy.deploy.watchdog import Watchdog
from mode_policy.errors import ConfigError, DataError, InferenceError
from mode_policy.inference.pool import EngineName
from mode_policy.inference.weights import Precision
from mode_policy.types import ACTION, IMAGE_PREFIX, STATE, Feature, Features


@configuration(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class ControlConfig:
    """Everything of ``mode-control``; the keys are described in ``conf/control/control.yaml``."""

    robot: RobotConfig
    action: ActionConfig
    strategy: StrategyConfig
    late: LateConfig
    safety: SafetyConfig
    loop: LoopConfig
    server: str | None = None
    token_file: str | None = None
    certificate: str | None = None
    checkpoint: str | None = None
    weights: Literal["ema", "raw"] = "ema"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    engine: EngineName = "auto"
    precision: Precision = "float32"
    threads: Annotated[int, Field(ge=1)] = 1
    niceness: Annotated[int, Field(ge=0, le=19)] = 5
    delay_ms: Annotated[float, Field(ge=0)] = 0.0
    prompt: str | None = None
    episodes: Annotated[int, Field(ge=1)] = 1
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 200000
    seconds: Annotated[float | None, Field(gt=0)] = None
    log: str | None = None

    @model_validator(mode="after")
    def _check(self) -> ControlConfig:
        if (self.server is None) == (self.checkpoint is None):
            raise ValueError("give either server=ws://… or checkpoint=…: where the policy is")
        return self


def features_of(policy: Mapping[str, Any]) -> Features:
    """Return the features that an endpoint's metadata describe.

    Raises:
        InferenceError: if they describe none, as those of other projects' servers.
    """
    try:
        return {key: Feature.from_json(feature) for key, feature in policy["features"].items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise InferenceError(
            f"the server does not describe its policy's features ({error}), so no loop can be built around "
            "it; is it one of mode-serve?"
        ) from error


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """What the controllers of all episodes have in common.

    Attributes:
        config: as given.
        policy: the endpoint's metadata.
        features: of the policy.
        rate: ticks per second.
        cameras: the robot's → shape of their pictures.
        prompt: the instruction, or None.
        strategy: with which actions are chosen.
        safety: what commands have to pass.
        guard: what observations have to pass.
    """

    config: ControlConfig
    policy: Mapping[str, Any]
    features: Features
    rate: float
    cameras: Mapping[str, tuple[int, ...]]
    prompt: str | None
    strategy: Strategy
    safety: SafetyFilter
    guard: ObservationGuard

    def telemetry(self, *, shared: bool = True) -> Telemetry:
        """Make the rings that the loop is recorded in; ``shared`` with other processes or not."""
        config, dim = self.config, self.features[ACTION].shape[0]
        title = (config.robot.task or config.robot.kind, config.strategy.name, self.prompt or "")
        return Telemetry.create(
            rate=self.rate,
            actions=self.features[ACTION].names or [f"action {i}" for i in range(dim)],
            states=_state_names(self.features),
            chunk=self.policy["chunk"],
            cameras=self.cameras,
            title=", ".join(title),
            shared=shared,
        )

    def controller(
        self,
        robot: RobotInterface,
        inference: ChunkSource,
        telemetry: Telemetry,
        number: int,
        *,
        watchdog: Watchdog | None = None,
        clock: Clock | None = None,
        say: Callable[[str], None] = lambda line: None,
    ) -> Controller:
        """Make the controller of one episode."""
        config = self.config
        return Controller(
            robot,
            inference,
            self.strategy,
            self.safety,
            self.guard,
            rate=self.rate,
            history=self.policy["history"],
            prompt=self.prompt,
            mask=config.strategy.mask,
            loop=config.loop,
            stop_after=config.safety.stop_after,
            telemetry=telemetry,
            watchdog=watchdog,
            clock=clock,
            seed=config.seed + number,
            episode=number,
            say=say,
        )


def fit(
    config: ControlConfig,
    policy: Mapping[str, Any],
    robot: RobotInterface,
    instruction: str | None = None,
) -> Fitted:
    """Fit a configuration to a policy and a robot that is there, before anything moves.

    Args:
        config: of the loop.
        policy: what an endpoint says about its policy.
        robot: connected; it is asked for one observation.
        instruction: of the robot's task, where it knows one.

    Raises:
        ConfigError: if a setting fits one of them not.
        DataError: if they do not fit each other.
        InferenceError: if the endpoint does not describe its policy.
    """
    features, arrays = features_of(policy), robot.observe().arrays
    _compare(config, features, arrays)
    rate, dim = config.loop.rate or robot.rate, features[ACTION].shape[0]
    _check_times(config, rate, robot.rate)
    positions = tuple(
        i for i in range(dim) if config.action.kind == "position" and i not in config.action.gripper
    )
    return Fitted(
        config=config,
        policy=policy,
        features=features,
        rate=rate,
        cameras={
            key.removeprefix(IMAGE_PREFIX): value.shape
            for key, value in arrays.items()
            if key.startswith(IMAGE_PREFIX)
        },
        prompt=_prompt(config, instruction, policy["instructions"]),
        strategy=make_strategy(
            config.strategy, policy["chunk"], policy["execute"], positions, config.action.gripper
        ),
        safety=SafetyFilter(
            config.action,
            config.safety,
            config.late,
            dim=dim,
            rate=rate,
            low=policy["action_min"],
            high=policy["action_max"],
        ),
        guard=ObservationGuard(
            {key: feature.shape for key, feature in features.items() if key != ACTION}, config.safety
        ),
    )


def _state_names(features: Features) -> Sequence[str]:
    if STATE not in features:
        return ()
    return features[STATE].names or [str(i) for i in range(features[STATE].shape[0])]


def _prompt(config: ControlConfig, instruction: str | None, known: list[str]) -> str | None:
    """The instruction: as configured, the robot's task's, or the only one that the policy knows."""
    if not known:
        return None
    prompt = config.prompt or instruction or (known[0] if len(known) == 1 else None)
    if prompt is None:
        raise ConfigError(f"this policy needs an instruction: prompt=…, one of {known}")
    return prompt


def _check_times(config: ControlConfig, rate: float, robot_rate: float) -> None:
    """Hold time-outs to the length of a tick: a slow loop is no hanging one."""
    apart = 1 / min(rate, robot_rate)
    if config.safety.stale_after < apart:
        raise ConfigError(
            f"safety.stale_after={config.safety.stale_after:g}, but observations come every {apart:g} s, so "
            f"the robot would be held for ever; give more than that, e.g. safety.stale_after={2 * apart:g}"
        )
    if config.loop.watchdog is not None and config.loop.watchdog < 2 / rate:
        raise ConfigError(
            f"loop.watchdog={config.loop.watchdog:g}, but a tick lasts {1 / rate:g} s, so the watchdog would "
            f"end a loop that is well; give at least two ticks, loop.watchdog={2 / rate:g}"
        )


def _compare(config: ControlConfig, features: Features, arrays: Mapping[str, np.ndarray]) -> None:
    """Hold what the robot shows to what the policy reads and what the configuration says of it."""
    for key, feature in features.items():
        if key == ACTION:
            continue
        if key not in arrays:
            raise DataError(f"the robot gives {sorted(arrays)}, but the policy needs {key!r}")
        if arrays[key].shape != feature.shape:
            raise DataError(
                f"{key!r} has shape {arrays[key].shape} on the robot and {feature.shape} in the policy; "
                "they were made for different robots or tasks"
            )
    size = len(arrays[STATE]) if STATE in arrays else 0
    if any(i >= size for i in config.action.measured or ()):
        raise ConfigError(
            f"action.measured={list(config.action.measured or ())} points outside of the robot's state, "
            f"which has {size} numbers (counted from 0)"
        )
