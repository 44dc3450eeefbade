"""The SSL encoders that ship with the package: `teacher` and `judge`, full band at 44.1 kHz.

Trained by `docs/experiments/train_encoders.py`; docs/encoders.md has their accuracies. `teacher` (a
convolutional network, bootstrap objective after BYOL-A, arXiv 2103.06695) guides training or
measures its discrepancy; `judge` (a transformer, masked autoencoder after Audio-MAE, arXiv
2207.06405) scores in the evaluation only.
"""

from __future__ import annotations

import difflib
import math
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from stagecli.dsp.mel import mel_filters
from stagecli.errors import Problem, StageError, causes
from stagecli.ssl import WEIGHTS
from stagecli.ssl.base import Encoder, Grid, Layer, choose_layers, mean_of_layers, recorded

RATE = 44100  # Hz


class BandMel(nn.Module):
    """Log-mel power of Hann windows of 1024 samples every 441 (10 ms), 0 Hz to Nyquist, unpadded.

    80 triangles on Slaney's scale, peak 1. A full-scale sine has power 1. `floor` is added before
    the logarithm, so that silence and empty bands have one value and a finite gradient. The result
    (log10 + 4) / 2 is in about [-1.8, 2].
    """

    filters_FC: Tensor
    window: Tensor

    length = 1024
    hop = 441
    n_mels = 80
    floor = 3e-8

    def __init__(self) -> None:
        super().__init__()
        filters_FC = mel_filters(
            sample_rate=RATE, n_fft=self.length, bands=self.n_mels, norm="peak"
        ).float()
        window = torch.hann_window(self.length)
        # Constants, rebuilt from the settings: they stay out of the state dict.
        self.register_buffer("filters_FC", filters_FC, persistent=False)
        self.register_buffer("window", window * (2 / window.sum()), persistent=False)

    def power(self, audio_BN: Tensor) -> Tensor:
        """Audio [B, N] -> mel power [B, T, C], T = (N - 1024) // 441 + 1."""
        spectrum_BTF = torch.fft.rfft(audio_BN.unfold(1, self.length, self.hop) * self.window)
        # `abs` has no gradient at 0, which digital silence reaches.
        return torch.view_as_real(spectrum_BTF).square().sum(-1) @ self.filters_FC

    def forward(self, audio_BN: Tensor) -> Tensor:
        """Audio [B, N] -> normalised log-mel [B, T, C]."""
        return self.compress(self.power(audio_BN))

    def compress(self, power: Tensor) -> Tensor:
        """Mel power -> normalised logarithm, same shape."""
        return ((power + self.floor).log10() + 4) / 2


class ConvBlock(nn.Module):
    """ConvNeXt block in time (arXiv 2201.03545): depthwise convolution, norm, MLP, residual."""

    def __init__(self, width: int, kernel: int = 7, expansion: int = 2) -> None:
        super().__init__()
        self.mix = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=width)
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, expansion * width)
        self.down = nn.Linear(expansion * width, width)

    def forward(self, x_BLD: Tensor) -> Tensor:
        """[B, L, D] -> [B, L, D]."""
        mixed_BLD = self.mix(x_BLD.transpose(1, 2)).transpose(1, 2)
        return x_BLD + self.down(F.gelu(self.up(self.norm(mixed_BLD))))


