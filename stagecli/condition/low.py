"""The low-resolution condition of super-resolution: its level, and the band that is kept from it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

LEVEL = 0.1  # root mean square that the input is brought to (-20 dBFS)
QUIETEST = 1e-4  # below this (-80 dBFS) an input counts as silence and is not lifted further
SPLICE = 0.015  # width, as a share of the cutoff, of the crossfade between the input and what is made anew
SPLICE_DB = 90.0  # how far what is made anew is pushed down in the kept band
KEPT = 0.99  # share of the cutoff below which the band is kept: above it the input is already attenuated


def level_gain(low_N: np.ndarray) -> float:
    """Gain that brings the low-resolution input to LEVEL; its inverse restores the loudness.

    It reads the input alone, never the target, so that sampling can do the same.
    """
    rms = float(np.sqrt(np.mean(np.square(low_N, dtype=np.float64)))) if low_N.size else 0.0
    return LEVEL / max(rms, QUIETEST)


def splice(low_N: np.ndarray, made_N: np.ndarray, cutoff: float, sample_rate: int) -> np.ndarray:
    """The input below KEPT x cutoff (Hz) and `made_N` above it, both [N], joined by a linear-phase filter.

    Frames of a redundant transform that were made anew do not agree with each other to the last bit,
    and on decoding leak into the band that is to be kept; here that band becomes the input's again.
    """
    from scipy.signal import firwin, kaiserord, oaconvolve

    width = SPLICE * cutoff
    taps, beta = kaiserord(SPLICE_DB, width / (sample_rate / 2))
    high_pass = firwin(
        taps | 1, KEPT * cutoff, window=("kaiser", beta), pass_zero=False, fs=sample_rate
    )
    change = made_N.astype(np.float64) - low_N
    return (low_N + oaconvolve(change, high_pass, mode="full")[taps // 2 :][: len(low_N)]).astype(
        np.float32
    )


def kept_band(channel_hz_C: Tensor, cutoff_B: Tensor, sample_rate: int) -> Tensor:
    """True [B, C] for the channels that are kept from the input; cutoff is a share of Nyquist."""
    edge_B = KEPT * cutoff_B * sample_rate / 2
    return channel_hz_C[None, :].to(cutoff_B.device) < edge_B[:, None]


def band_weight(band_BC: Tensor) -> Tensor:
    """Loss weight [B, 1, C]: what is kept from the input is not learnt."""
    return (~band_BC).to(torch.float32)[:, None, :]
