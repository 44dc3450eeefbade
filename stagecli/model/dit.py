"""The diffusion transformer over frames; this file reads top to bottom.

Axes: B batch, T frames, C codec channels, P tokens (T / patch), D width, H heads, L text tokens.
Sources: DiT with adaLN-zero (Peebles and Xie 2023, arXiv 2212.09748), rotary positions (Su et al.
2021, arXiv 2104.09864), QK normalisation (Dehghani et al. 2023, arXiv 2302.05442).
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from stagecli.dsp.channels import band_levels

RECOMPUTE: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}  # draws nothing
# Lower bound of the divisor t in the gated output; small t would dominate the gradient.
MIN_T = 0.3


@dataclass
class Conditioning:
    """The network's inputs besides x_t and t; None where absent.

    text_BLD, text_mask_BL: text tokens, and False on their padding; low_BTC: frames of the
    low-resolution input; cutoff_B: its cutoff as a share of the Nyquist frequency; level_B: log10
    of the gain that scaled it to a common level; band_BC: True for channels kept from it; mask_BT:
    False on padded frames.
    """

    text_BLD: Tensor | None = None
    text_mask_BL: Tensor | None = None
    low_BTC: Tensor | None = None
    cutoff_B: Tensor | None = None
    level_B: Tensor | None = None
    band_BC: Tensor | None = None
    mask_BT: Tensor | None = None


@dataclass
class Output:
    """velocity_BTC: predicted eps - x0; hidden: number of a block, from 1 -> its output [B, P, D],
    and 0 -> the input of the first block.
    """

    velocity_BTC: Tensor
    hidden: dict[int, Tensor] = field(default_factory=dict)


def sinusoid(value_B: Tensor, width: int, scale: float = 1000.0) -> Tensor:
    """Numbers in [0, 1] -> [B, width], cosines and sines of geometrically spaced frequencies."""
    half = width // 2
    rate = torch.exp(
        -math.log(10_000.0) * torch.arange(half, device=value_B.device, dtype=torch.float32) / half
    )
    angle = value_B.float()[:, None] * scale * rate
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


def rotary_table(length: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """cos and sin [length, width / 2] of rotary position angles."""
    rate = 10_000.0 ** (-torch.arange(0, width, 2, device=device, dtype=torch.float32) / width)
    angle = torch.arange(length, device=device, dtype=torch.float32)[:, None] * rate
    return angle.cos(), angle.sin()


def rotate(x_BHPK: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate pairs of channels by the angle of their position, in fp32.

    bf16 angles would blur distant positions.
    """
    cos, sin = table
    a, b = x_BHPK.float().chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(x_BHPK.dtype)


def modulate(x_BPD: Tensor, shift_BD: Tensor, scale_BD: Tensor) -> Tensor:
    """Scale and shift all tokens of a clip alike (adaLN)."""
    return x_BPD * (1 + scale_BD[:, None]) + shift_BD[:, None]


