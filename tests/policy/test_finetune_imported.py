"""Finetuning as in the paper, by the documented command: from the authors' weights, routers frozen."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mode_datasets import Provenance, StoreWriter
from mode_envs import convention, env_task, features
from mode_policy.apps.cli import compose, to_plain
from mode_policy.apps.config import TrainConfig
from mode_policy.apps.import_checkpoint import main
from mode_policy.apps.train import run
from mode_policy.checkpoint import load_policy
from mode_policy.config import build
from mode_policy.errors import CheckpointError
from mode_policy.training.checkpoints import newest_checkpoint
from mode_policy.types import ACTION, IMAGE_PREFIX, Episode, Task
from tests.policy.openai_clip import TextEncoder, tensors, vocabulary
from tests.policy.published_agent import lightning, small_weights

TEXTS = ("open the drawer", "open the door")


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """A small checkpoint of the authors, CLIP inside, imported."""
    folder = tmp_path_factory.mktemp("authors")
    torch.manual_seed(0)
    clip = tensors(TextEncoder(features=12))
    averaged = dict(lightning_weights := small_weights() | clip) | small_weights(seed=1)
    ema = {"EMA": {"cur_step": 15000, "ema_weights": [averaged[name] for name in lightning_weights]}}
    source = lightning(folder / "last.ckpt", state_dict=lightning_weights, callbacks=ema)
    texts = [x for text in TEXTS for x in ("--instruction", text)]
    words = ["--vocabulary", str(vocabulary(folder / "bpe.gz"))]
    main(
        [str(source), str(folder / "made"), *texts, *words, "--size", "32", "32", "--resolution", "20", "20"]
    )
    return folder / "made"


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Demonstrations as LIBERO's, whose actions do not fill the range [−1, 1]; no instruction is embedded."""
    path, rng = tmp_path_factory.mktemp("data") / "libero_10.zarr", np.random.default_rng(0)
    env_id = env_task("turn_on_the_stove").env_id
    cameras = {"image_size": (20, 20), "cameras": ("agentview", "eye_in_hand")}
    described = features(env_id, "pixels", **cameras)
    with StoreWriter(path, described, convention(env_id), Provenance(source="test", licence="MIT")) as writer:
        for seed in range(4):
            arrays = {
                key: rng.integers(0, 256, (24, *f.shape), dtype=np.uint8)
                if key.startswith(IMAGE_PREFIX)
                else rng.uniform(-0.4, 0.4, (24, *f.shape)).astype(np.float32)
                for key, f in described.items()
            }
            text = TEXTS[seed % 2]
            writer.append(Episode(arrays=arrays, task=Task(name=text, instruction=text), seed=seed))
    return path


def train(folder, imported, *overrides: str) -> None:
    documented = ["task=libero_10", f"init_from={imported}", "trainer.freeze_routers=true"]
    documented += ["policy.loss.load_balance=0", "policy.normalize_action=identity"]
    small = ["trainer.steps=3", "trainer.batch_size=4", "trainer.device=cpu", "evaluation.episodes=0"]
    small += ["policy.vision.weights=none"]  # ImageNet's are of another width
    data = to_plain(compose("train", [*documented, *small, "dataset.source=path", *overrides]))
    run(build(TrainConfig, data), folder, data)


def test_the_documented_command(imported, store, tmp_path, capsys):
    # Before the demonstrations are looked for, which are not there.
    with pytest.raises(CheckpointError, match=r"another network than this run's. Train with") as refused:
        train(tmp_path / "refused", imported, f"dataset.path={tmp_path / 'absent'}")
    settings = str(refused.value).partition("settings: ")[2].split()
    assert {"policy.denoiser.dim=16", "policy.vision.upside_down=true"} <= set(settings)
    train(tmp_path / "run", imported, f"dataset.path={store}", *settings)
    assert f"weights    from {imported}" in capsys.readouterr().out
    begun = load_file(imported / "weights.safetensors")
    made = newest_checkpoint(tmp_path / "run")
    ema, raw = (load_file(made / name) for name in ("weights.safetensors", "weights_raw.safetensors"))
    routers = {name for name in begun if ".router." in name}
    assert len(routers) == 8
    for weights in (ema, raw):
        assert weights.keys() == begun.keys()
        assert all(torch.equal(weights[name], begun[name]) for name in routers)
        assert not torch.equal(weights["denoiser.out.weight"], begun["denoiser.out.weight"])
    assert not torch.equal(ema["denoiser.out.weight"], raw["denoiser.out.weight"])
    policy = load_policy(made)
    assert policy.config.loss.load_balance == 0
    assert policy.instructions.instructions == TEXTS
    # The actions mean to the network what they meant to the authors'.
    assert torch.equal(policy.action_normalizer(torch.full((7,), 0.4)), torch.full((7,), 0.4))
    assert ACTION in policy.statistics
