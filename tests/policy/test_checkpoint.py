"""Checkpoints: whole or absent, strict, complete without the dataset."""

import errno
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mode_policy import checkpoint as module
from mode_policy.checkpoint import load_policy, load_training_state, save_checkpoint
from mode_policy.errors import CheckpointError, ModePolicyError
from tests import toy


@pytest.fixture
def saved(tmp_path):
    policy = toy.policy()
    raw = {k: v + 1 for k, v in policy.state_dict().items()}
    path = tmp_path / "run" / "checkpoints" / "step_1"
    save_checkpoint(
        path, policy, raw, about={"task": "toy"}, optimizer={"0.step": torch.ones(())}, progress={"step": 1}
    )
    return path


def test_round_trip(saved):
    policy = load_policy(saved)
    observation, noise = toy.batch(0).observation, torch.randn(16, 4, 2)
    assert torch.equal(
        policy.act(observation, noise=noise), toy.policy().eval().act(observation, noise=noise)
    )
    assert policy.config == toy.config()
    assert policy.features == toy.FEATURES
    assert policy.instructions.instructions == toy.INSTRUCTIONS.instructions
    raw = load_policy(saved, weights="raw")
    assert all(torch.equal(b, a + 1) for a, b in zip(policy.parameters(), raw.parameters(), strict=True))
    assert load_training_state(saved)[1] == {"step": 1}
    assert "torch" in json.loads((saved / "checkpoint.json").read_text())["versions"]


def test_nothing_is_pickled(saved):
    assert {p.suffix for p in saved.rglob("*") if p.is_file()} == {".json", ".safetensors"}


def test_nothing_is_overwritten(saved):
    with pytest.raises(FileExistsError):
        save_checkpoint(saved, toy.policy(), {}, about={})


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    def full(tensors, path):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "_save", full)
    with pytest.raises(ModePolicyError, match=r"no space left while writing .*step_1 .*run_dir="):
        save_checkpoint(tmp_path / "step_1", toy.policy(), {}, about={})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["weights.safetensors", "instructions.safetensors"])
def test_corrupt_and_missing_files_are_named(saved, name):
    data = bytearray((saved / name).read_bytes())
    data[-3] ^= 1
    (saved / name).write_bytes(data)
    with pytest.raises(CheckpointError, match=f"{name} is corrupt"):
        load_policy(saved)
    (saved / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name} is missing"):
        load_policy(saved)


def test_damaged_description(saved):
    file = saved / "checkpoint.json"
    text = file.read_text()
    file.write_text(text[:100])
    with pytest.raises(CheckpointError, match="is damaged"):
        load_policy(saved)
    file.write_text(json.dumps({k: v for k, v in json.loads(text).items() if k != "features"}))
    with pytest.raises(CheckpointError, match=r"is damaged.*no features"):
        load_policy(saved)
    file.write_text(json.dumps(json.loads(text) | {"format": 99}))
    with pytest.raises(CheckpointError, match="format 99, this version reads up to 1"):
        load_policy(saved)


def test_a_folder_that_is_no_checkpoint_suggests_the_right_one(saved):
    (saved.parent / "last").symlink_to(saved.name)
    with pytest.raises(CheckpointError, match=r"is no checkpoint.*did you mean .*checkpoints/last"):
        load_policy(saved.parents[1])


def test_another_architecture_is_refused(saved):
    """Weights of another network under this description: each difference is found."""
    state = load_file(saved / "weights.safetensors")
    state["denoiser.out.weight"] = torch.zeros(5, 16)
    state["denoiser.extra"] = state.pop("denoiser.out.bias")
    save_file(state, saved / "weights.safetensors")
    description = json.loads((saved / "checkpoint.json").read_text())
    description["sha256"]["weights.safetensors"] = module.sha256(saved / "weights.safetensors")
    (saved / "checkpoint.json").write_text(json.dumps(description))
    with pytest.raises(
        CheckpointError, match=r"another architecture \(3 differences\): missing denoiser.out.bias"
    ):
        load_policy(saved)


def test_damaged_training_state(saved):
    file = saved / "training" / "optimizer.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    load_policy(saved)  # acting does not need it
    with pytest.raises(CheckpointError, match=r"optimizer.safetensors is corrupt"):
        load_training_state(saved)


def test_without_training_state(saved):
    (saved / "training" / "progress.json").unlink()
    with pytest.raises(CheckpointError, match="can be evaluated but not resumed"):
        load_training_state(saved)


def test_statistics_are_those_of_the_data(saved):
    data = json.loads((saved / "checkpoint.json").read_text())["statistics"]["action"]
    np.testing.assert_allclose(data["max"], toy.arrays()["action"].max(0))
