"""The CLIP text encoder that a checkpoint of the authors may hold, used in place of the hub's.

Lightning saves the frozen CLIP with the rest, under the names of OpenAI's code; its image half comes along
unused. What no checkpoint holds is the vocabulary: the hub has it, and so has a file that is spread with
OpenAI's code.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from mode_policy.encoders.language import Embed, clip_features, clip_tokenizer, require_transformers
from mode_policy.errors import CheckpointError, ConfigError
from mode_policy.published import CLIP_IMAGES, CLIP_PREFIXES

if TYPE_CHECKING:
    from transformers import CLIPTextModelWithProjection, PreTrainedTokenizerBase

#: transformers' name → OpenAI's
_TOP = {
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.weight": "ln_final.weight",
    "text_model.final_layer_norm.bias": "ln_final.bias",
    "text_projection.weight": "text_projection",
}

#: the same within a layer
_LAYER = {
    "self_attn.out_proj": "attn.out_proj",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}

#: The way out where the CLIP inside is not understood.
_ELSE = "import with --clip hub to fetch CLIP instead"

_HEAD = 64  # width of an attention head in every CLIP

#: Tokens besides merged ones: 256 bytes within a word, 256 at its end, and the two marks of a text's ends.
_ENDS = ("<|startoftext|>", "<|endoftext|>")
_PLAIN = 2 * 256 + len(_ENDS)


def text_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of the text encoder inside, under OpenAI's names; none where there is none."""
    found: dict[str, Tensor] = {}
    for prefix in CLIP_PREFIXES:
        own = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
        found |= {n: t for n, t in own.items() if not n.startswith(CLIP_IMAGES)}
    return found


def embed_with(tensors: Mapping[str, Tensor], vocabulary: Path | None = None) -> Embed:
    """Return the function that embeds one text by the text encoder of these tensors, ``(1, E)``, in float32.

    Args:
        tensors: of `text_tensors`.
        vocabulary: file of merges (``bpe_simple_vocab_16e6.txt.gz``); the hub's tokenizer by default.

    Raises:
        CheckpointError: listing tensors that are missing or left over; or if the vocabulary has another
            number of tokens.
        ConfigError: if the vocabulary cannot be had, or transformers is not installed.
    """
    require_transformers("clip-vit-b32")
    rows, length = (len(_take(tensors, n)) for n in ("token_embedding.weight", "positional_embedding"))
    if vocabulary is not None:
        tokenizer = read_vocabulary(vocabulary, rows, length)
    else:
        try:
            tokenizer = clip_tokenizer()
        except ConfigError as error:
            raise ConfigError(
                f"the checkpoint holds CLIP's weights, but not its vocabulary: {error}. Or give the file "
                "bpe_simple_vocab_16e6.txt.gz with --vocabulary; the authors' code has it, and so has the "
                "PyPI package open-clip-torch"
            ) from error
    if len(tokenizer) != rows:
        raise CheckpointError(f"the CLIP inside knows {rows} tokens, its vocabulary has {len(tokenizer)}")
    return clip_features(text_model(tensors, tokenizer), tokenizer)


def text_model(
    tensors: Mapping[str, Tensor], tokenizer: PreTrainedTokenizerBase
) -> CLIPTextModelWithProjection:
    """Make a text encoder of OpenAI's tensors; every one is used.

    Raises:
        CheckpointError: listing tensors that are missing or left over, or of another shape.
    """
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    layers = len({n.split(".")[2] for n in tensors if n.startswith("transformer.resblocks.")})
    width, features = _take(tensors, "text_projection").shape
    config = CLIPTextConfig(
        vocab_size=len(_take(tensors, "token_embedding.weight")),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=max(1, width // _HEAD),
        max_position_embeddings=len(_take(tensors, "positional_embedding")),
        projection_dim=features,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    state, model = _state(tensors, layers), CLIPTextModelWithProjection(config)
    for name, own in model.state_dict().items():
        if state[name].shape != own.shape:
            raise CheckpointError(
                f"the CLIP inside is of another shape: {name} is {tuple(state[name].shape)}, not "
                f"{tuple(own.shape)}; {_ELSE}"
            )
    model.load_state_dict(state)
    return model.eval()


def _state(tensors: Mapping[str, Tensor], layers: int) -> dict[str, Tensor]:
    used = set(_TOP.values())
    state = {ours: _take(tensors, theirs) for ours, theirs in _TOP.items()}
    state["text_projection.weight"] = state["text_projection.weight"].T  # they multiply from the right
    for layer in range(layers):
        theirs, ours = f"transformer.resblocks.{layer}.", f"text_model.encoder.layers.{layer}."
        for kind in ("weight", "bias"):
            joint = f"{theirs}attn.in_proj_{kind}"
            used.add(joint)
            for name, part in zip("qkv", _take(tensors, joint).chunk(3), strict=True):
                state[f"{ours}self_attn.{name}_proj.{kind}"] = part
            for own, other in _LAYER.items():
                used.add(f"{theirs}{other}.{kind}")
                state[f"{ours}{own}.{kind}"] = _take(tensors, f"{theirs}{other}.{kind}")
    if left := sorted(set(tensors) - used):
        raise CheckpointError(f"{len(left)} tensors of the CLIP inside have no place: {left[:6]}; {_ELSE}")
    return {name: tensor.float().contiguous() for name, tensor in state.items()}


def _take(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in tensors:
        raise CheckpointError(f"the CLIP inside lacks {name!r}; {_ELSE}")
    return tensors[name]


def read_vocabulary(path: Path, size: int, length: int) -> PreTrainedTokenizerBase:
    """Make CLIP's tokenizer of the merges in OpenAI's file: a line each, after one of comment.

    Args:
        path: the file, gzip.
        size: number of tokens; of the file's merges, the first are taken.
        length: tokens of a text, its ends included, after which it is cut off.

    Raises:
        ConfigError: if there is no such file, it is damaged, or has too few merges.
    """
    from transformers import CLIPTokenizer

    try:
        lines = gzip.decompress(path.read_bytes()).decode().split("\n")
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise ConfigError(f"cannot read the vocabulary {path}: {error}") from error
    merges = [(a, b) for a, _, b in (line.partition(" ") for line in lines[1 : 1 + size - _PLAIN])]
    letters = byte_letters()
    words = [*letters, *(letter + "</w>" for letter in letters), *(a + b for a, b in merges), *_ENDS]
    if len(words) != size or not all(b for _, b in merges):
        raise ConfigError(f"{path} ({len(lines)} lines) is not the vocabulary of a CLIP of {size} tokens")
    vocabulary = {word: i for i, word in enumerate(words)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=length)


def byte_letters() -> list[str]:
    """Return the characters that stand for bytes, in the vocabulary's order.

    Printable ones of Latin-1 stand for themselves and come first; the others are numbered from 256.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(256 - len(printable))]
