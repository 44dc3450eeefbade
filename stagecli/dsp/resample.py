"""The resampler: NumPy arrays by polyphase filtering, tensors by a differentiable convolution.

No torch at module level: data loading needs none.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from stagecli.dsp.blocks import overlapping

if TYPE_CHECKING:
    from torch import Tensor


PART = 1 << 16  # audio samples that `resample_blocks` works on at once


@dataclass(frozen=True)
class Quality:
    """A low-pass filter for resampling: a sinc under a Kaiser window.

    cutoff: -6 dB point, as a share of the lower Nyquist frequency; half_width: length of one side,
    in periods of twice that Nyquist frequency; beta: shape of the Kaiser window; dtype: of the
    taps and of the result.
    """

    cutoff: float
    half_width: float
    beta: float
    dtype: type[np.floating[Any]]


STANDARD = Quality(
    cutoff=0.95,
    half_width=(80 - 7.95) / (2.285 * math.pi * 0.1) / 2,  # Kaiser's formula, transition band 0.1
    beta=0.1102 * (80 - 8.7),
    dtype=np.float32,
)
"""For training data: flat to 0.9 of the lower Nyquist frequency, 80 dB down above it."""

PRECISE = Quality(cutoff=1.0, half_width=64, beta=10.06, dtype=np.float64)
"""For metrics: 100 dB, -6 dB at the lower Nyquist frequency, a transition band 10 % wide."""


def resample(
    audio_N: np.ndarray, from_rate: int, to_rate: int, quality: Quality = STANDARD
) -> np.ndarray:
    """Audio [N] at `from_rate` Hz -> [ceil(N * to_rate / from_rate)] at `to_rate` Hz, no delay.

    SciPy's polyphase resampling with the filter of `quality`, because SciPy's own default filter
    leaks audibly above Nyquist. The result does not depend on a device.
    """
    audio_N = np.asarray(audio_N, dtype=quality.dtype)
    if from_rate == to_rate or audio_N.size == 0:
        return audio_N
    from scipy.signal import resample_poly

    divisor = math.gcd(from_rate, to_rate)
    up = to_rate // divisor
    down = from_rate // divisor
    resampled = resample_poly(audio_N, up, down, window=_taps(max(up, down), quality))
    return np.asarray(resampled, dtype=quality.dtype)


def resample_blocks(
    blocks: Iterable[np.ndarray], from_rate: int, to_rate: int
) -> Iterator[np.ndarray]:
    """`resample` for audio of any length in blocks [n, C]: the same values, in bounded memory."""
    if from_rate == to_rate:
        yield from blocks
        return
    from scipy.signal import resample_poly

    divisor = math.gcd(from_rate, to_rate)
    up = to_rate // divisor
    down = from_rate // divisor
    taps = _taps(max(up, down), STANDARD)
    # Parts start where both rates have a sample; the filter reaches less far than the margin.
    margin = down * math.ceil((len(taps) / 2 / up + 1) / down)
    size = 2 * margin + down * math.ceil(PART / down)
    parts = overlapping(blocks, size, size - 2 * margin)
    start = 0
    part_NC = next(parts, None)
    while part_NC is not None:
        next_NC = next(parts, None)
        stop = None if next_NC is None else (size - margin) * up // down
        resampled = resample_poly(np.asarray(part_NC, STANDARD.dtype), up, down, window=taps)
        yield np.asarray(resampled[start:stop], STANDARD.dtype)
        start = margin * up // down
        part_NC = next_NC


def resample_tensor(audio_BN: Tensor, from_rate: int, to_rate: int) -> Tensor:
    """Audio [B, N] at `from_rate` Hz -> at `to_rate` Hz, on its device, differentiable.

    torchaudio's windowed sinc (6 zero crossings, Hann): what published SSL encoders and CLAP are
    fed with, which is why it is not the filter of `resample`.
    """
    import torchaudio

    return torchaudio.functional.resample(audio_BN, from_rate, to_rate)


@lru_cache(maxsize=16)
def _taps(factor: int, quality: Quality) -> np.ndarray:
    """Taps of the low-pass filter at `factor` times the lower of the two rates."""
    from scipy.signal import firwin

    half = math.ceil(quality.half_width * factor)
    window = ("kaiser", quality.beta)
    taps = firwin(2 * half + 1, quality.cutoff / factor, window=window)
    return np.asarray(taps, dtype=quality.dtype)
