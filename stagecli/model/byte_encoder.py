"""A text encoder that is part of the network and trained with it."""

from __future__ import annotations

from collections.abc import Iterator

import torch.nn.functional as F
from torch import Tensor, nn

from stagecli.condition.text import OFFSET, PAD
from stagecli.model.dit import Attention, rotary_table


class ByteEncoder(nn.Module):
    """A small bidirectional transformer over bytes.

    width, depth, heads: of its blocks; out: width of its tokens.
    """

    def __init__(self, width: int, depth: int, out: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.embed = nn.Embedding(256 + OFFSET, width)
        self.layers = nn.ModuleList(
            nn.ModuleDict(
                {
                    "norm1": nn.LayerNorm(width),
                    "attention": Attention(width, heads),
                    "norm2": nn.LayerNorm(width),
                    "fc1": nn.Linear(width, 4 * width),
                    "fc2": nn.Linear(4 * width, width),
                }
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, out)
        nn.init.normal_(self.embed.weight, std=0.5)

    def undecayed_parameters(self) -> Iterator[nn.Parameter]:
        """Matrices without weight decay: decay would shrink the embeddings of rare bytes to 0."""
        yield from self.embed.parameters()

    def forward(self, ids_BL: Tensor) -> tuple[Tensor, Tensor]:
        """Ids [B, L] -> tokens [B, L, out] and mask [B, L], False on padding."""
        mask_BL = ids_BL != PAD
        x_BLD = self.embed(ids_BL)
        table = rotary_table(x_BLD.shape[1], x_BLD.shape[2] // self.heads, x_BLD.device)
        for layer in self.layers:
            assert isinstance(layer, nn.ModuleDict)
            normed_BLD = layer["norm1"](x_BLD)
            x_BLD = x_BLD + layer["attention"](normed_BLD, mask_BL=mask_BL, table=table)
            x_BLD = x_BLD + layer["fc2"](F.gelu(layer["fc1"](layer["norm2"](x_BLD))))
        return self.out(self.norm(x_BLD)), mask_BL
