"""An environment that misbehaves on request; workers import it through its gymnasium id."""

import os
import time
from pathlib import Path

import gymnasium
import numpy as np
from gymnasium import spaces


class HostileEnv(gymnasium.Env):
    """Counts steps; at step ``at`` does ``what``, every time or only while ``flag`` is no file yet."""

    metadata = {"render_modes": [], "metrics": ()}  # noqa: RUF012  # gymnasium's

    def __init__(self, what: str = "", at: int = 5, flag: str = ""):
        self.observation_space = spaces.Dict(
            {"observation.state": spaces.Box(-np.inf, np.inf, (1,), np.float32)}
        )
        self.action_space = spaces.Box(-1, 1, (1,), np.float32)
        self.what, self.at, self.flag = what, at, flag

    def _now(self):
        info = {"success": False, "instruction": "suffer"}
        return {"observation.state": np.array([self.count + self.total], np.float32)}, info

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count, self.total = 0, float(self.np_random.random())
        return self._now()

    def step(self, action):
        self.count += 1
        self.total += float(action[0])
        if self.count == self.at and not (self.flag and Path(self.flag).exists()):
            if self.flag:
                Path(self.flag).touch()
            if self.what == "raise":
                raise ValueError("the block fell off the table")
            if self.what == "abort":
                os.write(2, b"driver on fire\n")
                os.abort()
            if self.what == "hang":
                time.sleep(3600)
        observation, info = self._now()
        return observation, self.total, False, False, info


gymnasium.register(id="mode-tests/hostile-v0", entry_point=HostileEnv, disable_env_checker=True)
