"""Checkpoints: whole or absent, strict, complete without the dataset."""

import contextlib
import errno
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mode_policy import checkpoint as module
from mode_policy.checkpoint import load_policy, load_training_state, read_description, save_checkpoint
from mode_policy.errors import CheckpointError, ModePolicyError
from mode_policy.files import sha256
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


def test_a_disk_that_is_full_for_real(full_disk):
    (full_disk / "others").write_bytes(bytes(200_000))
    with pytest.raises(ModePolicyError, match=r"no space left while writing .*step_1"):
        save_checkpoint(full_disk / "step_1", toy.policy(), toy.policy().state_dict(), about={})
    assert [p.name for p in full_disk.iterdir()] == ["others"]


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
    with pytest.raises(CheckpointError, match="format 99, this version reads up to 2"):
        load_policy(saved)


def test_a_flipped_bit_of_the_description_is_noticed(saved):
    """A digit of a statistic would still be JSON, and move the robot elsewhere."""
    file = saved / "checkpoint.json"
    data, good = file.read_bytes(), read_description(saved)
    rng = np.random.default_rng(0)
    for place in rng.choice(len(data), 300, replace=False):
        changed = bytearray(data)
        changed[place] ^= 1 << rng.integers(8)
        file.write_bytes(changed)
        with contextlib.suppress(CheckpointError):
            assert read_description(saved) == good, f"byte {place}"


def test_descriptions_of_the_first_format_have_no_digest(saved):
    describe(saved, format=1)
    load_policy(saved)
    describe(saved, format=2)
    with pytest.raises(CheckpointError, match="do not fit its digest"):
        load_policy(saved)


def test_a_policy_of_another_version_is_named(saved):
    config = read_description(saved)["config"]
    describe(saved, format=1, config=config | {"denoiser": config["denoiser"] | {"recurrent": True}})
    with pytest.raises(CheckpointError, match=r"step_1 was made for another architecture: .*recurrent"):
        load_policy(saved)


def describe(path, **changes):
    """Change a description by hand, without a new digest."""
    data = {k: v for k, v in read_description(path).items() if k != "digest"}
    (path / "checkpoint.json").write_text(json.dumps(data | changes))


def test_a_folder_that_is_no_checkpoint_suggests_the_right_one(saved):
    (saved.parent / "last").symlink_to(saved.name)
    with pytest.raises(CheckpointError, match=r"is no checkpoint.*did you mean .*run/checkpoints/last\?"):
        load_policy(saved.parents[1])


def test_another_architecture_is_refused(saved):
    """Weights of another network under this description: each difference is found."""
    state = load_file(saved / "weights.safetensors")
    state["denoiser.out.weight"] = torch.zeros(5, 16)
    state["denoiser.extra"] = state.pop("denoiser.out.bias")
    save_file(state, saved / "weights.safetensors")
    hashes = read_description(saved)["sha256"]
    describe(saved, format=1, sha256=hashes | {"weights.safetensors": sha256(saved / "weights.safetensors")})
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
