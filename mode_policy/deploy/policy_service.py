"""A policy that answers requests: plain maps of arrays in, action chunks out, several at once.

Legend: N requests, H history, C chunk, A action dimensions.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mode_policy.checkpoint import load_policy, read_description
from mode_policy.config import SamplerConfig, build, to_dict
from mode_policy.diffusion.prefix import Prefix, soft_mask
from mode_policy.errors import DataError, InferenceError, ModePolicyError
from mode_policy.inference.pool import EngineName, EnginePool
from mode_policy.inference.weights import Precision
from mode_policy.policy import MoDEPolicy
from mode_policy.types import ACTION, Observation, feature_kind

#: Keys of a request that are no features.
PROMPT, RTC, SEED = "prompt", "rtc", "seed"
#: Characters of an instruction: to look for what is similar to a very long one takes seconds.
LONGEST_PROMPT = 2000


class PolicyService:
    """Turns requests into one batch of inference.

    Args:
        policy: ready to act.
        about: what its checkpoint says about its origin.
        engine: what computes; see `mode_policy.inference.pool.EnginePool`.
        precision: of its large weights.

    Raises:
        PlanError: if that engine cannot run this policy.
    """

    def __init__(
        self,
        policy: MoDEPolicy,
        about: Mapping[str, Any] | None = None,
        engine: EngineName = "auto",
        precision: Precision = "float32",
    ) -> None:
        self.policy = policy.eval()
        self.engines = EnginePool(self.policy, engine, precision)
        self.history = policy.config.history
        self.observed = {k: f for k, f in policy.features.items() if feature_kind(k) != "action"}
        self.metadata = describe(policy, about or {})

    def warm_up(self) -> float:
        """Act on zeros twice, as the first time is slow; return the seconds of the second.

        Also once with a chunk to continue, which takes another way through the sampler.
        """
        self.engines.prepare(1)
        zeros = {
            k: np.zeros((self.history, *f.shape), np.uint8 if feature_kind(k) == "image" else np.float32)
            for k, f in self.observed.items()
        }
        table = self.policy.instructions
        request = {**zeros, PROMPT: table.instructions[0]} if table is not None else dict(zeros)
        self.infer([request])
        kept = np.zeros((self.policy.config.chunk, self.policy.action_dim), np.float32)
        self.infer([request | {RTC: {"actions": kept, "fixed": 1}}])
        start = time.perf_counter()
        self.infer([request])
        return time.perf_counter() - start

    def infer(self, requests: Sequence[Mapping[str, Any]]) -> list[np.ndarray]:
        """Return an action chunk ``(C, A)`` in raw units for each request.

        Raises:
            DataError: if a request lacks a feature, has another shape or an unknown instruction.
        """
        policy = self.policy
        stacked = {k: np.stack([self._feature(r, k) for r in requests]) for k in self.observed}
        tensors = {k: torch.from_numpy(v).to(policy.device) for k, v in stacked.items()}
        observation = Observation(
            states={k: v for k, v in tensors.items() if feature_kind(k) == "state"},
            images={k: v for k, v in tensors.items() if feature_kind(k) == "image"},
            instruction=self._instructions(requests),
        )
        noise = [_noise(r, (policy.config.chunk, policy.action_dim)) for r in requests]

        def draw() -> Tensor:
            return torch.stack([one() for one in noise]).to(policy.device)

        actions = self.engines.act(observation, draw, self._prefix(requests))
        return list(actions.float().cpu().numpy())

    def check(self, request: Mapping[str, Any]) -> None:
        """Look at one request before it joins others in a batch.

        Raises:
            DataError: if it cannot be answered.
        """
        for key in self.observed:
            self._feature(request, key)
        self._instructions([request])
        self._row(request)
        _noise(request, (1,))

    def _feature(self, request: Mapping[str, Any], key: str) -> np.ndarray:
        feature = self.observed[key]
        if key not in request:
            keys = sorted(str(k) for k in request)
            raise DataError(f"the request has {keys}; the policy needs {key!r}")
        value, shape = request[key], (self.history, *feature.shape)
        if not isinstance(value, np.ndarray) or value.shape != shape or value.dtype.kind not in "biuf":
            given = f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__
            raise DataError(f"{key!r} is {given}; the policy needs numbers of shape {shape}")
        if feature_kind(key) == "image":
            if value.dtype != np.uint8:
                raise DataError(f"{key!r} is {value.dtype}; pictures are uint8, 0 to 255, RGB, upright")
            return value
        single = _single(value)
        if not np.isfinite(single).all():
            raise DataError(f"{key!r} is not finite in single precision: {value.tolist()}")
        return single

    def _instructions(self, requests: Sequence[Mapping[str, Any]]) -> Tensor | None:
        table = self.policy.instructions
        if table is None:
            return None
        texts = []
        for request in requests:
            text = request.get(PROMPT) or (table.instructions[0] if len(table.instructions) == 1 else None)
            if not isinstance(text, str):
                raise DataError(
                    f"this policy needs an instruction: give {PROMPT!r}, one of {table.instructions}"
                )
            if len(text) > LONGEST_PROMPT:
                raise DataError(f"an instruction of {len(text)} characters; at most {LONGEST_PROMPT}")
            texts.append(text)
        return table.embed(texts).to(self.policy.device)

    def _prefix(self, requests: Sequence[Mapping[str, Any]]) -> Prefix | None:
        rows = [self._row(request) for request in requests]
        if all(row is None for row in rows):
            return None
        chunk, dim = self.policy.config.chunk, self.policy.action_dim
        free = (np.zeros((chunk, dim), np.float32), [0.0] * chunk)
        actions, weights = zip(*(row or free for row in rows), strict=True)
        device = self.policy.device
        return Prefix(
            actions=torch.from_numpy(np.stack(actions)).to(device),
            weights=torch.tensor(weights, dtype=torch.float32, device=device),
        )

    def _row(self, request: Mapping[str, Any]) -> tuple[np.ndarray, list[float]] | None:
        """The committed actions of one request, padded to a chunk, and how firmly each is committed."""
        rtc = request.get(RTC)
        if rtc is None:
            return None
        chunk, dim = self.policy.config.chunk, self.policy.action_dim
        if not isinstance(rtc, Mapping):
            raise DataError(f"{RTC!r} is {rtc!r}; it must be a map")
        actions = rtc.get("actions")
        if not isinstance(actions, np.ndarray) or not _is_rows_of_numbers(actions, dim):
            raise DataError(f"{RTC!r} needs 'actions', finite numbers of shape (n, {dim})")
        fixed, form = rtc.get("fixed", 0), rtc.get("mask", "exponential")
        if type(fixed) is not int or fixed < 0 or form not in ("exponential", "linear", "none"):
            raise DataError(
                f"{RTC!r} has fixed={fixed!r}, mask={form!r}; give a number of ticks and a known mask"
            )
        kept = _single(actions[:chunk])
        padded = np.zeros((chunk, dim), np.float32)
        padded[: len(kept)] = kept
        return padded, soft_mask(chunk, min(fixed, len(kept)), len(kept), form)


def _is_rows_of_numbers(actions: np.ndarray, dim: int) -> bool:
    fits = actions.ndim == 2 and actions.shape[1] == dim and actions.dtype.kind in "biuf"
    return fits and bool(np.isfinite(_single(actions)).all())


def _single(value: np.ndarray) -> np.ndarray:
    """Return numbers in single precision; what is too large for it becomes infinite."""
    with np.errstate(over="ignore"):
        return value.astype(np.float32)


def _noise(request: Mapping[str, Any], shape: tuple[int, ...]) -> Any:
    """Return a function that draws noise for one request, from its own seed if it has one."""
    seed = request.get(SEED)
    if seed is None:
        return lambda: torch.randn(shape)
    if not isinstance(seed, list | tuple) or not all(type(s) is int and s >= 0 for s in seed):
        raise DataError(f"{SEED!r} is {seed!r}; give a list of integers that are not negative")
    mixed = np.random.SeedSequence(list(seed)).generate_state(1, np.uint64)[0]
    generator = torch.Generator().manual_seed(int(mixed >> np.uint64(1)))
    return lambda: torch.randn(shape, generator=generator)


def describe(policy: MoDEPolicy, about: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a client needs to know of a policy, as plain data."""
    statistics = policy.statistics[ACTION]
    return {
        "policy": "mode_policy",
        "features": {k: f.to_json() for k, f in policy.features.items()},
        "chunk": policy.config.chunk,
        "execute": policy.config.execute,
        "history": policy.config.history,
        "action_min": [float(v) for v in statistics["min"]],
        "action_max": [float(v) for v in statistics["max"]],
        "instructions": list(policy.instructions.instructions) if policy.instructions else [],
        "sampler": policy.config.sampler.name,
        "denoising_steps": policy.config.sampler.steps,
        "task": dict(about.get("task", {})) if isinstance(about.get("task"), Mapping) else {},
    }


