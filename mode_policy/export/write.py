"""Writing an export, and holding it to the policy that it came from.

Legend: B batch, C chunk, A action dimension.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from mode_policy.checkpoint import versions
from mode_policy.diffusion.prefix import Prefix, soft_mask
from mode_policy.errors import ExportError
from mode_policy.export.compact import used_experts, with_experts
from mode_policy.export.graph import inputs_of, observation_of
from mode_policy.export.machine import this_machine
from mode_policy.export.manifest import (
    CHECK,
    INSTRUCTIONS,
    TOLERANCE,
    Array,
    Dtype,
    Experts,
    Instructions,
    Manifest,
    Target,
    Verification,
    hashes,
    write_manifest,
)
from mode_policy.export.runtime import Exported, open_model
from mode_policy.files import atomic_folder
from mode_policy.inference.plan import InferencePlan
from mode_policy.normalization import statistics_to_json
from mode_policy.policy import MoDEPolicy
from mode_policy.types import ACTION

#: Types of the large products that each target knows.
DTYPES: dict[Target, tuple[Dtype, ...]] = {
    "aoti": ("float32", "bfloat16"),
    "onnx": ("float32",),
    "weights": ("float32",),
}

#: Observations that an export is compared on.
OBSERVATIONS = 4


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What is written.

    Attributes:
        target: ``aoti``, ``onnx`` or ``weights``.
        batch: samples of a call.
        dtype: of the large products.

    Raises:
        ExportError: if the target does not know the type.
    """

    target: Target
    batch: int = 1
    dtype: Dtype = "float32"

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES[self.target]:
            raise ExportError(
                f"target={self.target} does not know dtype={self.dtype}; it knows "
                f"{', '.join(DTYPES[self.target])}"
            )


def export(
    policy: MoDEPolicy,
    folder: Path,
    options: ExportOptions,
    *,
    origin: Mapping[str, Any] | None = None,
    commit: str = "",
) -> Manifest:
    """Export a policy with its own sampler; the folder appears when it has been compared with the policy.

    Args:
        policy: in evaluation mode, on the device that native code is for.
        folder: to make; must not exist.
        options: what is written.
        origin: free JSON about where the policy came from.
        commit: of the code.

    Returns:
        The manifest.

    Raises:
        ExportError: if the target cannot be written here, or acts differently from the policy; nothing stays.
        PlanError: if the policy's routers look at the tokens.
    """
    if folder.exists():
        raise ExportError(f"{folder} exists; give another folder with out=…")
    if options.target == "onnx" and policy.device.type != "cpu":
        raise ExportError("target=onnx is written from a processor; use device=cpu")
    kept = used_experts(InferencePlan(policy, batch=options.batch))
    plan = InferencePlan(with_experts(policy, kept), batch=options.batch, precision=options.dtype)
    with atomic_folder(folder) as partial:
        files = _write_model(plan, options.target, partial)
        table = policy.instructions
        if table is not None:
            save_file({"embeddings": table.embeddings.cpu().contiguous()}, partial / INSTRUCTIONS)
            files.append(INSTRUCTIONS)
        save_file(_first_probe(policy, plan), partial / CHECK)
        manifest = Manifest(
            target=options.target,
            device="cuda" if policy.device.type == "cuda" else "cpu",
            dtype=options.dtype,
            batch=options.batch,
            inputs=inputs_of(plan),
            output=Array(
                name="action", dtype="float32", shape=(options.batch, policy.config.chunk, policy.action_dim)
            ),
            sampler=plan.sampler,
            noise_levels=tuple(level.sigma for level in plan.levels),
            experts=Experts(number=_experts(policy), kept=kept),
            config=policy.config,
            features={key: feature.to_json() for key, feature in policy.features.items()},
            convention=policy.convention.to_json(),
            statistics=statistics_to_json(policy.statistics),
            instructions=None
            if table is None
            else Instructions(encoder=table.encoder, instructions=table.instructions),
            made_for=this_machine(policy.device.type) if options.target == "aoti" else None,
            verification=None,
            origin=dict(origin or {}),
            versions=versions(),
            commit=commit,
            sha256=hashes(partial, sorted([*files, CHECK])),
        )
        exported = open_model(partial, manifest, policy.device.type)
        manifest = replace(manifest, verification=verify(exported, policy))
        write_manifest(partial, manifest)
    return manifest


