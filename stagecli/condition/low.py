"""The low-resolution input of super-resolution: its level, and the band kept from it."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

LEVEL = 0.1  # root mean square that every input is scaled to (-20 dBFS)
QUIETEST = 1e-4  # an input below this RMS (-80 dBFS) counts as silence and is not amplified further
SPLICE = 0.015  # width of the crossfade between input and generated band, as a share of the cutoff
SPLICE_DB = 90.0  # attenuation of the generated audio in the kept band
KEPT = 0.99  # share of the cutoff below which the band is kept; above, the input is attenuated


def level_gain(low_N: np.ndarray) -> float:
    """Gain that scales the low-resolution input [N] to LEVEL; its inverse restores the loudness.

    It depends on the input alone, never on the target, so that sampling can do the same.
    """
    power = float(np.mean(np.square(low_N, dtype=np.float64))) if low_N.size else 0.0
    return gain_of_power(power)


def gain_of_power(power: float) -> float:
    """`level_gain` of audio with this mean square."""
    return LEVEL / max(math.sqrt(power), QUIETEST)


def splice(
    low_N: np.ndarray, generated_N: np.ndarray, cutoff: float, sample_rate: int
) -> np.ndarray:
    """The input below KEPT * cutoff (Hz) and the generated audio above it, both [N], crossfaded.

    Generated frames of a redundant transform are not exactly consistent with each other and leak
    into the kept band when decoded; this restores that band from the input, with a linear-phase
    filter.
    """
    from scipy.signal import firwin, oaconvolve

    taps, beta = _splice_filter(cutoff, sample_rate)
    high_pass = firwin(
        taps, KEPT * cutoff, window=("kaiser", beta), pass_zero=False, fs=sample_rate
    )
    change = generated_N.astype(np.float64) - low_N
    high = oaconvolve(change, high_pass, mode="full")[taps // 2 :][: len(low_N)]
    return (low_N + high).astype(np.float32)


def splice_reach(cutoff: float, sample_rate: int) -> int:
    """Audio samples to either side that `splice` looks at."""
    return _splice_filter(cutoff, sample_rate)[0] // 2


def _splice_filter(cutoff: float, sample_rate: int) -> tuple[int, float]:
    """Number of taps, odd, and shape of the Kaiser window."""
    from scipy.signal import kaiserord

    taps, beta = kaiserord(SPLICE_DB, SPLICE * cutoff / (sample_rate / 2))
    return int(taps) | 1, float(beta)


def kept_band(channel_hz_C: Tensor, cutoff_B: Tensor, sample_rate: int) -> Tensor:
    """True [B, C] for channels kept from the input.

    channel_hz_C: centre frequency of each channel, Hz; cutoff_B: as a share of Nyquist.
    """
    edge_B = KEPT * cutoff_B * sample_rate / 2
    return channel_hz_C[None, :].to(cutoff_B.device) < edge_B[:, None]


def band_weight(band_BC: Tensor) -> Tensor:
    """Loss weight [B, 1, C]: 0 on channels kept from the input, which need no learning."""
    return (~band_BC).to(torch.float32)[:, None, :]
