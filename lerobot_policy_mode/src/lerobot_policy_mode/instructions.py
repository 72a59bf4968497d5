"""The instructions that a policy knows, and their embeddings, which travel with its weights."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mode_policy.encoders.language import embed_instructions
from mode_policy.errors import DataError
from mode_policy.types import InstructionTable

log = logging.getLogger(__name__)


class Instructions(nn.Module):
    """Maps the texts that LeRobot calls tasks to embeddings ``(B, E)``.

    Instructions of the training data are embedded once. Others are embedded when they first occur, by the
    same encoder; a policy that knows a single instruction follows it where none is given.

    Args:
        encoder: of the texts, see `mode_policy.encoders.language`.
        texts: known instructions.
        width: E, for embeddings that will be loaded; 0 to compute all of them now.
    """

    embeddings: Tensor

    def __init__(self, encoder: str, texts: Sequence[str], width: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.texts = tuple(texts)
        self.rows = {text: i for i, text in enumerate(self.texts)}
        self.others: dict[str, Tensor] = {}
        self.unknown = self.texts if width else ()  # whose rows are still empty
        filled = torch.zeros(len(texts), width) if width else self._embed(self.texts)
        self.register_buffer("embeddings", filled)

    def loaded(self, number: int) -> None:
        """Note that the first ``number`` embeddings have been loaded; compute the others."""
        self.unknown = self.texts[number:]
        self._fill()

    def table(self) -> InstructionTable:
        """Return the known instructions with their embeddings, zeros for those still to be loaded."""
        return InstructionTable(
            encoder=self.encoder, instructions=self.texts, embeddings=self.embeddings.detach().cpu().clone()
        )

    def forward(self, tasks: Sequence[str]) -> Tensor:
        """Return the embedding of each text, ``(B, E)``.

        Raises:
            DataError: if a text is empty and it is not clear what is meant.
            ConfigError: if a new text has to be embedded and the encoder is not installed.
        """
        self._fill()
        return torch.stack([self._one(text) for text in tasks])

    def _one(self, text: str) -> Tensor:
        if not text and text not in self.rows:
            if len(self.texts) != 1:
                raise DataError(
                    "there is no instruction, and this policy needs one: give --task=… or a batch with "
                    f"'task'. It knows: {', '.join(self.texts[:20])}{', …' if len(self.texts) > 20 else ''}"
                )
            text = self.texts[0]
        if text in self.rows:
            return self.embeddings[self.rows[text]]
        if text not in self.others:
            log.warning("the policy was not trained on the instruction %r", text)
            self.others[text] = self._embed([text])[0]
        return self.others[text].to(self.embeddings)

    def _fill(self) -> None:
        if self.unknown:
            rows = [self.rows[text] for text in self.unknown]
            self.embeddings[rows] = self._embed(self.unknown).to(self.embeddings)
            self.unknown = ()

    def _embed(self, texts: Sequence[str]) -> Tensor:
        return embed_instructions(texts, self.encoder).embeddings
