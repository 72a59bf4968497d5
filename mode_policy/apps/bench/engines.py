"""What ``mode-bench latency`` times: engines by name, and the policy's own ``act`` beside them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from mode_policy.diffusion.prefix import Prefix
from mode_policy.errors import PlanError
from mode_policy.inference.auto import ENGINES, make_engine
from mode_policy.inference.engine import Engine
from mode_policy.inference.plan import InferencePlan
from mode_policy.types import Observation

#: What can be timed.
NAMES = ("policy", *ENGINES)


class PolicyItself(Engine):
    """The policy's own ``act``, in the form of an engine."""

    name = "policy"

    def sample(self, tokens_BOT: Tensor, draws: Sequence[Tensor], prefix: Prefix | None) -> Tensor:
        """Run the loop of a plan; `run` has no use for it."""
        return self.loop(tokens_BOT, draws, prefix)

    def run(self, observation: Observation, draws: Sequence[Tensor], prefix: Prefix | None) -> Tensor:
        """Return actions in raw units."""
        rest = iter(draws)
        return self.plan.policy.act(observation, noise=lambda: next(rest), prefix=prefix)


def make(plan: InferencePlan, name: str) -> Engine:
    """Return one of `NAMES`.

    Raises:
        PlanError: if it cannot run the plan.
        ExportError: if it cannot be compiled.
    """
    if name != "policy":
        return make_engine(plan, name).engine
    if plan.precision != "float32":
        raise PlanError(f"a policy's own weights are float32, not {plan.precision}")
    return PolicyItself(plan)
