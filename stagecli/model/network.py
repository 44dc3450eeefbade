"""Everything that is trained, in one module: the diffusion transformer and its condition encoders."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from stagecli.model.byte_encoder import ByteEncoder
from stagecli.model.dit import Conditioning, DiT, Output
from stagecli.schema import Recipe


class Network(nn.Module):
    """x_t, t and a batch of conditions -> velocity.

    A batch holds tensors by name: `text_ids` [B, L] (bytes) or `text` [B, L, D'] with `text_mask`
    [B, L] (cached embeddings); `low` [B, T, C], `cutoff`, `level` [B] and `band` [B, C] (sr); `mask`
    [B, T] where padding is masked out.
    """

    def __init__(self, recipe: Recipe, *, channels: int, text_width: int | None = None) -> None:
        super().__init__()
        width, depth, heads = recipe.model.resolved()
        condition = recipe.condition
        self.bytes = (
            ByteEncoder(condition.width, condition.depth, width)
            if condition.text == "bytes"
            else None
        )
        self.project = nn.Linear(text_width, width) if text_width is not None else None
        self.dit = DiT(
            channels=channels,
            width=width,
            depth=depth,
            heads=heads,
            patch=recipe.model.patch,
            mlp_ratio=recipe.model.mlp_ratio,
            low=recipe.task.kind == "sr",
            text=condition.text != "none",
            gated=recipe.model.output == "gated",
            activation_checkpointing=recipe.train.activation_checkpointing,
        )

    @property
    def blocks(self) -> nn.ModuleList:
        """The transformer blocks (`dit.Block`) from input to output."""
        return self.dit.blocks

    def condition(self, batch: Mapping[str, Tensor]) -> Conditioning:
        """Encode the conditions of a batch; once per batch, not once per sampler step."""
        result = Conditioning(
            low_BTC=batch.get("low"),
            cutoff_B=batch.get("cutoff"),
            level_B=batch.get("level"),
            band_BC=batch.get("band"),
            mask_BT=batch.get("mask"),
        )
        if self.bytes is not None:
            tokens, mask = self.bytes(batch["text_ids"])
            return replace(result, text_BLD=tokens, text_mask_BL=mask)
        if self.project is not None:
            return replace(
                result, text_BLD=self.project(batch["text"]), text_mask_BL=batch["text_mask"]
            )
        return result

    def forward(
        self,
        x_BTC: Tensor,
        t_B: Tensor,
        batch: Mapping[str, Tensor] | Conditioning,
        return_hidden: Collection[int] = (),
    ) -> Output:
        condition = batch if isinstance(batch, Conditioning) else self.condition(batch)
        return self.dit(x_BTC, t_B, condition, return_hidden)

    def parameter_groups(self, weight_decay: float) -> list[dict[str, object]]:
        """AdamW groups: matrices decay; biases, norms and embeddings don't."""
        named = [(n, p) for n, p in self.named_parameters() if p.requires_grad]
        decay = [p for n, p in named if p.ndim >= 2 and "embed" not in n]
        rest = [p for n, p in named if p.ndim < 2 or "embed" in n]
        return [
            {"params": decay, "weight_decay": weight_decay},
            {"params": rest, "weight_decay": 0.0},
        ]


def count_parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def meta_network(recipe: Recipe, *, channels: int, text_width: int | None = None) -> Network:
    """The same module without memory, for `--dry-run`."""
    with torch.device("meta"):
        return Network(recipe, channels=channels, text_width=text_width)
