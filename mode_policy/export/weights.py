"""The target ``weights``: a policy's weights without the experts that no step uses, loaded as a plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from mode_policy.checkpoint import load_strictly
from mode_policy.convention import Convention
from mode_policy.diffusion.prefix import Prefix
from mode_policy.export.compact import with_experts
from mode_policy.export.graph import inputs_of, observation_of
from mode_policy.export.manifest import INSTRUCTIONS, MODEL, Manifest, read_tensors
from mode_policy.export.runtime import Model
from mode_policy.inference.auto import make_engine
from mode_policy.inference.plan import InferencePlan
from mode_policy.normalization import statistics_from_json
from mode_policy.policy import MoDEPolicy
from mode_policy.types import Feature, InstructionTable


def write_weights(plan: InferencePlan, folder: Path) -> list[str]:
    """Write the weights of a plan's policy; return the names of the files."""
    state = {k: v.detach().cpu().contiguous() for k, v in plan.policy.state_dict().items()}
    save_file(state, folder / MODEL["weights"])
    return [MODEL["weights"]]


def load_plan(folder: Path, manifest: Manifest, device: torch.device) -> InferencePlan:
    """Load the policy of an export, and make the plan that it was exported for.

    Raises:
        ExportError: if a file cannot be read.
        CheckpointError: if the weights do not fit the configuration.
    """
    table = None
    if manifest.instructions is not None:
        table = InstructionTable(
            encoder=manifest.instructions.encoder,
            instructions=manifest.instructions.instructions,
            embeddings=read_tensors(folder / INSTRUCTIONS, "embeddings")["embeddings"],
        )
    policy = MoDEPolicy(
        replace(manifest.config, sampler=manifest.sampler),
        {key: Feature.from_json(feature) for key, feature in manifest.features.items()},
        statistics_from_json(manifest.statistics),
        table,
        Convention(**manifest.convention),
    )
    policy = with_experts(policy, manifest.experts.kept)
    file = folder / MODEL["weights"]
    load_strictly(policy, read_tensors(file), str(file))
    return InferencePlan(policy.to(device).eval(), manifest.sampler, manifest.batch)


def planned_model(plan: InferencePlan) -> Model:
    """Return a plan as a function of the tensors of `inputs_of`, by an engine that need not compile it."""
    engine = make_engine(plan, "auto" if plan.policy.device.type == "cpu" else "eager").engine
    names = [array.name for array in inputs_of(plan)]

    def run(inputs: Sequence[Tensor]) -> Tensor:
        values = dict(zip(names, inputs, strict=True))
        prefix = Prefix(actions=values["prefix"], weights=values["prefix_weights"])
        held = prefix if bool((prefix.weights > 0).any()) else None
        return engine.act(observation_of(values), noise=list(values["noise"]), prefix=held).actions_BCA

    return run
