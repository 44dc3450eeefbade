"""What training does to a clip of super-resolution and to its input, drawn once per example.

The clip gets another spectrum and level, so that the network has to read both from its input rather
than know those of the data set; the input is made in the ways that files are really made. No torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from stagecli.data.degrade import LowPass, degrade
from stagecli.data.lossy import Lossy, compress_and_decode, draw_lossy
from stagecli.data.resampling import Resampling, draw_resampling, resample_down_and_up
from stagecli.schema import Augment

LOWEST_HZ = 62.5  # the equaliser's lowest octave; below, its gain is constant
OCTAVES = 12  # whose gains are drawn, whatever the sample rate
PIVOT_HZ = 1000.0  # where a slope changes nothing


@dataclass(frozen=True, kw_only=True)
class Alteration:
    """Changes of one example.

    octaves_db: the equaliser's gain at each octave above `LOWEST_HZ`, the slope included; gain_db:
    of the clip; resampling: what makes the input, instead of the low-pass filter; lossy: what the
    input goes through last.
    """

    octaves_db: tuple[float, ...]
    gain_db: float
    resampling: Resampling | None
    lossy: Lossy | None


def is_active(options: Augment) -> bool:
    """Whether examples are altered at all."""
    return any(options.model_dump().values())


def draw_alteration(
    rng: np.random.Generator, options: Augment, cutoff: tuple[float, float], sample_rate: int
) -> Alteration:
    """A random alteration; cutoff: range in Hz of the resamplers'.

    Always as many draws from `rng`, whatever the options, so that one of them changes no other.
    """
    octaves_db = options.equaliser_db * rng.standard_normal(OCTAVES)
    tilt_db = options.tilt_db * (2 * float(rng.random()) - 1)
    octaves_db += tilt_db * (np.arange(OCTAVES) - math.log2(PIVOT_HZ / LOWEST_HZ))
    gain_db = options.gain_db * (2 * float(rng.random()) - 1)
    resampled, compressed = rng.random(2) < (options.resampled, options.lossy)
    resampling = draw_resampling(rng, cutoff, sample_rate)
    lossy = draw_lossy(rng)
    return Alteration(
        octaves_db=tuple(octaves_db.tolist()),
        gain_db=gain_db,
        resampling=resampling if resampled else None,
        lossy=lossy if compressed else None,
    )


def make_low(
    audio_N: np.ndarray, sample_rate: int, low_pass: LowPass, alteration: Alteration | None
) -> tuple[np.ndarray, float]:
    """(the low-resolution input [N] of a clip, its cutoff in Hz)."""
    if alteration is None:
        return degrade(audio_N, sample_rate, low_pass), low_pass.cutoff
    if alteration.resampling is not None:
        cutoff = alteration.resampling.cutoff
        low_N = resample_down_and_up(audio_N, alteration.resampling)
    else:
        cutoff = low_pass.cutoff
        low_N = degrade(audio_N, sample_rate, low_pass)
    if alteration.lossy is not None:
        low_N = compress_and_decode(low_N, sample_rate, alteration.lossy)
    return low_N, cutoff


def alter(audio_N: np.ndarray, sample_rate: int, alteration: Alteration) -> np.ndarray:
    """Audio [N] -> float32 [N] with another spectrum and level, without delay.

    The gain is a cubic in log frequency between the octaves. What it moves beyond the ends is lost.
    """
    from scipy.fft import irfft, next_fast_len, rfft
    from scipy.interpolate import CubicSpline

    length = audio_N.size
    # Zeros after the end, as the filter has no phase and reaches to both sides.
    size = next_fast_len(length + round(sample_rate / LOWEST_HZ), real=True)
    hertz_F = np.arange(size // 2 + 1) * (sample_rate / size)
    place_F = np.log2(np.maximum(hertz_F, LOWEST_HZ) / LOWEST_HZ)
    curve = CubicSpline(np.arange(OCTAVES), alteration.octaves_db)
    decibels_F = curve(np.minimum(place_F, OCTAVES - 1)) + alteration.gain_db
    spectrum_F = rfft(audio_N.astype(np.float64), size) * 10 ** (decibels_F / 20)
    return irfft(spectrum_F, size)[:length].astype(np.float32)
