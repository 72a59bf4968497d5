"""Import of the authors' checkpoints: exact, complete, and without running anything in them."""

from dataclasses import replace

import pytest
import torch

from mode_envs import env_task, features
from mode_policy.checkpoint import load_policy, save_checkpoint
from mode_policy.convention import Side, differences
from mode_policy.errors import CheckpointError
from mode_policy.published_config import PRESETS, Images, preset_of, recognise
from mode_policy.published_files import read_published
from mode_policy.published_policy import import_policy
from mode_policy.types import IMAGE_PREFIX, InstructionTable, Observation
from tests.policy.published_agent import (
    CLIP,
    golden_file,
    golden_images,
    golden_weights,
    lightning,
    safetensors,
    small_weights,
)
from tests.published import golden

CASES = ("resnet18", "resnet50")
IMAGES = Images(resolution=(20, 20), size=(32, 32))


def relative_error(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


def observation(case: str) -> Observation:
    g = golden(case, "agent")
    images = {IMAGE_PREFIX + name: g[name][:, None] for name in ("static", "gripper")}
    return Observation(images=images, instruction=g["goal"])


def small_observation() -> Observation:
    shape = (2, 1, 20, 20, 3)
    images = {IMAGE_PREFIX + n: torch.randint(0, 256, shape).byte() for n in ("static", "gripper")}
    return Observation(images=images, instruction=torch.randn(2, 12))


def imported(source, **arguments):
    return import_policy(read_published(source), IMAGES, **arguments)


@pytest.mark.parametrize("case", CASES)
def test_images_to_actions_equal_the_authors(case):
    g = golden(case, "agent")
    # Their actions leave [−1, 1], which ours are kept in; without normalisation nothing is cut off.
    made = import_policy(golden_file(case), golden_images(case), overrides=["normalize_action=identity"])
    with torch.no_grad():
        tokens, goal = made.policy.encode(observation(case))
    # Other kernels, float32 rounding; ten steps of the sampler multiply it.
    assert relative_error(tokens, g["tokens"]) < 1e-5
    assert torch.equal(goal, g["goal"])
    assert relative_error(made.policy.act(observation(case), noise=g["noise"]), g["actions"]) < 1e-4
    kept = import_policy(golden_file(case), golden_images(case)).policy
    assert relative_error(kept.act(observation(case), noise=g["noise"]), g["actions"].clamp(-1, 1)) < 1e-4


def swapped(name: str) -> str:
    first, _, rest = name.partition(".")
    return {"static_resnet": "gripper_resnet", "gripper_resnet": "static_resnet"}.get(
        first, first
    ) + f".{rest}"


@pytest.mark.parametrize("damage", ["cameras", "upside_down", "normalize", "film", "top_k", "sizes"])
def test_wrong_assumptions_are_noticed(damage):
    """Negative control: each of these leaves every shape as it is."""
    case, overrides = "resnet18", ["normalize_action=identity"]
    state, images = golden_weights(case), golden_images(case)
    if damage == "cameras":
        state = {swapped(k): v for k, v in state.items()}
    elif damage == "upside_down":
        images = replace(images, upside_down=True)
    elif damage == "normalize":
        overrides.append("vision.normalize=imagenet")
    elif damage == "film":
        state = {k: -v if ".film_module2." in k else v for k, v in state.items()}
    elif damage == "top_k":
        overrides.append("denoiser.experts.active=1")
    else:
        images = replace(images, size=(56, 112))
    policy = import_policy(golden_file(case, state), images, overrides=overrides).policy
    g = golden(case, "agent")
    assert relative_error(policy.act(observation(case), noise=g["noise"]), g["actions"]) > 1e-3


def test_upside_down_images_give_the_same_actions():
    """Environments deliver upright images; a policy that was trained on OpenGL's turns them itself."""
    case, g = "resnet18", golden("resnet18", "agent")
    policy = import_policy(golden_file(case), golden_images(case, upside_down=True)).policy
    upright = observation(case)
    upright = replace(upright, images={k: v.flip(2) for k, v in upright.images.items()})
    assert relative_error(policy.act(upright, noise=g["noise"]), g["actions"].clamp(-1, 1)) < 1e-4


def test_a_lightning_checkpoint_gives_averaged_and_raw_weights(tmp_path):
    ema = small_weights(seed=1)
    published = read_published(lightning(tmp_path / "run" / "last.ckpt", ema))
    assert published.about == {"epoch": 14, "global_step": 15000, "pytorch-lightning_version": "2.0.8"}
    made = import_policy(published, IMAGES)
    plain = imported(safetensors(tmp_path / "plain"))
    averaged = imported(safetensors(tmp_path / "averaged", ema))
    for ours, other in ((made.policy.state_dict(), averaged), (made.raw, plain)):
        expected = other.policy.state_dict()
        assert ours.keys() == expected.keys()
        assert all(torch.equal(ours[k], expected[k]) for k in ours)
    raw = import_policy(read_published(published.path, averaged=False), IMAGES).policy
    assert all(torch.equal(v, plain.policy.state_dict()[k]) for k, v in raw.state_dict().items())
    assert made.policy.config == plain.policy.config
    assert made.policy.config.loss.load_balance == 0.01


def test_every_tensor_is_accounted_for(tmp_path):
    made = imported(lightning(tmp_path / "last.ckpt"))
    assert made.used + sum(map(len, made.skipped.values())) == len(small_weights()) + len(CLIP)
    skipped = {n for names in made.skipped.values() for n in names}
    assert skipped == {*CLIP, "model.inner_model.gripper_embed.weight"}
    reasons = " ".join(made.skipped)
    assert "CLIP" in reasons
    assert "never uses it" in reasons


def test_an_imported_checkpoint_round_trips(tmp_path):
    seen, noise = small_observation(), torch.randn(2, 10, 7)
    table = InstructionTable(
        encoder="clip-vit-b32", instructions=("a", "b"), embeddings=seen.instruction.clone()
    )
    for name, instructions in (("none", None), ("two", table)):
        made = imported(safetensors(tmp_path / "hub"), instructions=instructions)
        save_checkpoint(tmp_path / name, made.policy, made.raw, about={})
        loaded = load_policy(tmp_path / name)
        assert torch.equal(loaded.act(seen, noise=noise), made.policy.act(seen, noise=noise))
        assert loaded.config == made.policy.config
    assert torch.equal(loaded.instructions.embed(["b"]), seen.instruction[1:])


def test_settings_are_read_without_making_their_objects(tmp_path):
    published = read_published(lightning(tmp_path / "last.ckpt"))
    assert published.settings["model"]["inner_model"]["embed_dim"] == 16
    assert published.settings["language_goal"] == {"model_name": "ViT-B/32"}
    assert published.settings["optimizer"] == {"betas": [0.9, 0.95]}


def test_a_state_dict_of_torch(tmp_path):
    torch.save({"state_dict": small_weights()}, tmp_path / "model_cleaned.pt")
    assert imported(tmp_path).used == len(small_weights()) - 1


def test_hydras_configuration_beside_the_weights(tmp_path):
    source = safetensors(tmp_path / "hub")
    (source / "config.json").unlink()
    (source / ".hydra").mkdir()
    (source / ".hydra" / "config.yaml").write_text(
        "datamodule: {_target_: mode.datasets.hulc_data_module.HulcDataModule}\n"
        "model: {num_sampling_steps: 5, multistep: '${act_len}', model: {inner_model: {top_k: 1}}}\n"
    )
    published = read_published(source)
    assert preset_of(published.settings) == "calvin"
    config = imported(source).policy.config
    assert (config.sampler.steps, config.execute, config.denoiser.experts.active) == (5, 10, 1)
    nested = lightning(source / "saved_models" / "last.ckpt", hyper_parameters={})
    assert imported(nested).policy.config.sampler.steps == 5
    (source / ".hydra" / "config.yaml").write_text("model: {a: [}")
    with pytest.raises(CheckpointError, match=r"config.yaml is damaged"):
        read_published(source)


def test_names_of_the_pretraining_code(tmp_path):
    names = {"static_resnet": "img_encoder_image_primary", "gripper_resnet": "img_encoder_image_wrist"}
    state = {
        ".".join([names.get(k.split(".")[0], k.split(".")[0]), *k.split(".")[1:]]): v
        for k, v in small_weights().items()
    }
    assert imported(safetensors(tmp_path, state)).used == len(state) - 1


@pytest.mark.parametrize(
    ("layers", "network", "blocks", "film"),
    [
        (12, "resnet50", (3, 4, 6, 3), "stage"),
        (8, "resnet18", (2, 2, 2, 2), "block"),
        (8, "resnet34", (3, 4, 6, 3), "stage"),
    ],
)
def test_the_published_sizes_are_recognised(layers, network, blocks, film):
    """By shapes alone: these tensors have no contents."""

    def empty(*shape: int) -> torch.Tensor:
        return torch.empty(shape, device="meta")

    denoiser = {
        "sigma_emb.weight": empty(1024, 1),
        "pos_emb": empty(1, 11, 1024),
        **{f"blocks.{i}.attn.q_norm.g": empty(128) for i in range(layers)},
        **{f"blocks.0.experts.expert_{i}.mlp.2.weight": empty(1024, 4096) for i in range(4)},
    }
    prefix = "resnet." if film == "stage" else ""
    camera = {f"{prefix}conv1.weight": empty(64, 3, 7, 7)}
    for stage, count in enumerate(blocks, start=1):
        for block in range(count):
            convolutions = (1, 2, 3) if network == "resnet50" else (1, 2)
            camera |= {f"{prefix}layer{stage}.{block}.conv{c}.weight": empty(1) for c in convolutions}
    parts = {"denoiser": denoiser, "static": camera, "gripper": camera}
    config = recognise(parts, {}, PRESETS["libero"])
    assert (config.denoiser.num_layers, config.denoiser.dim, config.denoiser.num_heads) == (layers, 1024, 8)
    assert (config.denoiser.experts.num, config.denoiser.experts.active) == (4, 2)
    assert (config.vision.network, config.vision.width, config.vision.film) == (network, 64, film)
    assert (config.vision.size, config.vision.upside_down) == ((224, 112), True)
    assert (config.chunk, config.execute, config.sampler.steps) == (10, 10, 10)


def test_the_features_are_those_of_liberos_environments(tmp_path):
    """Names of the action's dimensions included, without which no imported policy would be evaluated."""
    policy = imported(safetensors(tmp_path / "hub")).policy
    env_id = env_task("turn_on_the_stove").env_id
    given = features(env_id, "pixels", image_size=(20, 20), cameras=("static", "gripper"))
    assert policy.features.keys() <= given.keys()
    own, theirs = (Side(name="", features=f, convention=policy.convention) for f in (policy.features, given))
    assert differences(own, theirs) == []
