"""Checkpoints: strict, with their statistics, with or without an average; adapters."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from lerobot_policy_mode.modeling_mode import ModePolicy
from mode_policy.errors import CheckpointError
from mode_policy.types import ACTION

from .conftest import batch_of, fresh, metadata, write_dataset

WEIGHTS = "model.safetensors"


def trained(root: Path, *flags: str, steps: int = 2) -> ModePolicy:
    policy = fresh(root, *flags).train()
    optimizer = torch.optim.AdamW(policy.get_optim_params(), lr=1e-2)
    batch = batch_of(root, policy)
    for _ in range(steps):
        policy.forward(batch)[0].backward()
        optimizer.step()
        optimizer.zero_grad()
        policy.update()
    return policy.eval()


def same(a: ModePolicy, b: ModePolicy) -> bool:
    theirs = b.state_dict()
    return all(torch.equal(v, theirs[k]) for k, v in a.state_dict().items())


def test_a_checkpoint_acts_without_its_data_set(dataset: Path, tmp_path: Path) -> None:
    policy = trained(dataset)
    policy.save_pretrained(tmp_path / "saved")
    again = ModePolicy.from_pretrained(tmp_path / "saved")
    assert same(policy, again)
    assert again.config == policy.config
    for key, statistics in policy.model.statistics.items():
        for name, value in statistics.items():
            np.testing.assert_array_equal(again.model.statistics[key][name], value)
    batch, noise = batch_of(dataset, policy), torch.randn(18, 4, 2)
    assert torch.equal(
        again.predict_action_chunk(batch, noise=noise), policy.predict_action_chunk(batch, noise=noise)
    )


@pytest.mark.parametrize("damage", ["missing", "unknown", "shape"])
def test_loading_is_strict_even_where_lerobot_is_not(dataset: Path, tmp_path: Path, damage: str) -> None:
    """LeRobot loads with ``strict=False`` and only logs what is missing."""
    fresh(dataset).save_pretrained(tmp_path / "saved")
    state = load_file(tmp_path / "saved" / WEIGHTS)
    name = "model.denoiser.out.weight"
    if damage == "missing":
        del state[name]
    elif damage == "unknown":
        state["model.denoiser.out.other"] = torch.zeros(1)
    else:
        state[name] = state[name][:1].clone()
    save_file(state, tmp_path / "saved" / WEIGHTS)
    with pytest.raises(
        CheckpointError, match=r"another architecture \(1 differences\): .*model.denoiser.out"
    ):
        ModePolicy.from_pretrained(tmp_path / "saved", strict=False)


def test_a_file_that_is_cut_short_is_named(dataset: Path, tmp_path: Path) -> None:
    fresh(dataset).save_pretrained(tmp_path / "saved")
    path = tmp_path / "saved" / WEIGHTS
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"model.safetensors cannot be read"):
        ModePolicy.from_pretrained(tmp_path / "saved")


def load(folder: Path, **changes: object) -> ModePolicy:
    config = ModePolicy.config_class.from_pretrained(folder)
    for name, value in changes.items():
        setattr(config, name, value)
    return ModePolicy.from_pretrained(folder, config=config)


def test_an_average_can_be_left_out_or_begun(dataset: Path, tmp_path: Path) -> None:
    policy = trained(dataset)
    policy.save_pretrained(tmp_path / "with")
    without = load(tmp_path / "with", ema=False)
    assert without.ema is None
    for name, value in policy.ema.named_parameters():
        assert torch.equal(dict(without.model.named_parameters())[name], value)
    without.save_pretrained(tmp_path / "without")
    begun = load(tmp_path / "without", ema=True)
    assert int(begun.ema_updates) == 2
    for name, value in begun.ema.named_parameters():
        assert torch.equal(dict(begun.model.named_parameters())[name], value)


def test_finetuning_can_begin_at_the_average(dataset: Path, tmp_path: Path) -> None:
    policy = trained(dataset)
    policy.save_pretrained(tmp_path / "saved")
    begun = load(tmp_path / "saved", restart_average=True)
    assert int(begun.ema_updates) == 0
    assert not begun.config.restart_average
    for name, value in policy.ema.named_parameters():
        assert torch.equal(dict(begun.model.named_parameters())[name], value)


def test_finetuning_normalises_by_the_new_data(
    dataset: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fresh(dataset).save_pretrained(tmp_path / "saved")
    other = metadata(write_dataset(tmp_path / "other", seed=5))
    policy = ModePolicy.from_pretrained(tmp_path / "saved", dataset_stats=other.stats, dataset_meta=other)
    np.testing.assert_array_equal(
        policy.model.statistics[ACTION]["max"], np.float32(other.stats[ACTION]["max"])
    )
    assert "action is normalised by the statistics of this data set" in caplog.text
    # Evaluation has no data set: the checkpoint's own count.
    same_again = ModePolicy.from_pretrained(tmp_path / "saved", dataset_stats=None)
    first = metadata(dataset).stats[ACTION]["max"]
    np.testing.assert_array_equal(same_again.model.statistics[ACTION]["max"], np.float32(first))


def test_adapters_are_trained_saved_and_loaded(dataset: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    base = trained(dataset)
    base.save_pretrained(tmp_path / "base")
    config = ModePolicy.config_class.from_pretrained(tmp_path / "base")
    config.pretrained_path = tmp_path / "base"
    policy = ModePolicy.from_pretrained(tmp_path / "base", config=config)
    wrapped = policy.wrap_with_peft(peft_cli_overrides={"method_type": "LORA", "r": 2})
    names = [name for name, p in wrapped.named_parameters() if p.requires_grad]
    assert names
    assert all("lora_" in name for name in names)
    assert any("attention.qkv" in name for name in names)
    assert any("experts" in name for name in names)
    batch, noise = batch_of(dataset, base), torch.randn(18, 4, 2)
    # Adapters begin as nothing, and at the averaged weights.
    torch.testing.assert_close(
        wrapped.eval().predict_action_chunk(batch, noise=noise), base.predict_action_chunk(batch, noise=noise)
    )
    optimizer = torch.optim.AdamW(wrapped.get_optim_params(), lr=0.1)
    for _ in range(2):
        wrapped.train().forward(batch)[0].backward()
        optimizer.step()
        wrapped.update()
    actions = wrapped.eval().predict_action_chunk(batch, noise=noise)
    assert not torch.equal(actions, base.predict_action_chunk(batch, noise=noise))
    wrapped.save_pretrained(tmp_path / "adapter")
    wrapped.config.save_pretrained(tmp_path / "adapter")

    config = ModePolicy.config_class.from_pretrained(tmp_path / "adapter")
    reloaded = ModePolicy.from_pretrained(tmp_path / "base", config=config)
    loaded = peft.PeftModel.from_pretrained(reloaded, tmp_path / "adapter")
    # LoRA's product is added to the weights anew: other rounding.
    torch.testing.assert_close(loaded.eval().predict_action_chunk(batch, noise=noise), actions)
