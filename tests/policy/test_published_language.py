"""The CLIP inside a checkpoint of the authors: the same embeddings as OpenAI's code, every tensor used."""

import gzip
import json

import pytest
import torch

from mode_policy.apps.import_checkpoint import main
from mode_policy.checkpoint import load_policy
from mode_policy.encoders import language
from mode_policy.errors import CheckpointError, ConfigError
from mode_policy.published_language import byte_letters, embed_with, read_vocabulary, text_tensors
from tests.policy.openai_clip import MERGES, TOKENS, TextEncoder, tensors, vocabulary
from tests.policy.published_agent import lightning, small_weights

BEGIN, END = TOKENS - 2, TOKENS - 1
OPEN, THE = 512 + 2, 512 + 4  # what the third and the fifth merge make


@pytest.fixture(scope="module")
def clip():
    torch.manual_seed(0)
    return TextEncoder(features=12).eval()


def test_the_vocabulary_is_that_of_the_file(tmp_path):
    tokenizer = read_vocabulary(vocabulary(tmp_path / "bpe.gz"), TOKENS, length=9)
    x, bang = 256 + byte_letters().index("x"), byte_letters().index("!")
    assert tokenizer("Open  THE x")["input_ids"] == [BEGIN, OPEN, THE, x, END]
    assert tokenizer("!x")["input_ids"] == [BEGIN, bang + 256, x, END]
    assert len(tokenizer("x " * 20, truncation=True)["input_ids"]) == 9
    assert len(set(byte_letters())) == 256


@pytest.mark.parametrize("prefix", ["language_goal.clip_rn50.", "language_goal.text_encoder."])
def test_embeddings_equal_openais(tmp_path, clip, prefix):
    inside = text_tensors(small_weights() | tensors(clip, prefix))
    assert inside.keys() == clip.state_dict().keys()
    embed = embed_with(inside, vocabulary(tmp_path / "bpe.gz"))
    for text, tokens in (("open the", [OPEN, THE]), ("the", [THE]), ("open open", [OPEN, OPEN])):
        theirs = clip(torch.tensor([[BEGIN, *tokens, END, 0, 0]]))  # they fill up with zeros
        # Other kernels for attention, float32 rounding.
        torch.testing.assert_close(embed(text), theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["ln_final.bias", "transformer.resblocks.1.attn.in_proj_weight"])
def test_each_tensor_matters(tmp_path, clip, name):
    """Negative control of the test above."""
    inside, file = dict(clip.state_dict()), vocabulary(tmp_path / "bpe.gz")
    before = embed_with(inside, file)("open the")
    changed = embed_with(inside | {name: inside[name].roll(1, 0)}, file)("open the")
    assert not torch.allclose(before, changed, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {k: v for k, v in s.items() if k != "ln_final.bias"}, "lacks 'ln_final.bias'.*--clip hub"),
        (lambda s: s | {"adapter.weight": torch.ones(1)}, r"no place: \['adapter.weight'\].*--clip hub"),
        (lambda s: s | {"ln_final.bias": torch.ones(3)}, r"final_layer_norm.bias is \(3,\), not \(128,\)"),
    ],
)
def test_a_clip_that_is_not_understood_is_refused(tmp_path, clip, change, message):
    with pytest.raises(CheckpointError, match=message):
        embed_with(change(dict(clip.state_dict())), vocabulary(tmp_path / "bpe.gz"))


def test_wrong_vocabularies_are_named(tmp_path, clip, monkeypatch):
    inside = text_tensors(tensors(clip))
    with pytest.raises(ConfigError, match=r"cannot read the vocabulary .*absent"):
        embed_with(inside, tmp_path / "absent")
    (tmp_path / "short.gz").write_bytes(gzip.compress(b"a comment\no p\n"))
    with pytest.raises(ConfigError, match=rf"is not the vocabulary of a CLIP of {TOKENS} tokens"):
        embed_with(inside, tmp_path / "short.gz")
    monkeypatch.setattr(language, "CLIP", str(tmp_path / "absent"))
    with pytest.raises(ConfigError, match=r"not its vocabulary: .* bpe_simple_vocab_16e6.txt.gz with"):
        embed_with(inside)


def test_more_merges_than_tokens_are_cut(tmp_path):
    cut = read_vocabulary(vocabulary(tmp_path / "bpe.gz", "a b", "b c"), TOKENS, length=9)
    assert len(cut) == TOKENS == 2 * 256 + len(MERGES) + 2


def imported(tmp_path, capsys, state, *options):
    source = lightning(tmp_path / "last.ckpt", state_dict=state, callbacks={})
    main([str(source), str(tmp_path / "made"), "--size", "32", "32", "--instruction", "open the", *options])
    return load_policy(tmp_path / "made"), capsys.readouterr().out


def test_import_uses_the_clip_inside_and_says_so(tmp_path, clip, capsys):
    file = str(vocabulary(tmp_path / "bpe.gz"))
    policy, text = imported(tmp_path, capsys, small_weights() | tensors(clip), "--vocabulary", file)
    assert "1 instructions embedded by the CLIP inside the checkpoint" in text
    assert "2 not used, language_goal.clip_rn50.visual.conv1.weight …: the image half of CLIP" in text
    theirs = clip(torch.tensor([[BEGIN, OPEN, THE, END]])).detach()
    torch.testing.assert_close(policy.instructions.embed(["open the"]), theirs, rtol=1e-4, atol=1e-4)
    about = json.loads((tmp_path / "made" / "checkpoint.json").read_text())["about"]
    assert about["instructions_embedded_by"] == "the CLIP inside the checkpoint"


def test_options_that_cannot_be_meant_are_refused(tmp_path, clip, capsys):
    source = str(lightning(tmp_path / "last.ckpt", state_dict=small_weights()))
    for options, message in (
        (["--clip", "inside"], "holds no CLIP; --clip hub fetches it"),
        (["--vocabulary", "bpe.gz"], "--vocabulary is for the CLIP inside a checkpoint"),
    ):
        with pytest.raises(SystemExit):
            main([source, str(tmp_path / "made"), *options])
        assert message in capsys.readouterr().err
