"""A text encoder that is a part of the network and trained with it."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from stagecli.condition.text import OFFSET, PAD
from stagecli.model.dit import Attention, rotary_table


class ByteEncoder(nn.Module):
    """A small bidirectional transformer over bytes."""

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

    def forward(self, ids_BL: Tensor) -> tuple[Tensor, Tensor]:
        """ids [B, L] -> tokens [B, L, out] and mask [B, L], True where there is a byte."""
        mask_BL = ids_BL != PAD
        x = self.embed(ids_BL)
        table = rotary_table(x.shape[1], x.shape[2] // self.heads, x.device)
        for layer in self.layers:
            assert isinstance(layer, nn.ModuleDict)
            x = x + layer["attention"](layer["norm1"](x), mask_BL=mask_BL, table=table)
            x = x + layer["fc2"](F.gelu(layer["fc1"](layer["norm2"](x))))
        return self.out(self.norm(x)), mask_BL
