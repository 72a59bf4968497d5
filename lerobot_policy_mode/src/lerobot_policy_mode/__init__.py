"""MoDE as a policy of LeRobot: ``lerobot-train --policy.type=mode``.

LeRobot imports this package when it looks for plug-ins, and the import registers what LeRobot then finds by
name: the policy's configuration, its learning-rate schedule and a simulated robot.

::

    LeRobot's batch → batches.py → mode_policy.policy.MoDEPolicy → actions in raw units

The policy normalises by itself, with statistics that travel in its configuration, so LeRobot's own
normalisation is the identity here.
"""

from lerobot_policy_mode.compatibility import check_lerobot

check_lerobot()

from lerobot_policy_mode.config_simulated_robot import SimulatedRobotConfig  # noqa: E402
from lerobot_policy_mode.configuration_mode import ModeConfig, TriStageSchedulerConfig  # noqa: E402
from lerobot_policy_mode.simulated_robot import SimulatedRobot  # noqa: E402

__all__ = ["ModeConfig", "SimulatedRobot", "SimulatedRobotConfig", "TriStageSchedulerConfig"]
