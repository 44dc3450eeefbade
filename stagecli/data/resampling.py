"""Low-resolution inputs as resamplers make them: to a lower rate and back, in the time domain.

Unlike the filters of `data/degrade.py` these keep the faults of real resamplers: a slope of any
width, aliases below the new Nyquist frequency, and images above it. No torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

RATIOS = 64  # largest denominator of a ratio of rates
WIDTHS = (4, 8, 16, 32, 64)  # zero crossings to either side: from a fast setting to a very good one
ROLLOFFS = (0.85, 0.99)
BETAS = (5.0, 14.0)  # Kaiser windows of about 50 to 140 dB
LINES = 0.15  # share of resamplings by straight lines


@dataclass(frozen=True)
class Resampling:
    """To `ratio` of the sample rate and back, by a windowed sinc or by straight lines.

    cutoff: Hz, where the sinc's filter is 6 dB down in one direction; rolloff: the cutoff as a
    share of half the lower rate; width: zero crossings of the sinc to either side, 0 for straight
    lines; beta: shape of its Kaiser window.
    """

    ratio: Fraction
    cutoff: float
    rolloff: float
    width: int
    beta: float


def draw_resampling(
    rng: np.random.Generator, cutoff: tuple[float, float], sample_rate: int
) -> Resampling:
    """A random resampler with a cutoff of about uniform in Hz: lower rates are small ratios.

    Always five draws from `rng`, so that streams stay aligned.
    """
    wanted = cutoff[0] + float(rng.random()) * (cutoff[1] - cutoff[0])
    lines = bool(rng.random() < LINES)
    rolloff = ROLLOFFS[0] + float(rng.random()) * (ROLLOFFS[1] - ROLLOFFS[0])
    width = WIDTHS[min(int(rng.random() * len(WIDTHS)), len(WIDTHS) - 1)]
    beta = BETAS[0] + float(rng.random()) * (BETAS[1] - BETAS[0])
    if lines:
        rolloff = 1.0
        width = 0
    ratio = Fraction(2 * wanted / rolloff / sample_rate).limit_denominator(RATIOS)
    ratio = min(max(ratio, Fraction(1, RATIOS)), Fraction(RATIOS - 1, RATIOS))
    return Resampling(
        ratio=ratio,
        cutoff=float(ratio) * sample_rate * rolloff / 2,
        rolloff=rolloff,
        width=width,
        beta=beta,
    )


def resample_down_and_up(audio_N: np.ndarray, resampling: Resampling) -> np.ndarray:
    """Audio [N] -> float32 [N], without delay."""
    length = audio_N.size
    if length == 0:
        return audio_N.astype(np.float32)
    up = resampling.ratio.numerator
    down = resampling.ratio.denominator
    if resampling.width == 0:
        times_M = np.arange(-(-length * up // down)) * (down / up)
        low_M = np.interp(times_M, np.arange(length), audio_N)
        return np.interp(np.arange(length), times_M, low_M).astype(np.float32)
    from scipy.signal import firwin, resample_poly

    taps = 2 * resampling.width * down + 1
    filter_K = firwin(taps, resampling.rolloff / down, window=("kaiser", resampling.beta))
    low_M = resample_poly(audio_N.astype(np.float64), up, down, window=filter_K)
    return resample_poly(low_M, down, up, window=filter_K)[:length].astype(np.float32)
