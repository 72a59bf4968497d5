"""What cannot be imported is refused: by name, with the reason, and without running anything in it."""

import os
from contextlib import suppress

import pytest
import torch

from mode_policy.errors import CheckpointError, ConfigError
from mode_policy.published_config import Images
from mode_policy.published_files import read_published
from mode_policy.published_policy import import_policy
from tests.policy.published_agent import SMALL, lightning, safetensors, settings, small_weights

IMAGES = Images(resolution=(20, 20), size=(32, 32))


def imported(source, **arguments):
    return import_policy(read_published(source), IMAGES, **arguments)


class Payload:
    """Calls a function with a path if it is unpickled."""

    def __init__(self, function, path):
        self.function, self.path = function, path

    def __reduce__(self):
        return (self.function, (str(self.path),))


@pytest.mark.parametrize(
    ("function", "message"),
    [(os.mkdir, r"posix.mkdir.*could run code.*nothing of it was executed"), (eval, r"builtins.eval")],
)
def test_a_pickle_that_runs_code_is_refused(tmp_path, function, message):
    extra = {"callbacks": {"EMA": Payload(function, tmp_path / "executed")}}
    path = lightning(tmp_path / "evil.ckpt", **extra)
    with pytest.raises(CheckpointError, match=message):
        read_published(path)
    assert not (tmp_path / "executed").exists()
    # Negative control: opened the usual way, it does run.
    with suppress(SyntaxError):
        torch.load(path, weights_only=False)
    assert (tmp_path / "executed").exists() == (function is os.mkdir)


def test_damaged_files_are_named(tmp_path):
    (tmp_path / "text.ckpt").write_text("no checkpoint")
    with pytest.raises(CheckpointError, match=r"text.ckpt cannot be read safely"):
        read_published(tmp_path / "text.ckpt")
    path = lightning(tmp_path / "cut.ckpt")
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(CheckpointError, match=r"cut.ckpt cannot be read safely"):
        read_published(path)
    cut = safetensors(tmp_path / "hub") / "model_cleaned.safetensors"
    cut.write_bytes(cut.read_bytes()[:-7])
    with pytest.raises(CheckpointError, match=r"model_cleaned.safetensors cannot be read"):
        read_published(tmp_path / "hub")
    torch.save({"config": {"a": 1}}, tmp_path / "other.ckpt")
    with pytest.raises(CheckpointError, match=r"no Lightning checkpoint and no state dict"):
        read_published(tmp_path / "other.ckpt")


def test_folders(tmp_path):
    with pytest.raises(CheckpointError, match=r"nothing at .*absent; give a .ckpt"):
        read_published(tmp_path / "absent")
    with pytest.raises(CheckpointError, match="holds no weights"):
        read_published(tmp_path)
    for name in ("a", "b"):
        lightning(tmp_path / "models" / f"{name}.ckpt")
    with pytest.raises(CheckpointError, match=r"several checkpoints \(models/a.ckpt, models/b.ckpt\)"):
        read_published(tmp_path)


def without(state, name):
    return {k: v for k, v in state.items() if k != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: without(s, "model.inner_model.blocks.1.ln_2.g"), r"missing \['blocks.1.ln_2.g'\]"),
        (lambda s: s | {"model.inner_model.blocks.0.new": torch.ones(2)}, r"not used \['blocks.0.new'\]"),
        (lambda s: s | {"perceiver.latents": torch.ones(2)}, r"belong to no part .*perceiver.latents"),
        (lambda s: without(s, "static_resnet.layer1.0.bn1.bias"), r"missing image_encoder.networks.0.resnet"),
        (lambda s: without(s, "gripper_resnet.conv1.weight"), "no image encoder for the gripper camera"),
        (lambda s: without(s, "model.inner_model.pos_emb"), "no MoDE checkpoint: it lacks 'pos_emb'"),
        (
            lambda s: {k: v.flatten() if k.endswith("sigma_emb.weight") else v for k, v in s.items()},
            r"'sigma_emb.weight' has shape \(16,\); a flattened or cut checkpoint",
        ),
        (
            lambda s: {k: v for k, v in s.items() if ".layer3.1." not in k},
            r"has \(2, 2, 1, 2\) blocks, which is no known network",
        ),
        (
            lambda s: {k: v[:2] if k == "gripper_resnet.conv1.weight" else v for k, v in s.items()},
            r"the two image encoders differ",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_listed(tmp_path, change, message):
    with pytest.raises(CheckpointError, match=message):
        imported(safetensors(tmp_path, change(small_weights())))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_proprio": True}, "trained with use_proprio=True; only use_proprio=False"),
        ({"model": {"inner_model": {"n_layers": 12}}}, "settings say n_layers=12, the tensors say 2"),
        ({"language_goal": {"model_name": "RN50"}}, r"language_goal.model_name=RN50"),
    ],
)
def test_settings_that_do_not_fit_are_named(tmp_path, change, message):
    path = lightning(tmp_path / "last.ckpt", hyper_parameters=settings(SMALL) | change)
    with pytest.raises(CheckpointError, match=message):
        imported(path)


def test_averages_of_another_network_are_refused(tmp_path):
    state = {"cur_step": 1, "ema_weights": [torch.zeros(3)]}
    path = lightning(tmp_path / "last.ckpt", callbacks={"EMA": state})
    with pytest.raises(
        CheckpointError, match=r"the 1 averaged weights .*import the raw ones with --weights raw"
    ):
        read_published(path)
    assert read_published(path, averaged=False).averaged is None


def test_overrides_are_checked(tmp_path):
    source = safetensors(tmp_path)
    with pytest.raises(ConfigError, match="Did you mean 'steps'"):
        imported(source, overrides=["sampler.step=5"])
    with pytest.raises(ConfigError, match=r"settings look like sampler.steps=5"):
        imported(source, overrides=["sampler.steps"])
