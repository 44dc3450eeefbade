"""Everything that is trained, in one module: the diffusion transformer and its encoders."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from stagecli.dsp.channels import level_bands, mdct_hz, stft_hz
from stagecli.model.byte_encoder import ByteEncoder
from stagecli.model.dit import Conditioning, DiT, Output
from stagecli.schema import Recipe

BANDS = 32  # of `model.levels`


class Network(nn.Module):
    """x_t, t and the conditioning tensors of a batch -> velocity.

    A batch holds tensors by name: `text_ids` [B, L] (bytes) or `text` [B, L, D'] with `text_mask`
    [B, L] (cached embeddings); `low` [B, T, C], `cutoff`, `level` [B] and `band` [B, C] (sr);
    `mask` [B, T] where padding is masked out.
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
            bands_CK=_level_bands(recipe) if recipe.model.levels else None,
            text=condition.text != "none",
            gated=recipe.model.output == "gated",
            activation_checkpointing=recipe.train.activation_checkpointing,
        )

    @property
    def blocks(self) -> nn.ModuleList:
        """The transformer blocks (`dit.Block`) from input to output."""
        return self.dit.blocks

    @property
    def channels(self) -> int:
        """Channels C of the frames x [B, T, C]."""
        return self.dit.channels

    def encode_condition(self, batch: Mapping[str, Tensor]) -> Conditioning:
        """The encoded condition of a batch, which a sampler encodes once and uses in every step.

        FSDP puts the weights together around this call; within `forward` they already are.
        """
        return self._encode(batch)

    def _encode(self, batch: Mapping[str, Tensor]) -> Conditioning:
        condition = Conditioning(
            low_BTC=batch.get("low"),
            cutoff_B=batch.get("cutoff"),
            level_B=batch.get("level"),
            band_BC=batch.get("band"),
            mask_BT=batch.get("mask"),
        )
        if self.bytes is not None:
            tokens_BLD, mask_BL = self.bytes(batch["text_ids"])
            return replace(condition, text_BLD=tokens_BLD, text_mask_BL=mask_BL)
        if self.project is not None:
            tokens_BLD = self.project(batch["text"])
            return replace(condition, text_BLD=tokens_BLD, text_mask_BL=batch["text_mask"])
        return condition

    def forward(
        self,
        x_BTC: Tensor,
        t_B: Tensor,
        batch: Mapping[str, Tensor] | Conditioning,
        return_hidden: Collection[int] = (),
    ) -> Output:
        """Velocity of x_t [B, T, C] at t [B]; return_hidden: keys of `Output.hidden`."""
        condition = batch if isinstance(batch, Conditioning) else self._encode(batch)
        return self.dit(x_BTC, t_B, condition, return_hidden)

    def parameter_groups(self, weight_decay: float) -> list[dict[str, object]]:
        """AdamW groups: matrices decay; biases, norms and embeddings do not."""
        undecayed = {id(p) for p in self.bytes.undecayed_parameters()} if self.bytes else set()
        decayed: list[nn.Parameter] = []
        others: list[nn.Parameter] = []
        for parameter in self.parameters():
            if not parameter.requires_grad:
                continue
            is_decayed = parameter.ndim >= 2 and id(parameter) not in undecayed
            (decayed if is_decayed else others).append(parameter)
        return [
            {"params": decayed, "weight_decay": weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]


def _level_bands(recipe: Recipe) -> Tensor:
    """Weights [C, K] of the bands whose levels the transformer reads."""
    codec = recipe.codec
    rate = recipe.data.sample_rate
    # Values are needed, also for a network on the meta device or of fake tensors.
    with _disable_current_modes(), torch.device("cpu"):
        hz_C = mdct_hz(codec.hop, rate) if codec.kind == "mdct" else stft_hz(codec.n_fft, rate)
        return level_bands(hz_C, BANDS)


def count_parameters(module: nn.Module) -> int:
    """Number of scalars in all parameters."""
    return sum(p.numel() for p in module.parameters())


def meta_network(recipe: Recipe, *, channels: int, text_width: int | None = None) -> Network:
    """A network without memory on the meta device, for `--dry-run`."""
    with torch.device("meta"):
        return Network(recipe, channels=channels, text_width=text_width)
