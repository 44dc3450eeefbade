"""Frequencies of the channels of spectral frames, and the bands that their levels are read in."""

from __future__ import annotations

import torch
from torch import Tensor

LOWEST_HZ = 200.0  # upper edge of the lowest band
QUIETEST = 1e-4  # mean square of normalised frames, 1 on average, that counts as silence


def mdct_hz(hop: int, sample_rate: int) -> Tensor:
    """Centre frequency in Hz of each MDCT coefficient, float64 [hop]."""
    return (torch.arange(hop, dtype=torch.float64) + 0.5) * sample_rate / (2 * hop)


def stft_hz(n_fft: int, sample_rate: int) -> Tensor:
    """Frequency in Hz of each channel, float64 [n_fft]: real parts of all bins, then imaginary
    parts of those that have one.
    """
    bin_hz = torch.arange(n_fft // 2 + 1, dtype=torch.float64) * sample_rate / n_fft
    return torch.cat([bin_hz, bin_hz[1:-1]])


def level_bands(channel_hz_C: Tensor, count: int) -> Tensor:
    """Weights [C, K] that average over the channels of each of at most `count` bands.

    The bands have equal ratios above `LOWEST_HZ` and end at the highest channel; those without a
    channel are left out.
    """
    highest = float(channel_hz_C.max())
    edges = torch.logspace(0, 1, count, base=highest / LOWEST_HZ, dtype=torch.float64) * LOWEST_HZ
    number_C = torch.bucketize(channel_hz_C.double(), edges).clamp_max(count - 1)
    member_CK = torch.nn.functional.one_hot(number_C, count).float()
    member_CK = member_CK[:, member_CK.any(0)]
    return member_CK / member_CK.sum(0)


def band_levels(frames_BTC: Tensor, bands_CK: Tensor) -> Tensor:
    """Levels [B, T, K] of normalised frames in the bands of `level_bands`, in about [-1.3, 1].

    A third of the log10 of the mean square. In fp32, as bf16 would blur the sums.
    """
    with torch.autocast(frames_BTC.device.type, enabled=False):
        power_BTK = frames_BTC.float().square() @ bands_CK
    return (power_BTK.clamp_min(QUIETEST).log10() / 3).to(frames_BTC.dtype)
