"""Training policies that see: the same trainer, from a store with images to a checkpoint."""

import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mode_datasets import Provenance, StoreWriter, open_store
from mode_policy.apps.cli import compose, to_plain
from mode_policy.apps.config import TrainConfig
from mode_policy.apps.train import run
from mode_policy.apps.training_data import training_data
from mode_policy.checkpoint import load_policy
from mode_policy.config import build
from mode_policy.convention import Convention
from mode_policy.errors import CheckpointError, ConfigError
from mode_policy.evaluation.runner import PolicyRunner
from mode_policy.policy import MoDEPolicy
from mode_policy.training.metrics import read_metrics
from mode_policy.training.processes import Processes
from mode_policy.training.trainer import Trainer
from mode_policy.types import ACTION, STATE, Episode, Task
from tests import toy

FEATURES = toy.FEATURES | toy.IMAGES


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Eight short demonstrations with two cameras."""
    path = tmp_path_factory.mktemp("data") / "seen.zarr"
    provenance = Provenance(source="toy", licence="MIT")
    with StoreWriter(path, FEATURES, Convention(fps=10.0), provenance) as writer:
        for seed in range(8):
            arrays = toy.arrays(30, seed)
            name = f"go {('left', 'right')[seed % 2]}"
            arrays |= toy.pictures(arrays[STATE])
            writer.append(Episode(arrays=arrays, task=Task(name=name, instruction=name), seed=seed))
        writer.set_instructions(toy.INSTRUCTIONS)
    return path


def configure(store, *overrides: str) -> dict:
    return to_plain(
        compose(
            "train",
            [
                "task=pusht",
                "model=debug",
                "vision=tiny",
                f"dataset.path={store}",
                "dataset.layout=native",
                "dataset.validation_fraction=0.25",
                "policy.cameras=[static,gripper]",
                "policy.vision.width=4",
                "policy.vision.size=32",
                "policy.vision.color=0.2",
                "policy.state_tokens=null",
                "policy.history=2",
                "policy.chunk=4",
                "policy.execute=2",
                "trainer.steps=6",
                "trainer.minutes=null",
                "trainer.batch_size=8",
                "trainer.checkpoint_every=2",
                "trainer.validate_every=3",
                "trainer.log_every=1",
                "trainer.device=cpu",
                "trainer.tensorboard=false",
                "evaluation.episodes=0",
                *overrides,
            ],
        )
    )


def train(store, folder, *overrides: str, resume: bool = False):
    data = configure(store, *overrides) | ({"resume": str(folder)} if resume else {})
    run(build(TrainConfig, data), folder, data)
    return folder / "checkpoints" / "last"


def weights(checkpoint, name="weights.safetensors"):
    return load_file(checkpoint / name)


def test_from_a_store_to_a_policy_that_acts(store, tmp_path, capsys):
    checkpoint = train(store, tmp_path / "run")
    text = capsys.readouterr().out
    assert "cameras    static 32 px, gripper 32 px: resnet18, random weights" in text
    losses = [r["loss"] for r in read_metrics(tmp_path / "run" / "metrics.jsonl")]
    assert len(losses) == 6
    assert all(map(math.isfinite, losses))
    policy = load_policy(checkpoint)
    running = policy.image_encoder.networks[0].resnet.bn1
    assert running.num_batches_tracked == 6
    assert not torch.equal(running.running_mean, torch.zeros(4))
    state = toy.arrays(2)[STATE]
    observations = [{STATE: state, **toy.pictures(state)}] * 3
    seeds = [(i, 0) for i in range(3)]
    assert PolicyRunner(policy).act(observations, ["go left"] * 3, seeds).shape == (3, 4, 2)


def test_a_resumed_training_is_exact(store, tmp_path):
    """With augmentation, history and running statistics: killed after a checkpoint, the same bits."""
    config = build(TrainConfig, configure(store))

    def trainer(folder, stop: int | None = None) -> Trainer:
        opened = open_store(store)
        data = training_data([opened], config, Processes(config.trainer))
        torch.manual_seed(0)
        policy = MoDEPolicy(config.policy, FEATURES, opened.statistics, opened.instruction_table)

        def batch(step: int):
            if step == stop:
                raise ConnectionError
            return data.batch(step)

        return Trainer(policy, config.trainer, batch, data.validation, folder)

    trainer(tmp_path / "whole").run()
    with pytest.raises(ConnectionError):
        trainer(tmp_path / "parts", stop=5).run()
    second = trainer(tmp_path / "parts")
    second.resume(tmp_path / "parts" / "checkpoints" / "last")
    assert second.step == 4
    second.run()
    for name in ("weights.safetensors", "weights_raw.safetensors", "training/optimizer.safetensors"):
        whole, parts = (weights(tmp_path / n / "checkpoints" / "last", name) for n in ("whole", "parts"))
        assert whole.keys() == parts.keys()
        assert all(torch.equal(whole[k], parts[k]) for k in whole), name


def test_cameras_alone_teach(tmp_path):
    """The state is seen through the cameras only, and the loss falls."""
    config = build(TrainConfig, configure("unused")).trainer
    settings = {"steps": 120, "batch_size": 32, "learning_rate": 1e-2, "log_every": 20, "validate_every": 120}
    config = build(type(config), {"device": "cpu", "tensorboard": False, "checkpoint_every": 120} | settings)
    policy = toy.image_policy(states=False, vision=toy.VISION | {"shift": 0, "width": 8})

    def batch(step: int):
        return toy.image_batch(step, size=32)

    Trainer(policy, config, batch, [toy.image_batch(10**6, size=64)], tmp_path).run()
    records = read_metrics(tmp_path / "metrics.jsonl")
    assert records[-1]["loss"] < 0.75 * records[0]["loss"]


def test_bf16_trains_on_a_cpu(store, tmp_path):
    checkpoint = train(store, tmp_path / "run", "trainer.precision=bf16", "trainer.steps=2")
    saved = weights(checkpoint)
    assert {v.dtype for v in saved.values()} == {torch.float32, torch.int64}
    assert all(v.isfinite().all() for v in saved.values())


def test_a_run_that_starts_from_another(store, tmp_path, capsys):
    first = train(store, tmp_path / "first")
    options = [f"init_from={tmp_path / 'first'}", "trainer.freeze_routers=true", "policy.loss.load_balance=0"]
    second = train(store, tmp_path / "second", *options, "trainer.steps=1", "trainer.learning_rate=1e-12")
    assert f"weights    from {first}" in capsys.readouterr().out
    a, b = weights(first), weights(second, "weights_raw.safetensors")
    assert all(torch.allclose(a[k], b[k], atol=1e-6) for k in a if "bn" not in k and "downsample.1" not in k)
    assert all(torch.equal(a[k], b[k]) for k in a if ".router." in k)
    # A resumed run takes the checkpoint's weights, not those that it began with.
    train(store, tmp_path / "second", *options, "trainer.steps=2", resume=True)
    assert "weights    from" not in capsys.readouterr().out
    with pytest.raises(CheckpointError, match=r"Train with its settings: policy.vision.size=32$"):
        train(store, tmp_path / "third", *options, "policy.vision.size=40")


def test_a_camera_that_the_dataset_lacks_is_named(store, tmp_path):
    with pytest.raises(
        ConfigError, match=r"names \['left'\]; the dataset's cameras are \['static', 'gripper'\]"
    ):
        train(store, tmp_path / "run", "policy.cameras=[left]")


def test_a_store_with_images_still_trains_a_blind_policy(store, tmp_path):
    checkpoint = train(store, tmp_path / "run", "policy.cameras=[]", "policy.state_tokens=8")
    policy = load_policy(checkpoint)
    assert sorted(policy.features) == [ACTION, STATE]
    assert policy.image_encoder is None


def test_an_image_batch_that_diverges_is_saved_whole(tmp_path):
    def poisoned(step: int):
        made = toy.image_batch(step)
        made.actions.fill_(math.nan)
        return made

    config = build(TrainConfig, configure("unused")).trainer
    with pytest.raises(Exception, match="bad_batch"):
        Trainer(toy.image_policy(), config, poisoned, [], tmp_path).run()
    saved = load_file(next(tmp_path.glob("bad_batch*.safetensors")))
    key = "observation.images.gripper"
    assert np.array_equal(saved[key].numpy(), toy.image_batch(0).observation.images[key].numpy())
