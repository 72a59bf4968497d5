"""The robots that `mode-control` can drive, made from configuration."""

from __future__ import annotations

import contextlib
import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as configuration

from mode_datasets import open_store
from mode_envs.collect import episode_seed
from mode_envs.realtime import RealtimeRobot, RealtimeSpec
from mode_envs.registration import ENTRIES, entry
from mode_policy.deploy.config import ActionConfig
from mode_policy.deploy.robots import RobotInterface
from mode_policy.deploy.robots.lerobot import LeRobotRobot
from mode_policy.deploy.robots.replay import ReplayRobot
from mode_policy.errors import ConfigError, RobotError

#: Whether LeRobot releases the motors when it disconnects. Not here, unless it is asked for: arms fall.
TORQUE = "disable_torque_on_disconnect"


@configuration(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class RobotConfig:
    """What is driven; the keys are described in ``conf/control/control.yaml``."""

    kind: Literal["simulation", "lerobot", "replay"]
    task: str | None = None
    rate: Annotated[float | None, Field(gt=0)] = None
    max_steps: Annotated[int | None, Field(ge=1)] = None
    options: dict[str, Any] = Field(default_factory=dict)
    lerobot: dict[str, Any] = Field(default_factory=dict)
    path: str | None = None
    episode: Annotated[int, Field(ge=0)] = 0


@dataclass(frozen=True, kw_only=True)
class Driven:
    """A robot that is ready.

    Attributes:
        robot: to drive.
        instruction: of its task, where it knows one.
        begin: begins episode number i.
        stopper: what a watchdog calls to stop it (see `mode_policy.deploy.watchdog`), or None.
        arguments: of the stopper.
    """

    robot: RobotInterface
    instruction: str | None = None
    begin: Callable[[int], None] = lambda number: None
    stopper: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)


@contextlib.contextmanager
def driven(
    config: RobotConfig, action: ActionConfig, action_names: Sequence[str], seed: int
) -> Iterator[Driven]:
    """Connect a robot for the time of a run.

    Args:
        config: which one.
        action: what its actions mean.
        action_names: of the policy, to compare with those of the robot.
        seed: of the episodes' beginnings, in simulation.

    Raises:
        ConfigError: if a setting that it needs is absent.
        RobotError: if it cannot be reached.
    """
    if config.kind == "simulation":
        with RealtimeRobot(simulation(config, action)) as robot:
            yield Driven(
                robot=robot,
                instruction=entry(config.task).instruction if config.task in ENTRIES else None,
                begin=lambda number: robot.reset(episode_seed(seed, number)),
                stopper="mode_envs.realtime:stopper",
                arguments={"address": robot.stop_address},
            )
    elif config.kind == "replay":
        yield _replay(config)
    else:
        if config.rate is None:
            raise ConfigError("robot.rate is needed: the control rate of the demonstrations, in Hz")
        arm = _lerobot(config.lerobot)
        try:
            try:
                arm.connect()
            except (OSError, RuntimeError) as error:
                raise RobotError(f"the robot could not be connected: {error}") from error
            yield Driven(
                robot=LeRobotRobot(arm, config.rate, action_names),
                stopper="mode_policy.apps.robots:lerobot_stopper",
                arguments={"config": config.lerobot, "rate": config.rate},
            )
        finally:
            with contextlib.suppress(OSError, RuntimeError):  # of a part that was never connected, or is gone
                arm.disconnect()


def simulation(config: RobotConfig, action: ActionConfig) -> RealtimeSpec:
    """Return what a configured simulated robot is.

    Raises:
        ConfigError: if no task is named, or it is unknown.
    """
    if config.task is None:
        raise ConfigError("robot.task is needed: a task such as pusht or reach-v3, or a gymnasium id")
    # Whatever is no task of ours may be an environment of somebody else's, "module:id".
    known = None if ":" in config.task else entry(config.task)
    return RealtimeSpec(
        env_id=known.env_id if known else config.task,
        rate=config.rate,
        max_steps=config.max_steps or (known.max_steps if known else None),
        kind=action.kind,
        gripper=action.gripper,
        measured=(action.measured or ()) if action.kind == "position" else (),
        options=config.options,
    )


def _replay(config: RobotConfig) -> Driven:
    if config.path is None:
        raise ConfigError("robot.path is needed: a store of demonstrations")
    store = open_store(Path(config.path).expanduser())
    episode = store.episode(config.episode)
    robot = ReplayRobot(episode.arrays, config.rate or store.fps)
    return Driven(robot=robot, instruction=episode.task.instruction, begin=lambda number: robot.restart())


def _lerobot(config: Mapping[str, Any]) -> Any:
    """Make a robot of LeRobot's from its own configuration, e.g. ``{"type": "so101_follower", "port": …}``.

    Raises:
        ConfigError: if LeRobot is not installed, or refuses the configuration.
    """
    try:
        import draccus
        import lerobot.robots as package
        from lerobot.robots.utils import make_robot_from_config
        from lerobot.utils.import_utils import register_third_party_plugins
    except ImportError as error:
        raise ConfigError(f"LeRobot's robots need {error.name}: pip install lerobot") from error
    for module in pkgutil.iter_modules(package.__path__):
        # Each registers its type; those whose own packages are not installed cannot be meant.
        with contextlib.suppress(ImportError):
            importlib.import_module(f"lerobot.robots.{module.name}")
    register_third_party_plugins()
    try:
        decoded = draccus.decode(package.RobotConfig, dict(config))
        if hasattr(decoded, TORQUE) and TORQUE not in config:
            setattr(decoded, TORQUE, False)
        return make_robot_from_config(decoded)
    except (ValueError, TypeError, KeyError, draccus.ParsingError, ImportError) as error:
        raise ConfigError(f"robot.lerobot={dict(config)} is no robot of LeRobot: {error}") from error


def lerobot_stopper(config: Mapping[str, Any], rate: float) -> Callable[[], None]:
    """Return a function that connects to a robot whose loop has died, and makes it stay where it is.

    It needs the motors alone: a camera may be what failed. Where the robot has a motor bus, only that is
    connected, because connecting the robot configures its motors, and for this many let go of them.
    """
    arm = _lerobot({key: value for key, value in config.items() if key != "cameras"})

    def stop() -> None:
        if hasattr(arm, "bus"):
            arm.bus.connect()
        else:
            arm.connect(calibrate=False)
        LeRobotRobot(arm, rate).stop()

    return stop