def _write_model(plan: InferencePlan, target: Target, folder: Path) -> list[str]:
    # Imported when they are used: each brings a compiler or a package of its own.
    writer: Callable[[InferencePlan, Path], list[str]]
    if target == "aoti":
        from mode_policy.export.aoti import write_aoti as writer
    elif target == "onnx":
        from mode_policy.export.onnx import write_onnx as writer
    else:
        from mode_policy.export.weights import write_weights as writer
    return writer(plan, folder)


def verify(exported: Exported, policy: MoDEPolicy) -> Verification:
    """Compare an export with the policy that it came from, on made-up observations.

    Raises:
        ExportError: if the actions differ by more than the tolerance of the export's type.
    """
    tolerance = TOLERANCE[exported.manifest.dtype]
    scale_A = policy.action_normalizer.scale
    error = 0.0
    for values, expected_BCA in probes(policy, exported.manifest.inputs):
        prefix = Prefix(actions=values["prefix"], weights=values["prefix_weights"])
        actions_BCA = exported.act(observation_of(values), noise=list(values["noise"]), prefix=prefix)
        error = max(error, float(((actions_BCA.to(policy.device) - expected_BCA) / scale_A).abs().max()))
    if not error <= tolerance:
        raise ExportError(
            f"the export's actions differ by {error:g} of their scale from the policy's own (at most "
            f"{tolerance:g} is allowed); nothing was written. Try another target or dtype"
        )
    return Verification(error=error, tolerance=tolerance, observations=OBSERVATIONS)


def probes(
    policy: MoDEPolicy, inputs: tuple[Array, ...], seed: int = 0
) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
    """Yield made-up inputs, and what the policy does: states over the range of the demonstrations, random
    images, every instruction in turn, and a prefix in every other.
    """
    generator = torch.Generator().manual_seed(seed)
    chunk = policy.config.chunk
    for i in range(OBSERVATIONS):
        values = {array.name: _probe(policy, array, i, generator) for array in inputs}
        if i % 2:
            weights = soft_mask(chunk, fixed=1, overlap=chunk)
            values["prefix_weights"] = torch.tensor(weights).expand(values["prefix_weights"].shape)
        values = {name: value.contiguous().to(policy.device) for name, value in values.items()}
        draws = iter(values["noise"])
        prefix = Prefix(actions=values["prefix"], weights=values["prefix_weights"])
        actions_BCA = policy.act(
            observation_of(values), noise=functools.partial(next, draws), prefix=prefix if i % 2 else None
        )
        yield values, actions_BCA


def _probe(policy: MoDEPolicy, array: Array, number: int, generator: torch.Generator) -> Tensor:
    if array.dtype == "uint8":
        return torch.randint(0, 256, array.shape, dtype=torch.uint8, generator=generator)
    if array.name == "instruction":
        assert policy.instructions is not None
        known = policy.instructions.embeddings
        rows = [(number * array.shape[0] + b) % len(known) for b in range(array.shape[0])]
        return known[rows].float().cpu()
    if array.name == "noise":
        return torch.randn(array.shape, generator=generator)
    if array.name == "prefix_weights":
        return torch.zeros(array.shape)
    statistics = policy.statistics[ACTION if array.name == "prefix" else array.name]
    low, high = (torch.from_numpy(statistics[name]) for name in ("min", "max"))
    return low + (high - low) * torch.rand(array.shape, generator=generator)


def _first_probe(policy: MoDEPolicy, plan: InferencePlan) -> dict[str, Tensor]:
    """The first probe with the policy's actions, and their scale."""
    values, actions_BCA = next(probes(policy, inputs_of(plan)))
    recorded = {**values, "action": actions_BCA, "scale": policy.action_normalizer.scale}
    return {name: value.cpu().contiguous() for name, value in recorded.items()}


def _experts(policy: MoDEPolicy) -> int:
    config = policy.config.denoiser.experts
    return config.num - config.shared