class LocalEndpoint:
    """The policy of a checkpoint in this process."""

    def __init__(self, service: PolicyService) -> None:
        self._service = service

    def open(self) -> Mapping[str, Any]:
        """Warm it up."""
        self._service.warm_up()
        return self._service.metadata

    def infer(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """Act on one request.

        Raises:
            InferenceError: if the request does not fit the policy.
        """
        start = time.perf_counter()
        try:
            (actions,) = self._service.infer([request])
        except ModePolicyError as error:
            raise InferenceError(str(error)) from error
        return {"actions": actions, "policy_timing": {"infer_ms": 1e3 * (time.perf_counter() - start)}}

    def close(self) -> None:
        """Nothing to let go."""


def load_service(
    checkpoint: str | Path,
    *,
    device: str = "cpu",
    weights: str = "ema",
    sampler: Mapping[str, Any] | None = None,
    engine: EngineName = "auto",
    precision: Precision = "float32",
) -> PolicyService:
    """Load a checkpoint, ready to answer.

    Args:
        checkpoint: its folder.
        device: "cpu" or "cuda".
        weights: "ema" or "raw".
        sampler: fields of its `SamplerConfig` to change; those that are None stay.
        engine: see `PolicyService`.
        precision: see `PolicyService`.

    Raises:
        CheckpointError: if it is incomplete or damaged.
        ConfigError: if the sampler's fields do not fit.
        PlanError: if that engine cannot run this policy.
    """
    assert weights in ("ema", "raw")
    policy = load_policy(checkpoint, weights=weights, device=device)  # type: ignore[arg-type]
    changes = {k: v for k, v in (sampler or {}).items() if v is not None}
    changed = build(SamplerConfig, to_dict(policy.config.sampler) | changes, "sampler")
    policy.config = replace(policy.config, sampler=changed)
    return PolicyService(policy, read_description(Path(checkpoint))["about"], engine, precision)
