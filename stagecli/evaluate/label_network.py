"""A small convolutional network that reads labels off audio: one logit per class."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

BANDS = 128  # linear in frequency, so that the loss of a mel codec is not hidden by mel bands
SHORTEST_HOP = 96  # samples, at 8 kHz: 12 ms
WIDTHS = (16, 32, 48, 64)
POWER = 0.15  # of a band's energy, near the loudness that a listener perceives
TINY = 1e-8


class LabelNetwork(nn.Module):
    """Audio [B, N] at `rate` Hz -> logits [B, classes]; the loudness of a clip does not matter.

    Its front end is that of neither the judge nor any codec: 32 ms windows every 12 ms, 128 linear
    bands, compressed.
    """

    window: Tensor

    def __init__(self, rate: int, classes: int) -> None:
        super().__init__()
        self.bins_per_band = max(1, round(rate / 8000))
        self.n_fft = 2 * BANDS * self.bins_per_band
        self.hop = SHORTEST_HOP * self.bins_per_band
        self.register_buffer("window", torch.hann_window(self.n_fft), persistent=False)
        self.layers = nn.Sequential(
            _block(1, WIDTHS[0], stride=2),
            nn.MaxPool2d(2),
            _block(WIDTHS[0], WIDTHS[1]),
            nn.MaxPool2d(2),
            _block(WIDTHS[1], WIDTHS[2]),
            nn.MaxPool2d(2),
            _block(WIDTHS[2], WIDTHS[3]),
        )
        # Maximum and mean over time of every channel in each of the bands that are left.
        self.head = nn.Linear(2 * WIDTHS[3] * (BANDS // 16), classes)

    def forward(self, audio_BN: Tensor) -> Tensor:
        """Audio [B, N] -> logits [B, classes]."""
        x_BCTF = self.layers(self.bands(audio_BN)[:, None])
        pooled_BK = torch.cat([x_BCTF.amax(2).flatten(1), x_BCTF.mean(2).flatten(1)], dim=1)
        return self.head(nn.functional.dropout(pooled_BK, 0.3, self.training))

    def bands(self, audio_BN: Tensor) -> Tensor:
        """Audio [B, N] -> compressed energies [B, T, BANDS] of the clip at an RMS of 1."""
        audio_BN = nn.functional.pad(audio_BN, (0, max(0, self.shortest - audio_BN.shape[1])))
        loudness_B1 = audio_BN.square().mean(1, keepdim=True).sqrt().clamp_min(TINY)
        spectrum_BFT = torch.stft(
            audio_BN / loudness_B1,
            self.n_fft,
            self.hop,
            window=self.window,
            return_complex=True,
        )
        # Without the constant part, which nobody can hear.
        energy_BTF = spectrum_BFT.abs().square().transpose(1, 2)[..., 1:] / self.n_fft
        energy_BTC = energy_BTF.unflatten(-1, (BANDS, self.bins_per_band)).mean(-1)
        return (energy_BTC + TINY).pow(POWER)

    @property
    def shortest(self) -> int:
        """Samples for one step in time after every pooling."""
        return max(self.n_fft, 16 * self.hop)

    def frames(self, num_samples: int) -> int:
        """Number of spectrogram frames of a clip, which the time for training depends on."""
        return math.ceil(max(num_samples, self.shortest) / self.hop)


def _block(before: int, after: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(after),
        nn.ReLU(),
    )
