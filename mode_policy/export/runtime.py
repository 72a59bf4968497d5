"""Running an export: the folder in, actions out, without the code that defines or trains policies.

::

    policy = load("exports/pusht")
    actions = policy.act(observation, instruction="Push the T-shaped block onto the T-shaped target.")

Of this package the targets ``aoti`` and ``onnx`` need a few small files; ``weights`` needs its networks, too.

A ``.pt2`` is native code: load only what you or people whom you trust have exported. The hashes in the
manifest protect from damage, not from intent.

Legend: B batch, C chunk, A action dimension, N draws of noise, G goal width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mode_policy.diffusion.prefix import Prefix
from mode_policy.errors import DataError, ExportError
from mode_policy.export.machine import device_named, obstacle, this_machine
from mode_policy.export.manifest import (
    CHECK,
    DESCRIPTION,
    INSTRUCTIONS,
    MODEL,
    Array,
    Manifest,
    check_files,
    check_package,
    read_manifest,
    read_tensors,
)
from mode_policy.types import InstructionTable, Observation

if TYPE_CHECKING:
    from mode_policy.inference.plan import InferencePlan

#: Takes the tensors of `Manifest.inputs` in their order, returns actions ``(B, C, A)`` in raw units.
Model = Callable[[Sequence[Tensor]], Tensor]


class Exported:
    """A policy that was exported, ready to act. Made by `load`.

    Attributes:
        manifest: what it is.
        device: where it runs, and where its inputs are moved to.
        instructions: that it knows, or None without language.
        plan: of the target ``weights``, for other engines; None for the others.
    """

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        model: Model,
        device: torch.device,
        plan: InferencePlan | None = None,
    ) -> None:
        self.folder = folder
        self.manifest = manifest
        self.device = device
        self.plan = plan
        self.instructions: InstructionTable | None = None
        if manifest.instructions is not None:
            self.instructions = InstructionTable(
                encoder=manifest.instructions.encoder,
                instructions=manifest.instructions.instructions,
                embeddings=read_tensors(folder / INSTRUCTIONS, "embeddings")["embeddings"],
            )
        self._model = model
        self._shapes = {array.name: array.shape for array in manifest.inputs}

    def act(
        self,
        observation: Observation,
        *,
        instruction: str | Sequence[str] | None = None,
        noise: Tensor | Sequence[Tensor] | None = None,
        generator: torch.Generator | None = None,
        prefix: Prefix | None = None,
    ) -> Tensor:
        """Sample action chunks.

        Args:
            observation: batch of B, as the manifest says. Features that the policy does not read are ignored.
            instruction: a known one for all, or one for each sample, if the observation holds no embedding.
            noise: standard normal ``(B, C, A)``: the start and, for stochastic samplers, each draw in its
                order; drawn by default.
            generator: for the draws that are not given, on this export's device.
            prefix: committed actions that the chunk continues.

        Returns:
            Actions ``(B, C, A)`` in raw units, on the export's device.

        Raises:
            DataError: if a feature is missing, has another shape or type, or is not finite; if an instruction
                is missing or unknown; if there is too little noise.
        """
        values: dict[str, Tensor] = {**observation.states, **observation.images}
        if self.instructions is not None:
            values["instruction"] = self._instruction(observation, instruction)
        values["noise"] = self._noise(noise, generator)
        values |= self._prefix(prefix)
        return self._model(self._ordered(values))

    def check(self) -> float:
        """Act on the recorded observation, and compare with what the policy itself did when it was exported.

        Returns:
            The largest difference, in units of the action's scale.

        Raises:
            ExportError: if it exceeds the tolerance of the manifest.
        """
        recorded = read_tensors(self.folder / CHECK, "action", "scale")
        actions_BCA = self._model(self._ordered(recorded)).cpu()
        error = float(((actions_BCA - recorded["action"]) / recorded["scale"]).abs().max())
        assert self.manifest.verification is not None
        tolerance = self.manifest.verification.tolerance
        if not error <= tolerance:
            raise ExportError(
                f"{self.folder} acts differently here: from its recorded observation it gives actions that "
                f"are off by {error:g} of their scale (at most {tolerance:g}); export it on this machine"
            )
        return error

    def _instruction(self, observation: Observation, texts: str | Sequence[str] | None) -> Tensor:
        assert self.instructions is not None
        known = self.instructions.instructions
        if observation.instruction is not None:
            return observation.instruction
        if texts is None:
            if len(known) != 1:
                raise DataError(f"this policy needs an instruction: give instruction=, one of {list(known)}")
            texts = known[0]
        batch = self.manifest.batch
        return self.instructions.embed([texts] * batch if isinstance(texts, str) else texts)

    def _noise(self, noise: Tensor | Sequence[Tensor] | None, generator: torch.Generator | None) -> Tensor:
        shape = self._shapes["noise"]
        if noise is None:
            return torch.empty(shape, device=self.device).normal_(generator=generator)
        draws = [noise] if isinstance(noise, Tensor) else list(noise)
        if len(draws) < shape[0]:
            raise DataError(
                f"{len(draws)} noise tensors; {self.manifest.sampler.name} with "
                f"{self.manifest.sampler.steps} steps takes {shape[0]}"
            )
        for draw in draws[: shape[0]]:
            if tuple(draw.shape) != shape[1:]:
                raise DataError(f"noise has shape {tuple(draw.shape)}; this export takes {shape[1:]}")
        return torch.stack(draws[: shape[0]])

    def _prefix(self, prefix: Prefix | None) -> dict[str, Tensor]:
        if prefix is None:
            names = ("prefix", "prefix_weights")
            return {name: torch.zeros(self._shapes[name], device=self.device) for name in names}
        return {"prefix": prefix.actions, "prefix_weights": prefix.weights}

    def _ordered(self, values: Mapping[str, Tensor]) -> list[Tensor]:
        """Return the inputs in their order, on the device, after checking each.

        Raises:
            DataError: naming the first that does not fit.
        """
        for array in self.manifest.inputs:
            if array.name not in values:
                given = sorted(k for k in values if k.startswith("observation."))
                raise DataError(f"the observation has {given}; this export needs {array.name!r}")
            _fits(values[array.name], array, self.manifest.batch)
        return [values[array.name].to(self.device).contiguous() for array in self.manifest.inputs]


def _fits(value: Tensor, array: Array, batch: int) -> None:
    dtype = getattr(torch, array.dtype)
    if value.dtype != dtype:
        hint = ".to(torch.float32)" if array.dtype == "float32" else "0 to 255, RGB, upright"
        raise DataError(f"{array.name!r} is {value.dtype}; this export takes {array.dtype} ({hint})")
    if tuple(value.shape) != array.shape:
        hint = ""
        axis = 1 if array.name == "noise" else 0
        if value.ndim == len(array.shape) and value.shape[axis] != array.shape[axis]:
            hint = f"; it was made for a batch of {batch}: export it with batch={value.shape[axis]}"
        raise DataError(f"{array.name!r} has shape {tuple(value.shape)}, not {array.shape}{hint}")
    if array.dtype == "float32" and not bool(value.isfinite().all()):
        raise DataError(f"{array.name!r} is not finite")


def load(folder: str | Path, *, device: str | None = None, threads: int | None = None) -> Exported:
    """Load an export.

    Args:
        folder: that ``export.py`` wrote.
        device: "cpu" or "cuda" for the target ``weights``; native code runs on what it was made for.
        threads: of ONNX Runtime; torch's number by default.

    Raises:
        ExportError: if the folder is incomplete or damaged (naming the file), or its native code was made for
            another machine, or the device is unknown or not here, or a package is missing that its target
            needs.
    """
    folder = Path(folder).expanduser()
    manifest = read_manifest(folder)
    check_files(folder, manifest)
    return open_model(folder, manifest, device, threads)


def open_model(
    folder: Path, manifest: Manifest, device: str | None = None, threads: int | None = None
) -> Exported:
    """`load` for a folder whose files are known to be whole.

    Raises:
        ExportError: see `load`.
    """
    file = folder / MODEL[manifest.target]
    runs_on = device_named(device or manifest.device)
    if manifest.target == "weights":
        if runs_on.type == "cuda" and not torch.cuda.is_available():
            raise ExportError(f"{folder} is to run on {runs_on}, but torch finds no GPU; use device='cpu'")
        from mode_policy.export.weights import load_plan, planned_model

        plan = load_plan(folder, manifest, runs_on)
        return Exported(folder, manifest, planned_model(plan), runs_on, plan)
    if runs_on.type != manifest.device:
        raise ExportError(f"{folder} runs on {manifest.device}, not on {device}; leave device out")
    model = _native(file, manifest) if manifest.target == "aoti" else _onnx(file, manifest, threads)
    return Exported(folder, manifest, model, runs_on)


def _native(file: Path, manifest: Manifest) -> Model:
    if manifest.made_for is None:
        raise ExportError(
            f"{file.parent} does not say which machine {file.name} was made for; export it again"
        )
    if reason := obstacle(manifest.made_for, this_machine(manifest.device)):
        raise ExportError(f"{file} cannot run here: {reason}; export the checkpoint on this machine")
    check_package(file)
    from torch._inductor import aoti_load_package

    try:
        package = aoti_load_package(str(file))
    except RuntimeError as error:
        raise ExportError(f"{file} cannot be loaded: {str(error).splitlines()[0]}") from error

    def run(inputs: Sequence[Tensor]) -> Tensor:
        with torch.inference_mode():
            actions_BCA: Tensor = package(*inputs)
        return actions_BCA

    return run


def _onnx(file: Path, manifest: Manifest, threads: int | None) -> Model:
    try:
        import onnxruntime
    except ImportError as error:
        raise ExportError(
            "exports of the target onnx run in ONNX Runtime: pip install onnxruntime"
        ) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.log_severity_level = 3  # errors
    from onnxruntime.capi.onnxruntime_pybind11_state import (
        Fail,
        InvalidArgument,
        InvalidGraph,
        InvalidProtobuf,
        NotImplemented,
    )

    try:
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except (Fail, InvalidArgument, InvalidGraph, InvalidProtobuf, NotImplemented) as error:
        raise ExportError(
            f"ONNX Runtime {onnxruntime.__version__} cannot load {file}: {error}; try a newer one"
        ) from error
    names = [array.name for array in manifest.inputs]
    taken = {value.name: tuple(value.shape) for value in session.get_inputs()}
    if unfit := [a.name for a in manifest.inputs if taken.get(a.name, a.shape) != a.shape]:
        raise ExportError(
            f"{file} takes other shapes of {unfit} than {DESCRIPTION} says; export the checkpoint again"
        )

    def run(inputs: Sequence[Tensor]) -> Tensor:
        arrays = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
        (actions_BCA,) = session.run(None, arrays)
        return torch.from_numpy(actions_BCA)

    return run
