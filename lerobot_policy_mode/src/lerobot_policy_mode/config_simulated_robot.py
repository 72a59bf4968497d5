"""``--robot.type=mode_simulation``; apart from the robot itself, so that nothing is simulated to read it."""

from __future__ import annotations

from dataclasses import dataclass

from lerobot.robots import RobotConfig


@RobotConfig.register_subclass("mode_simulation")
@dataclass(kw_only=True)
class SimulatedRobotConfig(RobotConfig):
    """A task of `mode_envs`, simulated in real time, as one of LeRobot's robots.

    Attributes:
        task: e.g. ``pusht`` or ``reach-v3``; LIBERO's and Meta-World's too.
        seed: of the episode's beginning.
        images: whether it has cameras beside its state.
        image_size: height and width of their images; None for the task's own.
        rate: steps per second; None for the task's own.
        max_steps: after which the episode is over; None for the task's own.
    """

    task: str = "pusht"
    seed: int = 0
    images: bool = False
    image_size: tuple[int, int] | None = None
    rate: float | None = None
    max_steps: int | None = None