class TeacherNetwork(nn.Module):
    """Log-mel [B, T, 80] -> [B, T // 4, D]: three strided convolutions, then ConvNeXt blocks."""

    STRIDE = 4  # mel frames per feature

    def __init__(
        self, width: int = 256, depth: int = 6, channels: tuple[int, int, int] = (24, 48, 64)
    ) -> None:
        super().__init__()
        first, second, third = channels
        self.stem = nn.Sequential(
            nn.Conv2d(1, first, 4, stride=2, padding=1),
            nn.GELU(),
            nn.Conv2d(first, second, 4, stride=2, padding=1),
            nn.GELU(),
            nn.Conv2d(second, third, (3, 4), stride=(1, 2), padding=1),
            nn.GELU(),
        )
        self.enter = nn.Linear(third * BandMel.n_mels // 8, width)
        self.enter_norm = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(ConvBlock(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(self, mel_BTC: Tensor) -> Tensor:
        maps_BKLF = self.stem(mel_BTC[:, None])
        x_BLD = self.enter_norm(self.enter(maps_BKLF.transpose(1, 2).flatten(2)))
        for block in self.blocks:
            x_BLD = block(x_BLD)
        return self.norm(x_BLD)


class AttentionBlock(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, width: int, heads: int, expansion: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.up = nn.Linear(width, expansion * width)
        self.down = nn.Linear(expansion * width, width)

    def forward(self, x_BPD: Tensor) -> Tensor:
        """[B, P, D] -> [B, P, D]."""
        qkv_BPHE = self.qkv(self.attention_norm(x_BPD)).unflatten(-1, (3 * self.heads, -1))
        q_BHPE, k_BHPE, v_BHPE = qkv_BPHE.transpose(1, 2).chunk(3, dim=1)
        mixed_BHPE = F.scaled_dot_product_attention(q_BHPE, k_BHPE, v_BHPE)
        x_BPD = x_BPD + self.out(mixed_BHPE.transpose(1, 2).flatten(2))
        return x_BPD + self.down(F.gelu(self.up(self.norm(x_BPD))))


def positions(columns: int, rows: int, width: int) -> Tensor:
    """Sinusoidal embedding of patch positions, [columns * rows, width].

    Half the width encodes the column (time), half the row (frequency).
    """

    def along_axis(count: int) -> Tensor:
        rates = torch.exp(-math.log(200.0) * torch.arange(width // 4) / (width // 4))
        angles = torch.arange(count)[:, None] * rates
        return torch.cat([angles.sin(), angles.cos()], dim=1)

    time = along_axis(columns)[:, None].expand(-1, rows, -1)
    frequency = along_axis(rows)[None].expand(columns, -1, -1)
    return torch.cat([time, frequency], dim=-1).flatten(0, 1)


class JudgeNetwork(nn.Module):
    """Log-mel [B, T, 80] -> tokens [B, P, D], P = 5 * (T // 4), column by column.

    A token is a patch of 40 ms by 16 bands. At most `COLUMNS` columns (2 s) in one pass.
    """

    STRIDE = 4  # mel frames per patch
    BANDS = 16  # mel bands per patch
    COLUMNS = 50
    ROWS = BandMel.n_mels // BANDS

    places_PD: Tensor

    def __init__(self, width: int = 128, depth: int = 4, heads: int = 4) -> None:
        super().__init__()
        self.enter = nn.Linear(self.STRIDE * self.BANDS, width)
        self.blocks = nn.ModuleList(AttentionBlock(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.register_buffer(
            "places_PD", positions(self.COLUMNS, self.ROWS, width), persistent=False
        )

    def patches(self, mel_BTC: Tensor) -> Tensor:
        """Log-mel [B, T, 80] -> patches [B, P, 64]; frames that do not fill a patch are dropped."""
        mel_BTC = mel_BTC[:, : mel_BTC.shape[1] // self.STRIDE * self.STRIDE]
        grid = mel_BTC.unflatten(1, (-1, self.STRIDE)).unflatten(3, (self.ROWS, self.BANDS))
        return grid.transpose(2, 3).flatten(3).flatten(1, 2)

    def forward(self, mel_BTC: Tensor) -> Tensor:
        patches_BPK = self.patches(mel_BTC)
        x_BPD = self.enter(patches_BPK) + self.places_PD[: patches_BPK.shape[1]]
        for block in self.blocks:
            x_BPD = block(x_BPD)
        return self.norm(x_BPD)


NETWORKS: dict[str, type[TeacherNetwork | JudgeNetwork]] = {
    "teacher": TeacherNetwork,
    "judge": JudgeNetwork,
}


class BundledEncoder(Encoder):
    """`teacher` or `judge`: one feature every 40 ms.

    A feature of the judge is the mean of the five tokens of a column. Concatenated they are hardly
    better (docs/encoders.md), and a Frechet distance would need five times as many clips.
    """

    def __init__(self, network: Any, model: str, layer: Layer) -> None:
        name = f"bundled:{model}"
        layers = choose_layers(layer, len(network.blocks), name)
        first = BandMel.length + (network.STRIDE - 1) * BandMel.hop
        hop = network.STRIDE * BandMel.hop
        grid = Grid(first=first, hop=hop)
        rows = 1
        if isinstance(network, JudgeNetwork):
            columns = network.COLUMNS
            rows = network.ROWS
            grid = Grid(first=first, hop=hop, chunk=columns, window=first + (columns - 1) * hop)
        super().__init__(
            network,
            name=name,
            sample_rate=RATE,
            band=RATE / 2,
            dimension=int(network.norm.normalized_shape[0]),
            layers=layers,
            grid=grid,
        )
        self.mel = BandMel()
        self.depth = len(network.blocks)
        self.rows = rows
        del network.blocks[max(layers[-1], 1) :]

    def encode(self, audio_BN: Tensor) -> Tensor:
        network: Any = self.network
        with recorded(network.blocks) as states:
            last_BPD = network(self.mel(audio_BN))
        if self.layers[-1] == self.depth:
            states[self.depth] = last_BPD
        return mean_of_layers(states, self.layers).unflatten(1, (-1, self.rows)).mean(2)


def load_encoder(model: str, layer: Layer = -1) -> Encoder:
    """A frozen encoder, `teacher` or `judge`.

    layer: see `choose_layers`. Raises StageError: unknown encoder, no such layer, installed weights
    missing or damaged.
    """
    if model not in NETWORKS:
        near = difflib.get_close_matches(model.lower(), NETWORKS, 1)
        suggestion = f"did you mean {near[0]}? " if near else ""
        raise StageError(
            f"there is no bundled encoder {model!r}",
            hint=f"{suggestion}Bundled: {', '.join(NETWORKS)}",
        )
    path = WEIGHTS / f"{model}.safetensors"
    network = NETWORKS[model]()
    try:
        weights = load_file(path)
        network.load_state_dict({name: value.float() for name, value in weights.items()})
    except Exception as error:  # missing, cut short, of another version: a different class each
        raise StageError(
            f"the weights of the bundled encoder {model} cannot be read: {path}",
            problems=[Problem("cause", text) for text in causes(error)],
            hint="install stagecli again; the file is part of the package",
        ) from error
    return BundledEncoder(network, model, layer)
