"""The SSL encoders that ship with the package: `teacher` and `judge`, 44.1 kHz, hearing up to 22.05 kHz.

Trained by `docs/experiments/train_encoders.py`; what they reach is in docs/encoders.md. `teacher` (a convolutional
network, bootstrap objective after BYOL-A, arXiv 2103.06695) guides training or measures its discrepancy; `judge` (a
transformer, masked autoencoder after Audio-MAE, arXiv 2207.06405) scores in the evaluation only.
"""

from __future__ import annotations

import difflib
import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import torchaudio
from safetensors.torch import load_file
from torch import Tensor, nn

from stagecli.errors import StageError
from stagecli.ssl.base import Encoder, Grid, Layer, average, choose_layers, recorded

RATE = 44100  # Hz
WEIGHTS = Path(__file__).parent / "weights"


class BandMel(nn.Module):
    """Log-mel power of whole Hann windows of 1024 samples every 441 (10 ms), 0 Hz to Nyquist; no padding at the edges.

    80 triangles on Slaney's scale, peak 1. A full-scale sine has power 1; `floor` is added before the logarithm,
    so that silence and empty bands have one value and a finite gradient. (log10 + 4) / 2 is about [-1.8, 2].
    """

    filters_FC: Tensor
    window: Tensor

    length = 1024
    hop = 441
    n_mels = 80
    floor = 3e-8

    def __init__(self) -> None:
        super().__init__()
        filters_FC = torchaudio.functional.melscale_fbanks(
            self.length // 2 + 1, 0.0, RATE / 2, self.n_mels, RATE, mel_scale="slaney"
        )
        window = torch.hann_window(self.length)
        # Made anew at each start, so not part of the weights.
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
    """ConvNeXt block in time (arXiv 2201.03545): depthwise convolution, norm, two linear layers, residual."""

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
    """Log-mel [B, T, 80] -> [B, T // 4, D]: three strided 2-D convolutions, then `blocks` of constant width."""

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
    """Transformer block, norm first."""

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
    """Sines and cosines of a patch's place, [columns * rows, width]: half the width is time, half frequency."""

    def one(count: int) -> Tensor:
        rates = torch.exp(-math.log(200.0) * torch.arange(width // 4) / (width // 4))
        angles = torch.arange(count)[:, None] * rates
        return torch.cat([angles.sin(), angles.cos()], dim=1)

    time = one(columns)[:, None].expand(-1, rows, -1)
    frequency = one(rows)[None].expand(columns, -1, -1) if rows else time
    return torch.cat([time, frequency], dim=-1).flatten(0, 1)


class JudgeNetwork(nn.Module):
    """Log-mel [B, T, 80] -> tokens [B, P, D], P = 5 * (T // 4): patches of 40 ms by 16 bands, column by column."""

    # mel frames and bands of a patch; most columns of a pass (2 s)
    STRIDE = 4
    BANDS = 16
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
        """Log-mel [B, T, 80] -> patches [B, P, 64]; frames that do not fill a patch are left out."""
        mel_BTC = mel_BTC[:, : mel_BTC.shape[1] // self.STRIDE * self.STRIDE]
        parts = mel_BTC.unflatten(1, (-1, self.STRIDE)).unflatten(3, (self.ROWS, self.BANDS))
        return parts.transpose(2, 3).flatten(3).flatten(1, 2)

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
    """One of the two; a feature every 40 ms. Of the judge, a feature is the mean of the five tokens of a column: side
    by side they are little better (docs/encoders.md), and a Frechet distance would need five times as many clips."""

    def __init__(self, network: Any, model: str, layer: Layer) -> None:
        name = f"bundled:{model}"
        layers = choose_layers(layer, len(network.blocks), name)
        first = BandMel.length + (network.STRIDE - 1) * BandMel.hop
        hop = network.STRIDE * BandMel.hop
        columns = getattr(network, "COLUMNS", None)
        rows = getattr(network, "ROWS", 1)
        super().__init__(
            network,
            name=name,
            sample_rate=RATE,
            band=RATE / 2,
            dimension=int(network.norm.normalized_shape[0]),
            layers=layers,
            grid=Grid(first, hop, columns, columns and first + (columns - 1) * hop),
        )
        self.mel = BandMel()
        self.depth = len(network.blocks)
        self.rows = rows
        del network.blocks[max(layers[-1], 1) :]

    def encode(self, audio_BN: Tensor) -> Tensor:
        network: Any = self.network
        with recorded(network.blocks) as states:
            out_BPD = network(self.mel(audio_BN))
        if self.layers[-1] == self.depth:
            states[self.depth] = out_BPD
        return average(states, self.layers).unflatten(1, (-1, self.rows)).mean(2)


def load(model: str, layer: Layer = -1) -> Encoder:
    """A frozen encoder, `teacher` or `judge`.

    layer: see `choose_layers`. Raises StageError: no such encoder, no such layer, the installed weights are missing.
    """
    if model not in NETWORKS:
        near = difflib.get_close_matches(model.lower(), NETWORKS, 1)
        raise StageError(
            f"there is no bundled encoder {model!r}",
            hint=(f"did you mean {near[0]}? " if near else "") + f"Bundled: {', '.join(NETWORKS)}",
        )
    path = WEIGHTS / f"{model}.safetensors"
    network = NETWORKS[model]()
    try:
        weights = load_file(path)
        network.load_state_dict({name: value.float() for name, value in weights.items()})
    except Exception as error:  # missing, cut short, of another version: all different classes
        raise StageError(
            f"the weights of the bundled encoder {model} cannot be read: {path}",
            hint="install stagecli again; the file is part of the package",
        ) from error
    return BundledEncoder(network, model, layer)
