"""The low-resolution input of super-resolution: a low-pass filter, resampling down and back up.

Filter and order of operations follow NU-Wave 2 (Han and Lee, 2022): zero-phase IIR, then resampling
to twice the cutoff and back. Unlike there, the length depends on the input alone and the target
stays untouched. No torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import get_args

import numpy as np

from stagecli.schema import Evaluate, FilterFamily

RIPPLE = 0.05  # dB in the pass band of cheby1 and ellip, per pass (NU-Wave 2's test filter)
ATTENUATION = 60.0  # dB in the stop band of ellip, per pass (as in ssr_eval)
FLAT = 0.98  # share of the cutoff up to which the resampling filter is flat; 0 from the cutoff on
EXTENSION = 64  # cycles of the cutoff by which both ends are extended while filtering


@dataclass(frozen=True)
class LowPass:
    """A low-pass filter, run forward and backward (zero phase). order: of one pass; cutoff: Hz.

    Order and decibels count twice: the response at the cutoff is -6 dB for butter and bessel
    (bessel by `norm="mag"`, as otherwise its cutoff refers to delay), -0.1 dB for cheby1 and ellip
    (ripple 0.05 dB a pass; ellip's stop band 60 dB a pass). Raises ValueError for an unknown family
    and for an order or cutoff that is not positive.
    """

    family: FilterFamily
    order: int
    cutoff: float

    def __post_init__(self) -> None:
        if self.family not in get_args(FilterFamily):
            raise ValueError(f"unknown filter family {self.family!r}")
        if self.order < 1 or not self.cutoff > 0:
            raise ValueError(f"order {self.order} and cutoff {self.cutoff} Hz must be positive")


def degrade(audio_N: np.ndarray, sample_rate: int, low_pass: LowPass) -> np.ndarray:
    """Audio [N] at `sample_rate` Hz -> float32 [N] without content above the cutoff, no delay.

    After the IIR filter, which alone would leave content above the cutoff, the audio is resampled
    to exactly 2 * cutoff and back by band-limited (sinc) interpolation, with a raised-cosine filter
    from 0.98 of the cutoff to the cutoff. By the sampling theorem the two steps equal that filter,
    so it is applied once, to the spectrum: any real cutoff is exact, without rounding of rates or
    lengths. So is the IIR filter, through its closed-form response: designing sections for each
    random cutoff would take longer than all the rest. Ends are extended by odd reflection.

    Raises ValueError if audio is not [N] or the cutoff is not below half the sample rate.
    """
    audio_N = np.asarray(audio_N, dtype=np.float32)
    if audio_N.ndim != 1:
        raise ValueError(f"audio must be [N], not {audio_N.shape}")
    if low_pass.cutoff >= sample_rate / 2:
        raise ValueError(
            f"cutoff {low_pass.cutoff:g} Hz is not below Nyquist, {sample_rate / 2:g} Hz"
        )
    length = audio_N.size
    if length == 0:
        return audio_N.copy()
    from scipy.fft import irfft, next_fast_len, rfft

    extra = min(length - 1, math.ceil(EXTENSION * sample_rate / low_pass.cutoff))
    extended = np.pad(audio_N.astype(np.float64), extra, mode="reflect", reflect_type="odd")
    # Zeros between the two ends, which the circular transform would join.
    size = next_fast_len(extended.size + extra, real=True)
    spectrum_F = rfft(extended, size)
    kept = math.ceil(low_pass.cutoff * size / sample_rate)  # bins below the cutoff
    hertz_F = np.arange(kept) * (sample_rate / size)
    slope_F = np.clip((hertz_F / low_pass.cutoff - FLAT) / (1 - FLAT), 0.0, 1.0)
    resampling_F = 0.5 + 0.5 * np.cos(np.pi * slope_F)
    spectrum_F[:kept] *= response(low_pass, hertz_F, sample_rate) * resampling_F
    spectrum_F[kept:] = 0.0
    return irfft(spectrum_F, size)[extra : extra + length].astype(np.float32)


def draw_low_pass(
    rng: np.random.Generator,
    cutoff: tuple[float, float],
    families: Sequence[FilterFamily],
    orders: tuple[int, int],
) -> LowPass:
    """A random filter: family and order (both ends included) uniform, cutoff uniform in Hz.

    Uniform in Hz as in published recipes (NU-Wave 2, AudioSR, AudioLBM). A cutoff uniform in
    octaves trains the high ones too little, where doing nothing is hard to beat (docs/log.md).
    Always three draws from `rng`, whatever the ranges, so that streams stay aligned.
    """
    family = families[min(int(rng.random() * len(families)), len(families) - 1)]
    order = min(orders[0] + int(rng.random() * (orders[1] - orders[0] + 1)), orders[1])
    return LowPass(family, order, cutoff[0] + float(rng.random()) * (cutoff[1] - cutoff[0]))


def test_low_pass(evaluate: Evaluate, cutoff: float) -> LowPass:
    """The evaluation filter at `cutoff` Hz: the recipe's family and order, nothing random."""
    return LowPass(evaluate.filter, evaluate.order, cutoff)


def response(low_pass: LowPass, hertz_F: np.ndarray, sample_rate: int) -> np.ndarray:
    """Gain [F] of the digital filter run forward and backward, at frequencies up to the cutoff.

    The bilinear transform maps frequency f to tan(pi f / rate) / tan(pi cutoff / rate) of the
    analog prototype.
    """
    warped_F = np.tan(np.pi * hertz_F / sample_rate) / math.tan(
        math.pi * low_pass.cutoff / sample_rate
    )
    above, below = _prototype(low_pass.family, low_pass.order)
    return np.polyval(above, warped_F**2) / np.polyval(below, warped_F**2)


@lru_cache(maxsize=64)
def _prototype(family: FilterFamily, order: int) -> tuple[np.ndarray, np.ndarray]:
    """|H(jw)|^2 of the analog low-pass filter with cutoff 1.

    Returns numerator and denominator as polynomials in w^2, highest power first.
    """
    from scipy import signal

    if family == "butter":
        zeros, poles, gain = signal.buttap(order)
    elif family == "cheby1":
        zeros, poles, gain = signal.cheb1ap(order, RIPPLE)
    elif family == "ellip":
        zeros, poles, gain = signal.ellipap(order, RIPPLE, ATTENUATION)
    else:
        zeros, poles, gain = signal.besselap(order, norm="mag")

    def squared(roots: np.ndarray) -> np.ndarray:
        """p(s) p(-s) at s = jw: only even powers remain, and s^2 = -w^2."""
        direct = np.atleast_1d(np.real(np.poly(np.ravel(roots))))
        power = np.arange(len(direct))[::-1]
        even = np.polymul(direct, direct * (-1.0) ** power)[::2]
        return even * (-1.0) ** np.arange(len(even))[::-1]

    return gain**2 * squared(zeros), squared(poles)
