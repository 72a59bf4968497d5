"""CLIP's text encoder as OpenAI wrote it, in small: the reference, and what a checkpoint holds of it."""

import gzip
from pathlib import Path

import torch
from torch import nn

MERGES = ("o p", "op e", "ope n</w>", "t h", "th e</w>")

TOKENS = 2 * 256 + len(MERGES) + 2


class TextEncoder(nn.Module):
    """Names as in OpenAI's code; two heads of 64, of which the state dict says nothing."""

    def __init__(self, features: int, width: int = 128, layers: int = 2, length: int = 9) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(TOKENS, width)
        self.positional_embedding = nn.Parameter(torch.randn(length, width))
        self.transformer = nn.ModuleDict(
            {"resblocks": nn.Sequential(*(_Block(width) for _ in range(layers)))}
        )
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.randn(width, features))
        for name, p in self.named_parameters():
            if p.ndim < 2:  # other than the usual zeros and ones, so that none of them can be mistaken
                nn.init.normal_(p, 1.0 if "ln_" in name and "weight" in name else 0.0, 0.3)

    def forward(self, tokens_BS: torch.Tensor) -> torch.Tensor:
        x_BSD = self.token_embedding(tokens_BS) + self.positional_embedding[: tokens_BS.shape[1]]
        x_BSD = self.ln_final(self.transformer["resblocks"](x_BSD))
        ends_B = tokens_BS.argmax(-1)  # the text's end has the highest number
        return x_BSD[torch.arange(len(x_BSD)), ends_B] @ self.text_projection


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(width, width // 64, batch_first=True)
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, 4 * width), "c_proj": nn.Linear(4 * width, width)})

    def forward(self, x_BSD: torch.Tensor) -> torch.Tensor:
        normed, later = self.ln_1(x_BSD), torch.ones(x_BSD.shape[1], x_BSD.shape[1]).triu(1).bool()
        x_BSD = x_BSD + self.attn(normed, normed, normed, need_weights=False, attn_mask=later)[0]
        hidden = self.mlp["c_fc"](self.ln_2(x_BSD))
        return x_BSD + self.mlp["c_proj"](hidden * torch.sigmoid(1.702 * hidden))


def tensors(encoder: TextEncoder, prefix: str = "language_goal.clip_rn50.") -> dict[str, torch.Tensor]:
    """What Lightning saves of a CLIP: also its image half."""
    state = {prefix + name: tensor.detach() for name, tensor in encoder.state_dict().items()}
    images = {"visual.conv1.weight": torch.zeros(4, 3, 2, 2), "logit_scale": torch.tensor(4.6)}
    return state | {prefix + name: tensor for name, tensor in images.items()}


def vocabulary(path: Path, *more: str) -> Path:
    """The file of merges."""
    lines = ["a comment", *MERGES, *more, ""]
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    return path
