"""The engine of Triton kernels: on a GPU a whole chunk, from images to actions, is one CUDA graph.

Without a GPU it runs in Triton's interpreter (``TRITON_INTERPRET=1``), slowly: so its results are tested.

Legend: B batch, C chunk, A action dimension, O observation tokens, T token width.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from mode_policy.diffusion.prefix import Prefix
from mode_policy.errors import PlanError
from mode_policy.inference.engine import Engine, Held
from mode_policy.inference.plan import InferencePlan
from mode_policy.types import Observation


class TritonEngine(Engine):
    """Runs a plan by the kernels of `mode_kernels`.

    With a first-order sampler (DDIM, Euler) a layer is 4 kernels (6 with a shared expert) and a step's end
    one more. Other samplers, guidance and prefixes keep the layers' kernels and add some of PyTorch's between
    the steps; all of it is in the graph. The first inference compiles the kernels, and each form of an
    observation (with or without prefix) captures a graph of its own.

    Raises:
        PlanError: if the kernels cannot run: no Triton, another device, a GPU or a precision that they do not
            know; the message says which.
    """

    name = "triton"

    def __init__(self, plan: InferencePlan) -> None:
        if reason := why_not(plan):
            raise PlanError(f"the engine 'triton' cannot run: {reason}; use 'compile' or 'eager'")
        # Imported here: engines are chosen on machines without Triton, too.
        from mode_policy.inference.kernel_network import KernelNetwork

        super().__init__(plan)
        self.network: KernelNetwork = KernelNetwork(plan)
        self._graphs: dict[tuple[str, ...], _Graph] = {}

    def sample(self, tokens_BOT: Tensor, draws: Sequence[Tensor], prefix: Prefix | None) -> Tensor:
        """Run the loop."""
        if prefix is not None or not self.network.runs_whole_chunks:
            return self.loop(tokens_BOT, draws, prefix)
        return self.network.chunk(self.plan.sigmas[0] * draws[0], self.network.prefix(tokens_BOT))

    def run(self, observation: Observation, draws: Sequence[Tensor], prefix: Prefix | None) -> Tensor:
        """Return actions in raw units, by replaying a graph on a GPU."""
        if self.plan.policy.device.type != "cuda":
            return super().run(observation, draws, prefix)
        inputs = self._inputs(observation, draws, prefix)
        form = tuple(inputs)
        if form not in self._graphs:
            run = super().run

            def again(values: dict[str, Tensor]) -> Tensor:
                return run(*_outputs(values, len(draws)))

            self._graphs[form] = _Graph(again, inputs)
        return self._graphs[form](inputs)

    def _inputs(
        self, observation: Observation, draws: Sequence[Tensor], prefix: Prefix | None
    ) -> dict[str, Tensor]:
        """Everything that differs between two calls, by name; what the policy does not read is left out."""
        read = self.plan.policy.features
        values = {f"state {k}": v for k, v in observation.states.items() if k in read}
        values |= {f"image {k}": v for k, v in observation.images.items() if k in read}
        if observation.instruction is not None:
            values["instruction"] = observation.instruction
        values |= {f"draw {i}": draw for i, draw in enumerate(draws)}
        if prefix is not None:
            values |= {"held": prefix.actions, "weights": prefix.weights}
        return values


def _outputs(values: dict[str, Tensor], draws: int) -> tuple[Observation, list[Tensor], Prefix | None]:
    """What `TritonEngine._inputs` took apart."""
    parts: dict[str, dict[str, Tensor]] = {"state": {}, "image": {}}
    for name, value in values.items():
        kind, _, key = name.partition(" ")
        if kind in parts:
            parts[kind][key] = value
    observation = Observation(states=parts["state"], images=parts["image"])
    observation = replace(observation, instruction=values.get("instruction"))
    prefix = Held(values["held"], values["weights"]) if "held" in values else None
    return observation, [values[f"draw {i}"] for i in range(draws)], prefix  # type: ignore[return-value]


class _Graph:
    """A run captured once; inputs are copied into the memory that it reads, results out of what it writes."""

    def __init__(self, run: Callable[[dict[str, Tensor]], Tensor], inputs: dict[str, Tensor]) -> None:
        self._inputs = {name: value.clone() for name, value in inputs.items()}
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # compiles kernels and lets libraries allocate what they need
            for _ in range(2):
                run(self._inputs)
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._result = run(self._inputs)

    def __call__(self, inputs: dict[str, Tensor]) -> Tensor:
        for name, value in inputs.items():
            memory = self._inputs[name]
            if (value.shape, value.dtype) != (memory.shape, memory.dtype):  # copying might broadcast
                raise PlanError(
                    f"{name} is {value.dtype} {tuple(value.shape)}; this engine's graph was captured for "
                    f"{memory.dtype} {tuple(memory.shape)}"
                )
            memory.copy_(value)
        self._graph.replay()
        return self._result.clone()


def why_not(plan: InferencePlan) -> str | None:
    """Return why the kernels cannot run a plan, in words for a person, or None if they can."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed (it comes with PyTorch for NVIDIA GPUs on Linux)"
    from mode_kernels.launch import unsupported

    return unsupported(plan.policy.device, plan.layers[0].qkv_weight_ED.dtype)
