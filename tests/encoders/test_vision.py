"""The image encoder: order, history, augmentation, and refusals."""

from dataclasses import replace

import pytest
import torch

from mode_policy.config import PolicyConfig, build
from mode_policy.encoders.vision import ImageEncoder
from mode_policy.encoders.vision_config import CameraInput, VisionConfig
from mode_policy.errors import ConfigError, DataError
from mode_policy.training.processes import RowsOfAll
from mode_policy.types import IMAGE_PREFIX, Feature

SHAPES = {"wrist": (32, 32, 3), "static": (36, 40, 3)}
FEATURES = {IMAGE_PREFIX + name: Feature(shape=shape, dtype="uint8") for name, shape in SHAPES.items()}
CAMERAS = ("static", "wrist")


def encoder(cameras=CAMERAS, history=1, condition_dim=6, **vision) -> ImageEncoder:
    torch.manual_seed(0)
    config = VisionConfig(**{"width": 4, "size": 32} | vision)
    made = ImageEncoder(cameras, FEATURES, config, history, condition_dim)
    for parameter in (p for n in made.networks for p in n.film.parameters()):
        parameter.data.normal_(std=0.1)
    return made.eval()


def pictures(batch: int = 3, history: int = 1) -> dict[str, torch.Tensor]:
    return {
        IMAGE_PREFIX + name: torch.randint(0, 256, (batch, history, *shape), dtype=torch.uint8)
        for name, shape in SHAPES.items()
    }


CONDITION = torch.randn(3, 6, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def encode(model, images, condition=CONDITION, **arguments):
    return model(images, condition, **arguments)


def test_one_token_for_each_camera_in_the_order_that_was_asked_for():
    model, images = encoder(), pictures()
    tokens = encode(model, images)
    assert tokens.shape == (3, 1, 2, model.token_dim)
    changed = dict(images) | {IMAGE_PREFIX + "wrist": images[IMAGE_PREFIX + "wrist"].flip(0)}
    other = encode(model, changed)
    assert torch.equal(other[:, :, 0], tokens[:, :, 0])
    assert not torch.allclose(other[:, :, 1], tokens[:, :, 1])


def test_each_camera_has_its_own_network():
    images = pictures()
    images[IMAGE_PREFIX + "static"] = torch.zeros(3, 1, 36, 40, 3, dtype=torch.uint8)
    images[IMAGE_PREFIX + "wrist"] = torch.zeros(3, 1, 32, 32, 3, dtype=torch.uint8)
    tokens = encode(encoder(crop=32), images)
    assert not torch.allclose(tokens[:, :, 0], tokens[:, :, 1])


def test_steps_of_the_history_are_encoded_alone():
    model, images = encoder(history=3), pictures(history=3)
    tokens = encode(model, images)
    assert tokens.shape == (3, 3, 2, model.token_dim)
    model.history = 1
    for step in range(3):
        alone = encode(model, {k: v[:, step : step + 1] for k, v in images.items()})
        torch.testing.assert_close(tokens[:, step], alone[:, 0], rtol=1e-4, atol=1e-5)


def test_the_instruction_reaches_every_step():
    model, images = encoder(history=2), pictures(history=2)
    tokens, other = encode(model, images), encode(model, images, CONDITION.flip(0))
    changed = (tokens - other).abs().flatten(3).max(3).values > 1e-4
    assert changed[[0, 2]].all()
    assert not changed[1].any()


def test_augmentation_is_for_training_and_repeatable():
    model, images = encoder(size=36, shift=3, color=0.3, crop=34), pictures(8)
    condition = torch.randn(8, 6)
    assert torch.equal(encode(model, images, condition), encode(model, images, condition))
    camera = CameraInput(size=36, shift=3, crop=34)
    frames = images[IMAGE_PREFIX + "static"][:, 0]
    plain = model.prepare(frames, camera)
    model.train()
    first, again, other = (
        model.prepare(frames, camera, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first, plain)
    torch.manual_seed(5)
    first = model.prepare(frames, camera)
    torch.manual_seed(5)
    assert torch.equal(first, model.prepare(frames, camera))


def test_processes_that_share_a_batch_draw_what_one_would():
    model = encoder(size=36, shift=3, color=0.3, crop=34, history=2).train()
    frames = pictures(4, history=2)[IMAGE_PREFIX + "static"].flatten(0, 1)
    camera = model.inputs[0]
    whole = model.prepare(frames, camera, torch.Generator().manual_seed(0))
    for rank, part in enumerate(frames.chunk(2)):
        generator = torch.Generator().manual_seed(0)
        with RowsOfAll(generator, rank, 2):
            assert torch.equal(model.prepare(part, camera, generator), whole.chunk(2)[rank])


def test_inputs_are_channels_last_and_normalised():
    model = encoder(size=36)
    frames = pictures(64)[IMAGE_PREFIX + "static"][:, 0]
    x = model.prepare(frames, CameraInput(size=36))
    assert x.is_contiguous(memory_format=torch.channels_last)
    back = (x * model.std[:, None, None] + model.mean[:, None, None]) * 255
    torch.testing.assert_close(back, frames.permute(0, 3, 1, 2).float(), rtol=0, atol=1e-3)


def test_upside_down_shows_the_network_flipped_rows():
    images = pictures()
    flipped = {k: v.flip(2) for k, v in images.items()}
    assert torch.equal(encode(encoder(upside_down=True), flipped), encode(encoder(), images))


def test_each_camera_has_its_own_size():
    model = encoder(size=(40, 32), shift=(0, 1))
    assert model.inputs == [CameraInput(size=40, shift=0), CameraInput(size=32, shift=1)]
    assert encode(model, pictures()).shape == (3, 1, 2, model.token_dim)


def test_without_language_there_is_no_modulation():
    model = encoder(condition_dim=None)
    assert encode(model, pictures(), None).shape == (3, 1, 2, model.token_dim)
    assert not any(".film." in name for name in model.state_dict())


def test_bf16():
    model, images = encoder(), pictures()
    with torch.autocast("cpu", torch.bfloat16):
        tokens = encode(model, images)
    exact = encode(model, images)
    assert ((tokens - exact).norm() / exact.norm()).item() < 0.05


def broken(name: str, change) -> dict[str, torch.Tensor]:
    images = pictures()
    images[IMAGE_PREFIX + name] = change(images[IMAGE_PREFIX + name])
    return images


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x.float() / 255, r"static' is torch.float32; images are uint8 with values 0 … 255"),
        (lambda x: x.permute(0, 1, 4, 2, 3), r"channel-first; images are .*use .permute\(0, 1, 3, 4, 2\)"),
        (
            lambda x: x[:, :, :-1],
            r"shape \(3, 1, 35, 40, 3\); the policy needs \(batch, 1, 36, 40, 3\): render or",
        ),
        (lambda x: x[:, 0], r"shape \(3, 36, 40, 3\); the policy needs \(batch, 1, 36, 40, 3\)"),
        (lambda x: x.repeat(1, 2, 1, 1, 1), r"shape \(3, 2, 36, 40, 3\); the policy needs \(batch, 1,"),
    ],
)
def test_wrong_images_are_named(change, message):
    with pytest.raises(DataError, match=message):
        encode(encoder(), broken("static", change))


