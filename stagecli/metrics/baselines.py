"""A naive baseline that a super-resolution model must beat, beside the unprocessed input."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from stagecli.metrics.cutoffs import LOWEST_HZ

# Band that sets the level, as shares of the cutoff; the transition of the filter lies above it.
_EDGE = (0.85, 0.97)
_DECIBEL_PER_OCTAVE = -12.0
_MIN_BINS = 16


@torch.no_grad()
def copy_up(audio_N: Tensor, sample_rate: int, cutoff_hz: float) -> Tensor:
    """Naive spectral copy-up of a band-limited clip [N] to [N] of the same dtype.

    The spectrum from 20 Hz to `cutoff_hz` is repeated upward to Nyquist; the copies are shifted,
    not mirrored. One transform covers the whole clip: each copy is an exact frequency shift that
    keeps the clip's timing, bins below the cutoff stay the input's, and the leakage of a filter
    above it is replaced.
    The copies are scaled once per clip, never up, to the mean power of the band from 0.85 to 0.97
    of the cutoff, and fall by 12 dB per octave above it. These are constants: nothing is fitted to
    a target. Unscaled copies would put the level of the bass at the cutoff, which is worse than
    doing nothing. Silence stays silent.
    Raises ValueError: not [N], integer samples, NaN or infinite, cutoff outside (20 Hz, Nyquist),
    too short.
    """
    # Refuse what cannot be copied.
    if audio_N.ndim != 1 or not audio_N.is_floating_point():
        raise ValueError(
            f"audio must be floating point [N], got {audio_N.dtype} {tuple(audio_N.shape)}"
        )
    if not LOWEST_HZ < cutoff_hz < sample_rate / 2:
        raise ValueError(
            f"cutoff {cutoff_hz:g} Hz is outside ({LOWEST_HZ:g} Hz, {sample_rate / 2:g} Hz)"
        )
    if not bool(torch.isfinite(audio_N).all()):
        raise ValueError("the audio contains NaN or infinite samples")
    num_samples = audio_N.shape[0]
    bottom = math.ceil(LOWEST_HZ * num_samples / sample_rate)
    cutoff = math.ceil(cutoff_hz * num_samples / sample_rate)
    edge = slice(int(_EDGE[0] * cutoff), int(_EDGE[1] * cutoff))
    if edge.stop - max(edge.start, bottom) < _MIN_BINS:
        raise ValueError(f"too few samples ({num_samples}) to copy the band below {cutoff_hz:g} Hz")

    # Copy the low band upward, at the level of its upper edge.
    spectrum_F = torch.fft.rfft(audio_N.double())
    power_F = spectrum_F.abs().square()
    source_power = power_F[bottom:cutoff].mean()
    if float(source_power) > 0:
        gain = (power_F[edge].mean() / source_power).sqrt().clamp_max(1.0)
        high = torch.arange(cutoff, spectrum_F.shape[0], device=audio_N.device)
        roll_off = (high.double() / cutoff) ** (_DECIBEL_PER_OCTAVE / (20 * math.log10(2)))
        source = bottom + (high - cutoff) % (cutoff - bottom)
        spectrum_F[cutoff:] = spectrum_F[source] * gain * roll_off
    return torch.fft.irfft(spectrum_F, num_samples).to(audio_N.dtype)
