"""A loop with everything virtual but the loop."""

import numpy as np

from mode_policy.deploy.config import ActionConfig, LateConfig, SafetyConfig
from mode_policy.deploy.controller import Controller
from mode_policy.deploy.guard import ObservationGuard
from mode_policy.deploy.inference import Answer
from mode_policy.deploy.safety import SafetyFilter
from mode_policy.deploy.strategies import Asynchronous, Strategy
from mode_policy.deploy.telemetry import Telemetry
from mode_policy.types import STATE
from tests.deploy.conftest import DiaryRobot

RATE = 100.0
TOP = "observation.images.top"


class VirtualClock:
    """Time that passes when somebody sleeps; jumps where a test says so."""

    def __init__(self) -> None:
        self.time = 1000.0
        self.jumps: dict[int, float] = {}
        self.sleeps = 0

    def now(self) -> float:
        return self.time

    def sleep_until(self, deadline: float) -> None:
        self.sleeps += 1
        self.time = max(self.time, deadline) + self.jumps.pop(self.sleeps, 0.0)


class TickedInference:
    """Answers a fixed number of ticks after a request: chunk n has the actions n.00, n.01, n.02, …"""

    def __init__(self, clock, delay=0, length=10) -> None:
        self.clock, self.delay, self.length = clock, delay, length
        self.requests: list[tuple[int, dict]] = []
        self.error, self.losses, self.trouble, self.up = None, 0, "", True
        self._due: tuple[int, float] | None = None

    ready = property(lambda self: self.up and self._due is None)
    pending = property(lambda self: self._due is not None)

    def submit(self, tick, request):
        assert self.ready
        self.requests.append((tick, request))
        self._due = (tick, self.clock.now() + (self.delay - 0.5) / RATE)
        return True

    def poll(self):
        if self._due is None or self.clock.now() < self._due[1]:
            return None
        tick, self._due = self._due[0], None
        number = len(self.requests)
        actions = np.stack([number + np.arange(self.length) / 100, np.zeros(self.length)], 1)
        return Answer(tick=tick, actions=actions, seconds=0.01, policy_seconds=0.01, first=number == 1)

    def wait(self, until):
        pass

    def discard(self):
        self._due = None


class Scene:
    """A loop with everything virtual but the loop."""

    def __init__(
        self,
        strategy: Strategy | None = None,
        *,
        delay=0,
        history=1,
        late=None,
        stop_after=None,
        shapes=None,
        **safety,
    ) -> None:
        self.clock, self.robot = VirtualClock(), DiaryRobot()
        self.robot.time = self.clock.now
        self.inference = TickedInference(self.clock, delay)
        self.telemetry = Telemetry.create(
            rate=RATE, actions=["x", "y"], states=["x", "y", "a"], chunk=10, shared=False
        )
        self.lines: list[str] = []
        config = SafetyConfig(dataset_bounds=False, **safety)
        self.controller = Controller(
            self.robot,
            self.inference,
            strategy or Asynchronous(execute=5),
            SafetyFilter(ActionConfig(), config, late or LateConfig(), dim=2, rate=RATE),
            ObservationGuard(shapes or {STATE: (3,)}, config),
            rate=RATE,
            history=history,
            prompt="go left",
            stop_after=stop_after,
            telemetry=self.telemetry,
            clock=self.clock,
            say=self.lines.append,
        )

    def run(self, ticks=30):
        self.summary = self.controller.run(ticks)
        return self.summary

    @property
    def sent(self):
        return [round(float(c[0]), 2) for c in self.robot.commands]

    @property
    def ticks(self):
        return self.telemetry.since(0)[0]
