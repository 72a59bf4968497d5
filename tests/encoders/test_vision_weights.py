"""Where image encoders get their initial weights from."""

import dataclasses
import hashlib

import pytest
import torch
from safetensors.torch import save_file

from mode_policy.encoders.film_resnet import ResNet
from mode_policy.encoders.vision import ImageEncoder
from mode_policy.encoders.vision_config import VisionConfig
from mode_policy.encoders.vision_weights import check_initial_weights, load_initial_weights
from mode_policy.errors import ConfigError
from mode_policy.types import IMAGE_PREFIX, Feature

FEATURES = {IMAGE_PREFIX + name: Feature(shape=(16, 16, 3), dtype="uint8") for name in "ab"}


def encoder(**vision) -> ImageEncoder:
    torch.manual_seed(0)
    return ImageEncoder(("a", "b"), FEATURES, VisionConfig(**{"width": 4} | vision), 1, 6)


def weights(width: int = 4) -> dict[str, torch.Tensor]:
    torch.manual_seed(7)
    state = {
        k: torch.randn_like(v) if v.is_floating_point() else v
        for k, v in ResNet("resnet18", width).state_dict().items()
    }
    return state | {"fc.weight": torch.zeros(10, 8 * width), "fc.bias": torch.zeros(10)}


def carries(model: ImageEncoder, state: dict[str, torch.Tensor]) -> bool:
    return all(
        torch.equal(v, state[k]) for network in model.networks for k, v in network.resnet.state_dict().items()
    )


@pytest.mark.parametrize("kind", ["safetensors", "pth"])
def test_a_file(tmp_path, kind):
    path, state = tmp_path / f"network.{kind}", weights()
    save_file(state, path) if kind == "safetensors" else torch.save(state, path)
    model = encoder(weights=str(path))
    film = {k: v.clone() for k, v in model.state_dict().items() if ".film." in k}
    assert load_initial_weights(model) == f"weights from {path}"
    assert carries(model, state)
    assert all(torch.equal(model.state_dict()[k], v) for k, v in film.items())


def test_none_is_said_aloud():
    model = encoder()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    assert load_initial_weights(model) == "random weights"
    assert all(torch.equal(model.state_dict()[k], v) for k, v in before.items())


def test_another_network_is_named(tmp_path):
    save_file(weights(width=8), tmp_path / "wide.safetensors")
    with pytest.raises(ConfigError, match=r"not those of resnet18 with width 4: .* tensors differ"):
        load_initial_weights(encoder(weights=str(tmp_path / "wide.safetensors")))
    with pytest.raises(ConfigError, match=r"not those of resnet18 with width 4: .* tensors differ"):
        check_initial_weights(VisionConfig(width=4, weights=str(tmp_path / "wide.safetensors")))
    check_initial_weights(VisionConfig(width=8, weights=str(tmp_path / "wide.safetensors")))


def test_what_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"no file vision.weights=.*absent; use imagenet, none"):
        load_initial_weights(encoder(weights=str(tmp_path / "absent")))
    (tmp_path / "cut.pth").write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(ConfigError, match=r"cut.pth is no state dict that can be read safely"):
        load_initial_weights(encoder(weights=str(tmp_path / "cut.pth")))
    torch.save({"model": weights()}, tmp_path / "more.pth")
    with pytest.raises(ConfigError, match="holds more than the tensors of one network"):
        load_initial_weights(encoder(weights=str(tmp_path / "more.pth")))


class Payload:
    """Would make a file if it were unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_nothing_is_executed(tmp_path):
    torch.save({"a": Payload(tmp_path / "executed")}, tmp_path / "evil.pth")
    with pytest.raises(ConfigError, match="no state dict that can be read safely"):
        load_initial_weights(encoder(weights=str(tmp_path / "evil.pth")))
    assert not (tmp_path / "executed").exists()


@pytest.fixture
def served(tmp_path, monkeypatch):
    """Weights "on the web": a local file of random ones, under the kind of name that torchvision gives."""
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(3)
    state = models.resnet18(weights=None).state_dict()
    torch.save(state, tmp_path / "new.pth")
    digest = hashlib.sha256((tmp_path / "new.pth").read_bytes()).hexdigest()[:8]
    path = (tmp_path / "new.pth").rename(tmp_path / f"resnet18-{digest}.pth")
    member = models.ResNet18_Weights.DEFAULT
    monkeypatch.setattr(member, "_value_", dataclasses.replace(member.value, url=path.as_uri()))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    return path, state


def test_imagenet_is_downloaded_once_and_then_cached(served):
    path, state = served
    model = encoder(width=64, weights="imagenet")
    assert load_initial_weights(model) == "weights from torchvision ResNet18_Weights.IMAGENET1K_V1"
    assert carries(model, state)
    path.unlink()
    assert "IMAGENET1K_V1" in load_initial_weights(encoder(width=64, weights="imagenet"))


def test_imagenet_out_of_reach_says_what_to_do(served):
    served[0].unlink()
    with pytest.raises(
        ConfigError,
        match=r"could not be downloaded .*policy.vision.weights=<file>, .*policy.vision.weights=none",
    ):
        load_initial_weights(encoder(width=64, weights="imagenet"))


def test_a_damaged_download_is_refused(served):
    path, _ = served
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ConfigError, match=r"could not be downloaded .*hash"):
        load_initial_weights(encoder(width=64, weights="imagenet"))
