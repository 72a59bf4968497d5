"""Configuration of real-time control: frozen, validated here, filled in by ``conf/control``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

_frozen = ConfigDict(extra="forbid")
Number = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
PerDimension = Number | tuple[Number, ...]


@dataclass(frozen=True, kw_only=True, config=_frozen)
class StrategyConfig:
    """Which action a tick gets, see `mode_policy.deploy.strategies`.

    Attributes:
        name: of the strategy.
        execute: actions of a chunk after which the next takes over; None for the policy's own number, with
            real-time chunking at most half a chunk, so that there is an overlap to join chunks in.
        mask: real-time chunking: how commitment to the previous chunk falls after its fixed part.
        extend: real-time chunking: actions by which the previous chunk is thought to go on as it ends.
        blend: real-time chunking: ticks in which actions fade over from the previous chunk to the next.
        decay: ensembling: exponent of the weights.
        every: ensembling: ticks between two requests.
    """

    name: Literal["synchronous", "asynchronous", "ensembling", "rtc"] = "rtc"
    execute: Annotated[int | None, Field(ge=1)] = None
    mask: Literal["exponential", "linear", "none"] = "exponential"
    extend: Annotated[int, Field(ge=0)] = 3
    blend: Annotated[int, Field(ge=0)] = 3
    decay: Number = 0.01
    every: Annotated[int, Field(ge=1)] = 1


@dataclass(frozen=True, kw_only=True, config=_frozen)
class ActionConfig:
    """What the numbers of an action mean; without this nothing can be limited or held.

    Attributes:
        kind: "position": where to be (holding repeats the last command); "delta": how far to move in this
            tick (holding is zero).
        gripper: dimensions that open and close rather than move; held as they were.
        measured: for each dimension the index in ``observation.state`` that measures it, or -1 for none; None
            if no dimension is measured.
        scale: units of the measured state per unit of action.
    """

    kind: Literal["position", "delta"] = "position"
    gripper: tuple[Annotated[int, Field(ge=0)], ...] = ()
    measured: tuple[Annotated[int, Field(ge=-1)], ...] | None = None
    scale: Positive = 1.0

    @model_validator(mode="after")
    def _check(self) -> ActionConfig:
        if self.kind == "position" and self.scale != 1.0:
            raise ValueError("scale belongs to delta actions; positions are in the state's units")
        return self


@dataclass(frozen=True, kw_only=True, config=_frozen)
class LateConfig:
    """What the robot does in a tick for which there is no valid action.

    Attributes:
        behaviour: "hold" where the last command led; "slow_to_stop": the last motion, fading; "safe_pose".
        stop_seconds: slow_to_stop: seconds until the motion has faded.
        pose: safe_pose: where to go, one number for each action dimension.
    """

    behaviour: Literal["hold", "slow_to_stop", "safe_pose"] = "hold"
    stop_seconds: Positive = 0.3
    pose: tuple[Number, ...] | None = None

    @model_validator(mode="after")
    def _check(self) -> LateConfig:
        if self.behaviour == "safe_pose" and self.pose is None:
            raise ValueError("behaviour=safe_pose needs the pose, e.g. late.pose=[256,256]")
        return self


@dataclass(frozen=True, kw_only=True, config=_frozen)
class SafetyConfig:
    """Limits between policy and robot, in units of the action; a number holds for every dimension.

    Attributes:
        dataset_bounds: keep commands inside the demonstrations' range, widened by ``margin`` of it.
        margin: share of the range by which it is widened on each side.
        low: lower bound of commands.
        high: upper bound of commands.
        velocity: per second. A delta action is a displacement: its velocity is action × control rate.
        acceleration: per second squared; needs ``velocity``.
        jerk: per second cubed; needs ``acceleration``.
        workspace_low: lower corner of the box for measured dimensions, in units of the state.
        workspace_high: upper corner.
        gripper_ticks: ticks for which a gripper must be asked for its other side before it moves there.
        gripper_threshold: value that divides its sides.
        stale_after: seconds after which an observation is too old to act upon.
        images_frozen_after: seconds after which a camera whose picture has not changed at all is frozen; None
            where equal pictures are normal, as in simulation.
        states_frozen_after: the same for states, counted only while the robot is commanded to move.
        stop_after: seconds without a valid action after which the run ends and the robot is stopped; None to
            wait for ever.
    """

    dataset_bounds: bool = True
    margin: Annotated[Number, Field(ge=0)] = 0.05
    low: PerDimension | None = None
    high: PerDimension | None = None
    velocity: PerDimension | None = None
    acceleration: PerDimension | None = None
    jerk: PerDimension | None = None
    workspace_low: tuple[Number, ...] | None = None
    workspace_high: tuple[Number, ...] | None = None
    gripper_ticks: Annotated[int, Field(ge=1)] = 1
    gripper_threshold: Number = 0.0
    stale_after: Positive = 0.5
    images_frozen_after: Positive | None = None
    states_frozen_after: Positive | None = None
    stop_after: Positive | None = None

    @model_validator(mode="after")
    def _check(self) -> SafetyConfig:
        if self.acceleration is not None and self.velocity is None:
            raise ValueError("a limit of acceleration needs one of velocity")
        if self.jerk is not None and self.acceleration is None:
            raise ValueError("a limit of jerk needs one of acceleration")
        if (self.workspace_low is None) != (self.workspace_high is None):
            raise ValueError("a workspace has two corners: give workspace_low and workspace_high")
        for name in ("velocity", "acceleration", "jerk"):
            value = getattr(self, name)
            if value is not None and min(value if isinstance(value, tuple) else (value,)) <= 0:
                raise ValueError(f"{name}={value} must be positive")
        return self


@dataclass(frozen=True, kw_only=True, config=_frozen)
class LoopConfig:
    """The control loop.

    Attributes:
        rate: ticks per second; None for the robot's own.
        wait: share of a tick for which the loop waits for an answer when it has no action at all.
        watchdog: seconds of silence after which the watchdog process stops the robot; None without one.
        priority: real-time priority (SCHED_FIFO, 1 to 99), where the system grants it; None for the normal
            one.
    """

    rate: Positive | None = None
    wait: Annotated[float, Field(ge=0, le=0.45)] = 0.3
    watchdog: Positive | None = 0.5
    priority: Annotated[int | None, Field(ge=1, le=99)] = None
