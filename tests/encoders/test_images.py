"""Resizing, augmentation and normalisation: laws, and equality with torchvision."""

import pytest
import torch
import torch.nn.functional as F

from mode_policy.encoders import images

SEED = 3


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(SEED)


def pictures(n: int = 2, height: int = 20, width: int = 24) -> torch.Tensor:
    return images.from_camera(torch.randint(0, 256, (n, height, width, 3), dtype=torch.uint8))


def test_a_camera_image_is_only_viewed():
    raw = torch.randint(0, 256, (2, 20, 24, 3), dtype=torch.uint8)
    view = images.from_camera(raw)
    assert view.shape == (2, 3, 20, 24)
    assert view.data_ptr() == raw.data_ptr()
    assert view.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(images.from_camera(raw, upside_down=True), view.flip(2))


@pytest.mark.parametrize(("height", "width"), [(20, 24), (24, 20), (32, 32), (16, 16), (16, 40), (128, 128)])
def test_resizing_equals_torchvision(height, width):
    transforms = pytest.importorskip("torchvision.transforms")
    x = pictures(3, height, width)
    expected = transforms.Resize(16, antialias=True)(x.contiguous())
    # The last bit of a float decides which way a half is rounded.
    assert (images.resize(x, 16) - expected.float()).abs().max() <= 1
    assert ((images.resize(x, 16) - expected.float()) != 0).float().mean() < 0.01
    assert images.resize(x, 16).shape == expected.shape


def test_an_image_of_the_right_size_is_not_touched():
    x = pictures()
    assert images.resize(x, 20) is x


def test_a_shift_is_a_window_of_the_image_with_its_border_repeated():
    x = pictures(200).float()
    shifted = images.random_shift(x, 2, generator=generator())
    padded = F.pad(x, (2, 2, 2, 2), mode="replicate")
    seen = set()
    for i in range(len(x)):
        windows = {(r, c): padded[i, :, r : r + 20, c : c + 24] for r in range(5) for c in range(5)}
        matches = [place for place, w in windows.items() if torch.equal(w, shifted[i])]
        assert len(matches) == 1
        seen.add(matches[0])
    assert len(seen) == 25
    assert shifted.is_contiguous(memory_format=torch.channels_last)


def test_a_shift_of_zero_changes_nothing():
    x = pictures()
    assert torch.equal(images.random_shift(x, 0), x)


def test_draws_are_shared_by_a_history_and_repeatable():
    one = pictures(4)
    x = one.repeat_interleave(3, 0)
    for augment in (
        lambda g: images.random_shift(x, 4, 3, g),
        lambda g: images.random_crop(x, 12, 3, g),
        lambda g: images.random_color(x.float() / 255, 0.5, 3, g),
    ):
        y = augment(generator())
        assert torch.equal(y, augment(generator()))
        steps = y.unflatten(0, (4, 3))
        assert torch.equal(steps[:, 0], steps[:, 2])
        assert not torch.equal(y, augment(torch.Generator().manual_seed(SEED + 1)))


def test_crops():
    x = pictures(300, 6, 7)
    cropped = images.random_crop(x, 5, generator=generator())
    places = [(r, c) for r in range(2) for c in range(3)]
    windows = torch.stack([x[:, :, r : r + 5, c : c + 5] for r, c in places])
    equal = (windows == cropped).flatten(2).all(2)
    assert equal.any(0).all()
    assert equal.any(1).all()
    assert torch.equal(images.center_crop(x, 5), x[:, :, 0:5, 1:6])
    assert images.random_crop(x, 6).shape == (300, 3, 6, 6)


def test_color_keeps_its_range_and_strength_zero_is_nothing():
    x = torch.rand(50, 3, 8, 8)
    torch.testing.assert_close(images.random_color(x, 0.0), x)
    y = images.random_color(x, 0.9, generator=generator())
    assert y.min() >= 0
    assert y.max() <= 1
    assert len({round(v, 4) for v in (y.mean((1, 2, 3)) / x.mean((1, 2, 3))).tolist()}) > 40


def test_saturation_and_contrast_do_nothing_to_a_grey_plane():
    x = torch.full((20, 3, 8, 8), 0.3)
    y = images.random_color(x, 0.5, generator=generator())
    # Only brightness is left: each image stays one grey.
    torch.testing.assert_close(y, y[:, :1, :1, :1].expand_as(y))


@pytest.mark.parametrize("name", ["clip", "imagenet"])
def test_normalization_equals_torchvision(name):
    transforms = pytest.importorskip("torchvision.transforms")
    mean, std = images.NORMALIZATION[name]
    x = torch.rand(2, 3, 4, 4)
    ours = images.normalize(x, torch.tensor(mean), torch.tensor(std))
    torch.testing.assert_close(ours, transforms.Normalize(mean, std)(x))
