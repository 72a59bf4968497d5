"""``mode-import``: from a file to a checkpoint that acts, and what it says on the way."""

import json

import huggingface_hub.constants
import pytest
import torch

from mode_policy.apps.config import EvaluateConfig
from mode_policy.apps.evaluate import check_instructions, chosen_tasks
from mode_policy.apps.import_checkpoint import main
from mode_policy.checkpoint import load_policy, read_description
from mode_policy.encoders import language
from mode_policy.errors import DataError
from mode_policy.types import IMAGE_PREFIX
from tests.policy.published_agent import lightning, safetensors, small_weights


def test_a_checkpoint_is_made_and_everything_is_said(tmp_path, capsys):
    source = lightning(tmp_path / "run" / "last.ckpt", small_weights(seed=1))
    main([str(source), str(tmp_path / "made"), "--resolution", "20", "24", "--size", "40", "32"])
    text = capsys.readouterr().out
    for line in (
        f"source     {source}",
        "policy     none of the published sizes: 2 layers, width 16, 2 of 4 experts",
        "cameras    resnet18 (FiLM by block): agentview 20 px → 40 px, eye_in_hand 24 px → 32 px, shown "
        "upside down (preset libero)",
        "actions    7 dimensions in [-1, 1]",
        "2 not used, language_goal.clip_rn50.positional_embedding …: the frozen CLIP text encoder",
        "weights    averaged over training (EMA)",
        "sampling   ddim, 10 steps, exponential from 80 to 0.001",
        "language   0 instructions embedded by clip-vit-b32; to act, import with --task",
        f"checkpoint {tmp_path / 'made'}",
    ):
        assert line in text
    policy = load_policy(tmp_path / "made")
    assert policy.config.vision.size == (40, 32)
    assert policy.features[IMAGE_PREFIX + "eye_in_hand"].shape == (24, 24, 3)
    assert torch.equal(policy.action_normalizer(torch.ones(7)), torch.ones(7))
    about = json.loads((tmp_path / "made" / "checkpoint.json").read_text())["about"]
    assert about["global_step"] == 15000
    assert len(about["sha256"]) == 64


def test_options_reach_the_policy(tmp_path):
    safetensors(tmp_path / "hub")
    options = ["--preset", "calvin", "--cameras", "agentview", "wrist", "--set", "sampler.steps=5"]
    main([str(tmp_path / "hub"), str(tmp_path / "made"), *options, "--size", "32", "32"])
    policy = load_policy(tmp_path / "made")
    assert policy.config.cameras == ("agentview", "wrist")
    assert (policy.config.sampler.steps, policy.config.vision.upside_down) == (5, False)


def test_instructions_are_embedded(tmp_path, monkeypatch, capsys):
    """By a CLIP of a few kilobytes, whose embeddings have the width of the small agent's goal."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    folder = tmp_path / "clip"
    ends = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 3}
    config = CLIPTextConfig(
        vocab_size=8, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, **ends
    )
    config.projection_dim = 12
    CLIPTextModelWithProjection(config).save_pretrained(folder)
    words = ["a", "b</w>", "<|startoftext|>", "<|endoftext|>", "a</w>", "b", "ab</w>", "!"]
    (folder / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\na b</w>\n")
    names = {"bos_token": words[2], "eos_token": words[3], "unk_token": words[3], "pad_token": words[3]}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer"} | names))
    monkeypatch.setattr(language, "CLIP", str(folder))
    safetensors(tmp_path / "hub")
    task = ["--task", "pusht", "--instruction", "ab"]
    main([str(tmp_path / "hub"), str(tmp_path / "made"), "--size", "32", "32", *task])
    assert "2 instructions embedded by clip-vit-b32 of the hub\n" in capsys.readouterr().out
    policy = load_policy(tmp_path / "made")
    assert policy.instructions.instructions[0] == "ab"
    about = json.loads((tmp_path / "made" / "checkpoint.json").read_text())["about"]
    assert about["task"]["name"] == "pusht"


def test_tasks_that_it_was_not_imported_for_name_the_command(tmp_path):
    source = safetensors(tmp_path / "the hub")
    made = [str(source), str(tmp_path / "made"), "--size", "32", "32"]
    main(made)
    about = read_description(tmp_path / "made")["about"]
    known = load_policy(tmp_path / "made").instructions
    for task, texts, options in (
        ("libero_10", 10, r"--task libero_10$"),
        ("turn_on_the_stove", 1, r"--instruction 'turn on the stove'$"),
    ):
        groups = chosen_tasks(EvaluateConfig(checkpoint=str(tmp_path), task=task), about)
        named = rf"imported without {texts} instructions .*: mode-import '.*/the hub/.*' NEW_FOLDER {options}"
        with pytest.raises(DataError, match=named):
            check_instructions(known, groups, about)
        check_instructions(known, groups, {})  # of a policy that was trained, other checks speak


def refused(capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    return capsys.readouterr().err


def test_errors_are_plain(tmp_path, capsys, monkeypatch):
    safetensors(tmp_path / "hub")
    assert f"error: {tmp_path} exists; give another" in refused(capsys, str(tmp_path / "hub"), str(tmp_path))
    made = str(tmp_path / "made")
    assert "there is nothing at" in refused(capsys, str(tmp_path / "absent.ckpt"), made)
    assert "Did you mean 'libero_10'" in refused(capsys, str(tmp_path / "hub"), made, "--task", "libero_1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    text = refused(capsys, "owner/MoDE_of_nobody", made)
    assert "no file or folder owner/MoDE_of_nobody, and the hub gave no repository of that name" in text
    assert not (tmp_path / "made").exists()