def test_a_missing_camera_is_named():
    images = pictures()
    del images[IMAGE_PREFIX + "wrist"]
    with pytest.raises(
        DataError, match=r"no camera 'observation.images.wrist' \(it has \['observation.images.static'\]\)"
    ):
        encode(encoder(), images)


@pytest.mark.parametrize(
    ("vision", "message"),
    [
        ({"size": [32]}, "size has 1 values for 2 cameras; give one a camera, or one number"),
        ({"size": 32, "crop": 33}, "crop=33 is larger than vision.size=32"),
        ({"network": "resnet50", "film": "block"}, "film=block exists for resnet18 only"),
        ({"weights": "imagenet", "width": 32}, "weights=imagenet needs the standard width=64, not 32"),
        ({"network": "resnet19"}, "resnet18"),
        ({"size": 31}, "greater than or equal to 32"),
        ({"siz": 3}, "Did you mean 'size'"),
    ],
)
def test_bad_configurations(vision, message):
    with pytest.raises(ConfigError, match=message):
        build(PolicyConfig, {"cameras": CAMERAS, "vision": vision})


def test_cameras_are_named_once_and_set_the_width_of_the_state():
    with pytest.raises(ConfigError, match=r"cameras=\['a', 'a'\] names one twice"):
        build(PolicyConfig, {"cameras": ["a", "a"]})
    with pytest.raises(ConfigError, match="set state_tokens=null"):
        build(PolicyConfig, {"cameras": ["a"], "state_tokens": 8})
    assert replace(build(PolicyConfig, {}), cameras=("a",), state_hidden=(8,)).cameras == ("a",)