class HeadNorm(nn.Module):
    """Root-mean-square norm over a head's channels, in fp32 whatever the autocast type."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x_BHPK: Tensor) -> Tensor:
        return F.rms_norm(x_BHPK.float(), (x_BHPK.shape[-1],), self.weight).to(x_BHPK.dtype)


class Attention(nn.Module):
    """Multi-head attention with normalised queries and keys; self (rotary) or cross."""

    def __init__(self, width: int, heads: int, context: int | None = None) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width, bias=False)
        self.k = nn.Linear(context or width, width, bias=False)
        self.v = nn.Linear(context or width, width, bias=False)
        self.o = nn.Linear(width, width)
        self.q_norm = HeadNorm(width // heads)
        self.k_norm = HeadNorm(width // heads)

    def forward(
        self,
        x_BPD: Tensor,
        context_BLD: Tensor | None = None,
        mask_BL: Tensor | None = None,
        table: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Tokens [B, P, D] -> [B, P, D]; table: of `rotary_table`; mask: False is not attended."""
        source = x_BPD if context_BLD is None else context_BLD

        def split(y: Tensor) -> Tensor:
            return y.unflatten(-1, (self.heads, -1)).transpose(1, 2)

        q = self.q_norm(split(self.q(x_BPD)))
        k = self.k_norm(split(self.k(source)))
        v = split(self.v(source))
        if table is not None:
            q = rotate(q, table)
            k = rotate(k, table)
        mask = None if mask_BL is None else mask_BL[:, None, None, :]
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.o(y.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Self-attention, cross-attention to text, feed-forward; modulated by the condition (adaLN)."""

    def __init__(self, width: int, heads: int, mlp_ratio: float, text: bool) -> None:
        super().__init__()
        hidden = int(width * mlp_ratio)
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.attention = Attention(width, heads)
        self.norm_text = nn.LayerNorm(width, eps=1e-6) if text else None
        self.cross = Attention(width, heads, context=width) if text else None
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)
        self.modulation = nn.Linear(width, 6 * width)

    def matrices(self) -> dict[str, Tensor]:
        """Weights [out, in] of self-attention (q, k, v, o) and of the feed-forward part (fc1, fc2).

        q, k, v and fc1 read the residual stream (in = width); o and fc2 write to it (out = width).
        """
        return {
            "q": self.attention.q.weight,
            "k": self.attention.k.weight,
            "v": self.attention.v.weight,
            "o": self.attention.o.weight,
            "fc1": self.fc1.weight,
            "fc2": self.fc2.weight,
        }

    def forward(
        self,
        x_BPD: Tensor,
        c_BD: Tensor,
        table: tuple[Tensor, Tensor],
        *,
        mask_BP: Tensor | None,
        text_BLD: Tensor | None,
        text_mask_BL: Tensor | None,
    ) -> Tensor:
        modulation = self.modulation(F.silu(c_BD))
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation.chunk(6, dim=-1)
        normed_BPD = modulate(self.norm1(x_BPD), shift1, scale1)
        x_BPD = x_BPD + gate1[:, None] * self.attention(normed_BPD, mask_BL=mask_BP, table=table)
        if self.cross is not None and self.norm_text is not None and text_BLD is not None:
            x_BPD = x_BPD + self.cross(self.norm_text(x_BPD), text_BLD, text_mask_BL)
        normed_BPD = modulate(self.norm2(x_BPD), shift2, scale2)
        hidden_BPK = F.gelu(self.fc1(normed_BPD), approximate="tanh")
        return x_BPD + gate2[:, None] * self.fc2(hidden_BPK)


class DiT(nn.Module):
    """Predicts the velocity eps - x0 of frames x_t [B, T, C] at time t (1 is noise).

    channels: C; low: take the low-resolution frames, their cutoff and level as inputs (sr);
    bands_CK: bands in which the trunk also reads the levels of x_t and of those frames, because its
    width holds only sums of channels of random phase, which hardly show how loud a band is; text:
    cross-attend to text tokens of this width; gated: the output is b(h) + a(h) x_t per channel
    instead of b(h). The velocity holds the noise of every channel, which a narrow trunk cannot
    carry (C > width); the gate lets it bypass the trunk. For independent Gaussian channels the
    exact velocity has this form with b = 0.
    """

    bands_CK: Tensor | None

    def __init__(
        self,
        *,
        channels: int,
        width: int,
        depth: int,
        heads: int,
        patch: int = 1,
        mlp_ratio: float = 4.0,
        low: bool = False,
        bands_CK: Tensor | None = None,
        text: bool = False,
        gated: bool = False,
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.channels = channels
        self.width = width
        self.heads = heads
        self.patch = patch
        self.activation_checkpointing = activation_checkpointing
        bands = 0 if bands_CK is None else bands_CK.shape[1]
        self.register_buffer("bands_CK", bands_CK, persistent=False)
        self.input = nn.Linear((channels + bands) * patch * (2 if low else 1), width)
        self.time = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))
        self.cutoff = (
            nn.Sequential(nn.Linear(512, width), nn.SiLU(), nn.Linear(width, width))
            if low
            else None
        )
        self.pooled = nn.Linear(width, width) if text else None
        self.blocks = nn.ModuleList(Block(width, heads, mlp_ratio, text) for _ in range(depth))
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.modulation = nn.Linear(width, 2 * width)
        self.gated = gated
        self.output = nn.Linear(width, channels * patch * (2 if gated else 1))
        self.initialise()

    def initialise(self) -> None:
        """adaLN-zero: every block starts as the identity, and the output as zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        zero = [self.modulation, self.output]
        for block in self.blocks:
            assert isinstance(block, Block)
            zero += [block.modulation] + ([block.cross.o] if block.cross is not None else [])
        for module in zero:
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)

    def compile_blocks(self) -> None:
        """Compile one block for all: compiling the whole graph would take `depth` times as long."""
        for block in self.blocks:
            block.compile()

    def tokens(self, frames_BTC: Tensor) -> Tensor:
        """[B, T, C] -> [B, P, patch * C]; T is padded to whole patches."""
        extra = -frames_BTC.shape[1] % self.patch
        padded = F.pad(frames_BTC, (0, 0, 0, extra)) if extra else frames_BTC
        return padded.unflatten(1, (-1, self.patch)).flatten(2)

    def forward(
        self,
        x_BTC: Tensor,
        t_B: Tensor,
        condition: Conditioning,
        return_hidden: Collection[int] = (),
    ) -> Output:
        """Velocity of x_t [B, T, C] at t [B]; return_hidden: keys of `Output.hidden`."""
        frames = x_BTC.shape[1]
        if condition.mask_BT is not None:
            # A token of several frames may hold padding beside real frames.
            x_BTC = x_BTC * condition.mask_BT[..., None]

        # Global condition: time, cutoff and level, pooled text.
        c_BD = self.time(sinusoid(t_B, 256).to(x_BTC.dtype))
        if self.cutoff is None:
            inputs = [self.tokens(x_BTC)]
        else:
            unknown_BTC, known_BTC = self.split_bands(x_BTC, condition)
            inputs = [self.tokens(unknown_BTC), self.tokens(known_BTC)]
            if self.bands_CK is not None:
                levels = [band_levels(part, self.bands_CK) for part in (unknown_BTC, known_BTC)]
                inputs += [self.tokens(level_BTK) for level_BTK in levels]
            c_BD = c_BD + self.cutoff(self.embed_low(condition).to(x_BTC.dtype))
        if self.pooled is not None:
            assert condition.text_BLD is not None and condition.text_mask_BL is not None
            weight = condition.text_mask_BL[..., None].to(condition.text_BLD.dtype)
            pooled_BD = (condition.text_BLD * weight).sum(1) / weight.sum(1).clamp_min(1)
            c_BD = c_BD + self.pooled(pooled_BD)

        # Trunk.
        x_BPD = self.input(torch.cat(inputs, dim=-1))
        mask_BP = None
        if condition.mask_BT is not None:
            mask_BP = self.tokens(condition.mask_BT[..., None]).any(-1)
        table = rotary_table(x_BPD.shape[1], self.width // self.heads, x_BPD.device)
        optional: dict[str, Any] = {
            "mask_BP": mask_BP,
            "text_BLD": condition.text_BLD,
            "text_mask_BL": condition.text_mask_BL,
        }
        hidden = {0: x_BPD} if 0 in return_hidden else {}
        for number, block in enumerate(self.blocks, 1):
            if self.activation_checkpointing and self.training:
                x_BPD = checkpoint(block, x_BPD, c_BD, table, **RECOMPUTE, **optional)
            else:
                x_BPD = block(x_BPD, c_BD, table, **optional)
            if number in return_hidden:
                hidden[number] = x_BPD

        # Output, from tokens back to frames.
        shift, scale = self.modulation(F.silu(c_BD)).chunk(2, dim=-1)
        output_BPK = self.output(modulate(self.norm(x_BPD), shift, scale))
        output_BTK = output_BPK.unflatten(-1, (self.patch, -1)).flatten(1, 2)[:, :frames]
        return Output(self.gate(output_BTK, x_BTC, t_B) if self.gated else output_BTK, hidden)

    @staticmethod
    def split_bands(x_BTC: Tensor, condition: Conditioning) -> tuple[Tensor, Tensor]:
        """x_t outside the kept band, and the low-resolution frames inside it; 0 elsewhere."""
        low_BTC = condition.low_BTC
        band_BC = condition.band_BC
        assert low_BTC is not None
        assert band_BC is not None
        return x_BTC.masked_fill(band_BC[:, None], 0.0), low_BTC.masked_fill(~band_BC[:, None], 0.0)

    @staticmethod
    def embed_low(condition: Conditioning) -> Tensor:
        """Embedding [B, 512] of cutoff (octaves below Nyquist) and level, each in about [0, 1]."""
        assert condition.cutoff_B is not None
        assert condition.level_B is not None
        octaves_B = -torch.log2(condition.cutoff_B.clamp(2**-8, 1.0)) / 8
        return torch.cat(
            [sinusoid(octaves_B, 256), sinusoid((condition.level_B + 1) / 4, 256)], dim=-1
        )

    @staticmethod
    def gate(output_BTK: Tensor, x_BTC: Tensor, t_B: Tensor) -> Tensor:
        """Velocity from a and b: that of unit-variance Gaussian channels, less (a x_t + b) / t.

        E[eps - x0 | x_t] = (2t - 1) / ((1 - t)^2 + t^2) x_t for x0 ~ N(0, 1). The division by t
        makes a x_t + b a correction of x0_hat, whose size does not depend on t.
        """
        t = t_B.float()[:, None, None]
        prior = (2 * t - 1) / ((1 - t).square() + t.square())
        gate_BTC, bias_BTC = output_BTK.float().chunk(2, dim=-1)
        return prior * x_BTC - (gate_BTC * x_BTC + bias_BTC) / t.clamp_min(MIN_T)
