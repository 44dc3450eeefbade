"""The mel filter bank of codecs, metrics and encoders."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

Scale = Literal["slaney", "htk"]
Norm = Literal["peak", "area", "sum"]

# Slaney's Auditory Toolbox (1998): linear below 1 kHz, logarithmic above.
_SLANEY_BREAK_HZ = 1000.0
_SLANEY_BREAK_MEL = 15.0
_SLANEY_LOG_STEP = math.log(6.4) / 27  # 27 mels per factor of 6.4


class EmptyMelFilterError(ValueError):
    """A filter falls between two bins of the transform and would be all zero."""


def mel_filters(
    *,
    sample_rate: int,
    n_fft: int,
    bands: int,
    f_min: float = 0.0,
    f_max: float | None = None,
    scale: Scale = "slaney",
    norm: Norm = "area",
) -> Tensor:
    """Triangular mel filters in float64, [F, C] with F = n_fft // 2 + 1 and C = bands.

    f_min, f_max: Hz, lower edge of the first and upper edge of the last filter (default: Nyquist).
    scale: "slaney", or "htk": 2595 log10(1 + f / 700) mel. norm: what is 1 for every filter, its
    value at the centre frequency ("peak"), its area over Hz ("area") or its sum over bins ("sum").

    Computed in float64, where `torchaudio.functional.melscale_fbanks` works in float32; the two
    agree to 4e-6 of the largest weight. Raises EmptyMelFilterError for filters without a bin.
    """
    nyquist = sample_rate / 2
    edges = mel_edges(f_min, nyquist if f_max is None else f_max, bands, scale)
    low_C = edges[:-2]
    centre_C = edges[1:-1]
    high_C = edges[2:]

    bins_F1 = torch.linspace(0, nyquist, n_fft // 2 + 1, dtype=torch.float64)[:, None]
    rising_FC = (bins_F1 - low_C) / (centre_C - low_C)
    falling_FC = (high_C - bins_F1) / (high_C - centre_C)
    filters_FC = torch.minimum(rising_FC, falling_FC).clamp_min(0)

    total_C = filters_FC.sum(0)
    empty = int((total_C == 0).sum())
    if empty:
        raise EmptyMelFilterError(
            f"{bands} mel bands are too many: {empty} of them hold no frequency bin "
            f"(n_fft {n_fft} at {sample_rate} Hz)"
        )
    if norm == "area":
        return filters_FC * 2 / (high_C - low_C)
    if norm == "sum":
        return filters_FC / total_C
    return filters_FC


def mel_edges(f_min: float, f_max: float, bands: int, scale: Scale) -> Tensor:
    """Edge frequencies in Hz, float64 [bands + 2], equally spaced in mel from f_min to f_max."""
    if scale == "htk":
        points = torch.linspace(_htk_mel(f_min), _htk_mel(f_max), bands + 2, dtype=torch.float64)
        return 700 * (10 ** (points / 2595) - 1)
    points = torch.linspace(_slaney_mel(f_min), _slaney_mel(f_max), bands + 2, dtype=torch.float64)
    logarithmic = _SLANEY_BREAK_HZ * torch.exp((points - _SLANEY_BREAK_MEL) * _SLANEY_LOG_STEP)
    return torch.where(points < _SLANEY_BREAK_MEL, points * 200 / 3, logarithmic)


def _htk_mel(hz: float) -> float:
    return 2595 * math.log10(1 + hz / 700)


def _slaney_mel(hz: float) -> float:
    if hz < _SLANEY_BREAK_HZ:
        return hz * 3 / 200
    return _SLANEY_BREAK_MEL + 27 * math.log(hz / _SLANEY_BREAK_HZ) / math.log(6.4)
