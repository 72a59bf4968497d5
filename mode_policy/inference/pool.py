"""Engines for batches of changing size."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Literal

from torch import Tensor

from mode_policy.diffusion.prefix import Prefix
from mode_policy.errors import PlanError
from mode_policy.inference.auto import check_name, make_engine
from mode_policy.inference.engine import EagerEngine, Engine
from mode_policy.inference.plan import InferencePlan
from mode_policy.inference.weights import Precision, check_precision
from mode_policy.policy import MoDEPolicy
from mode_policy.types import Observation

#: Names that a pool takes: those of `mode_policy.inference.auto`, and the policy's own ``act``.
EngineName = Literal["auto", "policy", "eager", "compile", "cpu", "triton", "aoti"]

#: Engines that a pool keeps; the one that was not used for the longest time goes first.
LIMIT = 16


class EnginePool:
    """A policy's actions by an engine, for batches of any size.

    An engine runs one size of batch, so the pool makes them as sizes come; they share their weights. Engines
    that compile take seconds to minutes to start. They are made for sizes that were announced by `prepare`
    alone, the others get the engine ``eager``. Threads may share a pool.

    Args:
        policy: Ready to act. Its large weights are freed where the engine holds them in another form.
        name: Of the engine.
        precision: Of the large weights.

    Attributes:
        engine: Name of the engine in use; "policy" where none can run this policy.
        reason: Why it is that one.

    The sampler is the one that the policy has now.

    Raises:
        PlanError: for an unknown name or precision, or if that engine cannot run this policy.
    """

    def __init__(
        self, policy: MoDEPolicy, name: EngineName = "auto", precision: Precision = "float32"
    ) -> None:
        check_precision(precision)
        if name != "policy":
            check_name(name)
        elif precision != "float32":
            raise PlanError(f"engine 'policy' with precision {precision!r}; only plans have other precisions")
        self.policy = policy
        self.name, self.precision = name, precision
        self._lock = threading.Lock()
        self._engines: OrderedDict[int, Engine] = OrderedDict()
        self._plan: InferencePlan | None = None
        self.engine, self.reason = "policy", "it was asked for"
        if name != "policy":
            self._start()

    def prepare(self, batch: int) -> None:
        """Make the engine for a batch, however long that takes."""
        self._check()
        with self._lock:
            if self._plan is not None and batch not in self._engines:
                self._keep(batch, make_engine(self._plan.for_batch(batch), self.engine).engine)

    def act(
        self, observation: Observation, draw: Callable[[], Tensor], prefix: Prefix | None = None
    ) -> Tensor:
        """Sample action chunks ``(B, C, A)`` in raw units.

        Args:
            observation: Batch of B on the policy's device.
            draw: Returns standard normal ``(B, C, A)``: the start, then each of the sampler's draws.
            prefix: Committed actions that the chunks continue.

        Raises:
            PlanError: if the policy was given another sampler.
        """
        self._check()
        if self._plan is None:
            return self.policy.act(observation, noise=draw, prefix=prefix)
        with self._lock:
            engine = self._engine(self._plan, observation.batch_size)
        noise = [draw() for _ in range(engine.num_draws)]
        return engine.act(observation, noise=noise, prefix=prefix).actions_BCA

    def _start(self) -> None:
        try:
            plan = InferencePlan(self.policy, precision=self.precision, consume=True)
        except PlanError as error:
            if self.name != "auto" or self.precision != "float32":
                raise
            self.reason = str(error)
            return
        chosen = make_engine(plan, self.name)
        self._plan, self.engine, self.reason = plan, chosen.engine.name, chosen.reason
        self._keep(1, chosen.engine)

    def _check(self) -> None:
        if self._plan is not None and self._plan.sampler != self.policy.config.sampler:
            raise PlanError("the policy's sampler was changed after its engines were made; make them anew")

    def _engine(self, plan: InferencePlan, batch: int) -> Engine:
        if batch not in self._engines:
            own = plan.for_batch(batch)
            slow = self.engine in ("compile", "triton", "aoti")
            self._keep(batch, EagerEngine(own) if slow else make_engine(own, self.engine).engine)
        self._engines.move_to_end(batch)
        return self._engines[batch]

    def _keep(self, batch: int, engine: Engine) -> None:
        self._engines[batch] = engine
        while len(self._engines) > LIMIT:
            self._engines.popitem(last=False)
