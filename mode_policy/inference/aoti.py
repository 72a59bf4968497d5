"""The engine of native code: a plan as `mode_policy.export` compiles it for robots, in this process.

Legend: B batch, C chunk, A action dimension.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from mode_policy.diffusion.prefix import Prefix
from mode_policy.inference.engine import Engine
from mode_policy.inference.plan import InferencePlan
from mode_policy.types import Observation


class AotiEngine(Engine):
    """Runs a plan's whole path from observation to actions as compiled code; making it takes minutes.

    What runs is what ``export.py target=aoti`` writes, so its times and actions are those on the robot.

    Raises:
        ExportError: if there is no C++ compiler, or the compilation fails.
    """

    name = "aoti"

    def __init__(self, plan: InferencePlan) -> None:
        super().__init__(plan)
        # Imported here: what chooses among engines need not load the compiler.
        from torch._inductor import aoti_load_package

        from mode_policy.export.aoti import compile_plan
        from mode_policy.export.graph import inputs_of

        self._inputs = inputs_of(plan)
        with tempfile.TemporaryDirectory(prefix="mode-aoti-") as folder:
            file = Path(folder) / "model.pt2"
            compile_plan(plan, file)
            self._package = aoti_load_package(str(file))

    def run(self, observation: Observation, draws: Sequence[Tensor], prefix: Prefix | None) -> Tensor:
        """Return actions in raw units."""
        values: dict[str, Tensor] = {**observation.states, **observation.images}
        values["noise"] = torch.stack(list(draws))
        if observation.instruction is not None:
            values["instruction"] = observation.instruction
        if prefix is not None:
            values |= {"prefix": prefix.actions, "prefix_weights": prefix.weights}
        inputs = [
            values[array.name].contiguous()
            if array.name in values
            else torch.zeros(array.shape, device=self.plan.policy.device)
            for array in self._inputs
        ]
        actions_BCA: Tensor = self._package(*inputs)
        return actions_BCA

    def sample(self, tokens_BOT: Tensor, draws: Sequence[Tensor], prefix: Prefix | None) -> Tensor:
        """Run the loop that was compiled, uncompiled."""
        return self.loop(tokens_BOT, draws, prefix)
