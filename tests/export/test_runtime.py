"""What the runtime refuses, and in which words."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from mode_policy.errors import CheckpointError, DataError, ExportError
from mode_policy.export.manifest import CHECK, hashes, read_manifest, write_manifest
from mode_policy.export.runtime import Exported, load
from mode_policy.types import STATE, Observation
from tests import toy


@pytest.fixture(scope="module")
def exported(weights_export) -> Exported:
    return load(weights_export)


def seen(batch: int = 1) -> Observation:
    return toy.batch(3, batch).observation


def test_the_recorded_observation_gives_the_recorded_actions(exported) -> None:
    assert exported.check() < 1e-4


def test_instructions_are_chosen_by_their_text(exported) -> None:
    noise, embedded = torch.randn(1, 4, 2), toy.INSTRUCTIONS.embed(["go right"])
    plain = replace(seen(), instruction=None)
    by_text = exported.act(plain, instruction="go right", noise=noise)
    assert torch.equal(by_text, exported.act(replace(plain, instruction=embedded), noise=noise))
    assert torch.equal(by_text, exported.act(plain, instruction=["go right"], noise=noise))
    assert not torch.equal(by_text, exported.act(plain, instruction="go left", noise=noise))


def test_noise_is_drawn_from_the_generator(exported) -> None:
    first, second = (exported.act(seen(), generator=torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, exported.act(seen()))


def test_other_features_are_ignored(exported) -> None:
    noise = torch.randn(1, 4, 2)
    more = replace(seen(), states={**seen().states, "observation.other": torch.zeros(1)})
    assert torch.equal(exported.act(more, noise=noise), exported.act(seen(), noise=noise))


def with_state(state: torch.Tensor) -> Observation:
    return replace(seen(), states={STATE: state})


@pytest.mark.parametrize(
    ("observation", "words"),
    [
        (Observation(instruction=torch.zeros(1, 8)), r"has \[\]; this export needs 'observation.state'"),
        (with_state(torch.zeros(1, 1, 4)), r"'observation.state' has shape \(1, 1, 4\), not \(1, 1, 3\)$"),
        (with_state(torch.zeros(1, 3)), r"has shape \(1, 3\), not \(1, 1, 3\)$"),
        (with_state(torch.zeros(2, 1, 3)), r"made for a batch of 1: export it with batch=2"),
        (with_state(torch.zeros(1, 1, 3).double()), r"is torch.float64; this export takes float32"),
        (with_state(torch.zeros(1, 1, 3, dtype=torch.uint8)), r"is torch.uint8; this export takes float32"),
        (with_state(torch.full((1, 1, 3), torch.nan)), r"'observation.state' is not finite"),
        (replace(seen(), instruction=None), r"needs an instruction: give instruction=, one of \['go left'"),
        (replace(seen(), instruction=torch.zeros(1, 9)), r"'instruction' has shape \(1, 9\), not \(1, 8\)"),
    ],
)
def test_observations_that_do_not_fit_are_refused(exported, observation: Observation, words: str) -> None:
    with pytest.raises(DataError, match=words):
        exported.act(observation)


def test_unknown_instructions_are_refused(exported) -> None:
    with pytest.raises(DataError, match=r"unknown instruction 'go up'. Did you mean"):
        exported.act(replace(seen(), instruction=None), instruction="go up")


def test_noise_that_does_not_fit_is_refused(exported) -> None:
    with pytest.raises(DataError, match="0 noise tensors; ddim with 2 steps takes 1"):
        exported.act(seen(), noise=[])
    with pytest.raises(DataError, match=r"noise has shape \(1, 5, 2\); this export takes \(1, 4, 2\)"):
        exported.act(seen(), noise=torch.zeros(1, 5, 2))


@pytest.mark.parametrize("name", ["gpu", "mps"])
def test_unknown_devices_are_refused(weights_export, name: str) -> None:
    with pytest.raises(ExportError, match=f"device='{name}' is unknown; use 'cpu' or 'cuda'"):
        load(weights_export, device=name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused(weights_export, damaged) -> None:
    with pytest.raises(ExportError, match=r"run on cuda, but torch finds no GPU; use device='cpu'"):
        load(weights_export, device="cuda")
    write_manifest(damaged, replace(read_manifest(damaged), device="cuda"))  # as written by device=cuda
    with pytest.raises(ExportError, match=r"run on cuda, but torch finds no GPU; use device='cpu'"):
        load(damaged)
    assert load(damaged, device="cpu").check() < 1e-4


def test_recorded_actions_that_are_not_met_are_reported(damaged) -> None:
    recorded = load_file(damaged / CHECK)
    save_file(recorded | {"action": recorded["action"] + 1}, damaged / CHECK)
    manifest = read_manifest(damaged)
    write_manifest(damaged, replace(manifest, sha256=hashes(damaged, manifest.sha256)))
    with pytest.raises(ExportError, match="acts differently here: from its recorded observation"):
        load(damaged).check()


def test_weights_that_do_not_fit_are_refused(damaged) -> None:
    file = damaged / "weights.safetensors"
    state = load_file(file)
    del state["denoiser.out.bias"]
    save_file(state, file)
    manifest = read_manifest(damaged)
    write_manifest(damaged, replace(manifest, sha256=hashes(damaged, manifest.sha256)))
    with pytest.raises(CheckpointError, match=r"missing denoiser\.out\.bias"):
        load(damaged)
