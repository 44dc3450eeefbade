"""The low-resolution input of super-resolution: a low-pass filter, then resampling down and back up.

Filter and order of operations follow NU-Wave 2 (Han and Lee, 2022): zero-phase IIR, then resampling to
twice the cutoff and back. Unlike there, the length comes from the input alone and the target is never
touched. No torch.
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
FLAT = 0.98  # share of the cutoff up to which the resampling filter is flat; it is 0 from the cutoff on
EXTENSION = (
    64  # cycles of the cutoff that the audio is extended by at both ends while it is filtered
)


@dataclass(frozen=True)
class LowPass:
    """A low-pass filter. order: of one pass; cutoff: Hz.

    It is run forward and backward (zero phase), so order and decibels count twice: the response at the
    cutoff is -6 dB for butter and bessel (bessel by `norm="mag"`, as otherwise its cutoff means delay),
    -0.1 dB for cheby1 and ellip (ripple 0.05 dB a pass; ellip's stop band 60 dB a pass).
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
    """Audio [N] at `sample_rate` Hz without what lies above the cutoff: float32 [N], no delay.

    After the IIR filter, which alone would leave content above the cutoff, the audio is resampled to
    exactly 2 * cutoff and back by band-limited (sinc) interpolation, with a raised-cosine filter from
    0.98 of the cutoff to the cutoff. By the sampling theorem the two steps are that filter, so it is
    applied once, as a spectrum: any real cutoff is exact and there is no rounding of rates or lengths.
    So is the IIR filter, by the closed form of its response: designing sections for each random cutoff
    would take longer than all the rest. Ends are extended by odd reflection.
    ValueError if the cutoff is not below half the sample rate.
    """
    audio_N = np.asarray(audio_N, dtype=np.float32)
    if audio_N.ndim != 1:
        raise ValueError(f"audio must be [N], not {audio_N.shape}")
    if low_pass.cutoff >= sample_rate / 2:
        raise ValueError(
            f"cutoff {low_pass.cutoff:g} Hz is not below Nyquist, {sample_rate / 2:g} Hz"
        )
    samples = audio_N.size
    if samples == 0:
        return audio_N.copy()
    from scipy.fft import irfft, next_fast_len, rfft

    extra = min(samples - 1, math.ceil(EXTENSION * sample_rate / low_pass.cutoff))
    wide = np.pad(audio_N.astype(np.float64), extra, mode="reflect", reflect_type="odd")
    size = next_fast_len(
        wide.size + extra, real=True
    )  # zeros between the ends, which meet in a circle
    spectrum_F = rfft(wide, size)
    kept = math.ceil(low_pass.cutoff * size / sample_rate)  # bins below the cutoff
    hertz_F = np.arange(kept) * (sample_rate / size)
    slope_F = np.clip((hertz_F / low_pass.cutoff - FLAT) / (1 - FLAT), 0.0, 1.0)
    spectrum_F[:kept] *= _response(low_pass, hertz_F, sample_rate) * (
        0.5 + 0.5 * np.cos(np.pi * slope_F)
    )
    spectrum_F[kept:] = 0.0
    return irfft(spectrum_F, size)[extra : extra + samples].astype(np.float32)


def draw_low_pass(
    rng: np.random.Generator,
    cutoff: tuple[float, float],
    families: Sequence[FilterFamily],
    orders: tuple[int, int],
) -> LowPass:
    """A random filter: family and order (both ends included) uniform, cutoff uniform in Hz.

    Uniform in Hz as in the published recipes (NU-Wave 2, AudioSR, AudioLBM). Drawn per octave, the high
    cutoffs, where doing nothing is hard to beat, were trained too little (docs/log.md).
    Three draws from `rng` each time, whatever the ranges, so that streams stay aligned.
    """
    family = families[min(int(rng.random() * len(families)), len(families) - 1)]
    order = min(orders[0] + int(rng.random() * (orders[1] - orders[0] + 1)), orders[1])
    return LowPass(family, order, cutoff[0] + float(rng.random()) * (cutoff[1] - cutoff[0]))


def test_low_pass(evaluate: Evaluate, cutoff: float) -> LowPass:
    """The filter that evaluation uses at `cutoff` Hz: the recipe's family and order, nothing random."""
    return LowPass(evaluate.filter, evaluate.order, cutoff)


def _response(low_pass: LowPass, hertz_F: np.ndarray, sample_rate: int) -> np.ndarray:
    """Gain [F] of the digital filter run forward and backward, at frequencies up to the cutoff.

    The bilinear transform maps the frequency f to tan(pi f / rate) / tan(pi cutoff / rate) of the analog prototype.
    """
    warped_F = np.tan(np.pi * hertz_F / sample_rate) / math.tan(
        math.pi * low_pass.cutoff / sample_rate
    )
    above, below = _prototype(low_pass.family, low_pass.order)
    return np.polyval(above, warped_F**2) / np.polyval(below, warped_F**2)


@lru_cache(maxsize=64)
def _prototype(family: FilterFamily, order: int) -> tuple[np.ndarray, np.ndarray]:
    """|H(jw)|^2 of the analog low-pass filter with cutoff 1, as two polynomials in w^2, highest power first."""
    from scipy import signal

    zeros, poles, gain = {
        "butter": lambda: signal.buttap(order),
        "cheby1": lambda: signal.cheb1ap(order, RIPPLE),
        "ellip": lambda: signal.ellipap(order, RIPPLE, ATTENUATION),
        "bessel": lambda: signal.besselap(order, norm="mag"),
    }[family]()

    def squared(roots: np.ndarray) -> np.ndarray:
        """Of p(s) p(-s) only the even powers are left, and s^2 = -w^2."""
        direct = np.atleast_1d(np.real(np.poly(np.ravel(roots))))
        power = np.arange(len(direct))[::-1]
        even = np.polymul(direct, direct * (-1.0) ** power)[::2]
        return even * (-1.0) ** np.arange(len(even))[::-1]

    return gain**2 * squared(zeros), squared(poles)
