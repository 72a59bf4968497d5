"""FiLM-ResNets: parity with the authors' and torchvision's, and what the modulation does."""

import pytest
import torch

from mode_policy.encoders.film_resnet import FiLMResNet, ResNet
from mode_policy.encoders.vision_config import VisionConfig
from mode_policy.published import encoder_from_published, encoder_to_published
from tests.published import film_resnet, golden, published_weights

CASES = ("resnet18", "resnet50")


def relative_error(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


def small(**changes) -> FiLMResNet:
    torch.manual_seed(0)
    return FiLMResNet(VisionConfig(**{"width": 4} | changes), condition_dim=6)


@torch.no_grad()
def run(model: FiLMResNet, case: str) -> torch.Tensor:
    g = golden(case, "film")
    return model(g["images"], g["condition"])


@pytest.mark.parametrize("case", CASES)
def test_output_equals_the_authors(case):
    # Other kernels for convolutions: float32 rounding through 18 or 50 layers.
    assert relative_error(run(film_resnet(case), case), golden(case, "film")["output"]) < 1e-5


@pytest.mark.parametrize("case", CASES)
def test_memory_layout_changes_rounding_only(case):
    g = golden(case, "film")
    images = g["images"].contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        assert relative_error(film_resnet(case)(images, g["condition"]), g["output"]) < 1e-5


@pytest.mark.parametrize(
    "damage", ["no condition", "swapped gamma and beta", "swapped stages", "dropped norm"]
)
def test_damage_is_noticed(damage):
    """Negative control: each of these is a mistake that a careless conversion makes."""
    model, g = film_resnet("resnet18"), golden("resnet18", "film")
    condition = g["condition"]
    with torch.no_grad():
        if damage == "no condition":
            condition = torch.zeros_like(condition)
        elif damage == "swapped gamma and beta":
            model.film[2].gamma, model.film[2].beta = model.film[2].beta, model.film[2].gamma
        elif damage == "swapped stages":
            model.resnet.layer1[0], model.resnet.layer1[1] = model.resnet.layer1[1], model.resnet.layer1[0]
        else:
            model.resnet.layer3[1].bn2.weight.fill_(1.0)
        assert relative_error(model(g["images"], condition), g["output"]) > 1e-3


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50"])
def test_the_network_is_torchvisions(name):
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    theirs = getattr(models, name)(weights=None).eval()
    ours = ResNet(name).eval()
    state = {k: v for k, v in theirs.state_dict().items() if not k.startswith("fc.")}
    ours.load_state_dict(state, strict=True)
    theirs.fc = torch.nn.Identity()
    images = torch.randn(2, 3, 40, 48)
    with torch.no_grad():
        features = ours.stem(images)
        for stage in ours.stages:
            features = stage(features)
        torch.testing.assert_close(features.mean((2, 3)), theirs(images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("film", ["stage", "block"])
def test_modulation_starts_as_the_identity_and_then_matters(film):
    model = small(film=film).eval()
    images, condition = torch.randn(2, 3, 32, 32), torch.randn(2, 6)
    with torch.no_grad():
        plain = model(images)
        assert torch.equal(model(images, condition), plain)
        for parameter in model.film.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        assert not torch.allclose(model(images, condition), plain)
        assert not torch.allclose(model(images, condition), model(images, -condition))


def test_a_network_without_condition_has_no_modulation():
    model = FiLMResNet(VisionConfig(width=4), condition_dim=None)
    assert not any("film" in name for name in model.state_dict())
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 32)


@pytest.mark.parametrize(("network", "width", "tokens"), [("resnet34", 4, 32), ("resnet50", 4, 128)])
def test_token_width(network, width, tokens):
    model = small(network=network, width=width)
    assert model.token_dim == tokens
    assert model(torch.randn(2, 3, 40, 32), torch.randn(2, 6)).shape == (2, tokens)


def test_every_parameter_learns():
    model = small(film="block")
    model(torch.randn(4, 3, 32, 32), torch.randn(4, 6)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_it_compiles_as_one_graph():
    model = small().eval()
    images, condition = torch.randn(2, 3, 32, 32), torch.randn(2, 6)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        assert torch.equal(compiled(images, condition), model(images, condition))


@pytest.mark.parametrize("film", ["stage", "block"])
def test_names_round_trip(film):
    config = VisionConfig(width=4, film=film)
    state = small(film=film).state_dict()
    published = encoder_to_published(state, config)
    back = encoder_from_published(published, config)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[k], state[k]) for k in state)


@pytest.mark.parametrize(("part", "film"), [("film", "stage"), ("agent", "block")])
def test_published_names_are_known(part, film):
    config = VisionConfig(film=film)
    theirs = published_weights("resnet18", part)
    if part == "agent":
        prefix = "static_resnet."
        theirs = {k.removeprefix(prefix): v for k, v in theirs.items() if k.startswith(prefix)}
    ours = encoder_from_published(theirs, config)
    assert ours.keys() == FiLMResNet(config, condition_dim=512).state_dict().keys()
    assert encoder_to_published(ours, config).keys() == theirs.keys()
