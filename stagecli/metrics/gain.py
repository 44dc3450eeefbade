"""Gain matching, for systems that do not keep the level of their input."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

KEPT = 0.9  # share of the cutoff up to which a low-passed clip is taken for unchanged
MAX_DELAY = 0.02  # seconds by which an estimate may be early or late
_NEWTON_STEPS = 4


def least_squares_gain(reference: Tensor, estimate: Tensor) -> Tensor:
    """The g that minimises sum (x - g y)^2, g = <x, y> / <y, y>; x reference, y estimate.

    [N] or [B, N] -> float64 [] or [B]. 1 for a silent estimate; 0 or negative if the two are
    unrelated or one is inverted. Content of the estimate that the reference lacks, or has at
    another phase, lowers g below the ratio of levels; `pair_gain` takes the shared band.
    Raises ValueError: shapes differ, empty, not finite.
    """
    if reference.shape != estimate.shape or reference.ndim not in (1, 2) or reference.numel() == 0:
        raise ValueError(
            f"a gain needs two clips of one shape, got {reference.shape} and {estimate.shape}"
        )
    x = reference.double()
    y = estimate.double()
    energy = y.square().sum(-1)
    gain = (x * y).sum(-1) / energy.masked_fill(energy == 0, 1.0)
    if not bool(torch.isfinite(gain).all()):
        raise ValueError("the reference or the estimate contains NaN or infinite samples")
    return gain.masked_fill(energy == 0, 1.0)


@dataclass(frozen=True, kw_only=True)
class PairGain:
    """The gains g that bring an estimate to the level of its reference.

    kept: over the band that both share, with the estimate's delay removed; whole: over the whole
    band, sample by sample, which content of another phase or a delay lowers; delay: seconds by
    which the estimate is late.
    """

    kept: float
    whole: float
    delay: float


def pair_gain(
    reference_N: Tensor, estimate_N: Tensor, sample_rate: int, cutoff_hz: float
) -> PairGain:
    """The gains of one clip [N] against its reference.

    The kept band reaches from 0 Hz to 0.9 of `cutoff_hz`, or to Nyquist if that is lower. The delay
    is that of the largest cross-correlation within 20 ms, to a fraction of a sample, and g = <x, y>
    / <y, y> of the band's waveforms, x shifted by it. 1 where the band of the estimate is silent.
    Raises ValueError as `least_squares_gain`.
    """
    whole = float(least_squares_gain(reference_N, estimate_N))
    num_samples = reference_N.shape[-1]
    margin = math.ceil(MAX_DELAY * sample_rate)
    size = num_samples + margin  # zeros at the end, so that a shift does not wrap around
    x_F, y_F = (torch.fft.rfft(z.double(), size) for z in (reference_N, estimate_N))
    band = min(len(x_F), math.ceil(KEPT * cutoff_hz * size / sample_rate) + 1)
    x_F = x_F[:band]
    y_F = y_F[:band]
    weight_F = torch.full((band,), 2.0, dtype=torch.float64)
    weight_F[0] = 1.0
    energy = float((weight_F * y_F.abs().square()).sum())
    if energy == 0:
        return PairGain(kept=1.0, whole=whole, delay=0.0)
    cross_F = weight_F * y_F * x_F.conj()
    delay = _delay(cross_F, size, margin)
    kept = _correlation(cross_F, size, delay)[0] / energy
    return PairGain(kept=kept, whole=whole, delay=delay / sample_rate)


def _delay(cross_F: Tensor, size: int, margin: int) -> float:
    """Samples, within the margin, at which two clips correlate most, or are most inverted."""
    half_F = cross_F.clone()
    half_F[0] = 2 * half_F[0]
    correlation_N = torch.fft.irfft(half_F, size)
    lags = torch.arange(-margin, margin + 1)
    start = int(lags[correlation_N[lags % size].abs().argmax()])
    best = float(start)
    sign = math.copysign(1.0, float(correlation_N[start % size]))  # -1: an inverted estimate
    for _ in range(_NEWTON_STEPS):  # to the top between the samples
        _, slope, curvature = _correlation(cross_F, size, best)
        if sign * curvature >= 0:
            return float(start)
        best -= slope / curvature
    return best if abs(best - start) <= 1 else float(start)


def _correlation(cross_F: Tensor, size: int, delay: float) -> tuple[float, float, float]:
    """The correlation at a delay in samples, and its first two derivatives."""
    omega_F = 2 * math.pi / size * torch.arange(len(cross_F), dtype=torch.float64)
    turned_F = cross_F * torch.polar(torch.ones_like(omega_F), omega_F * delay)
    return (
        float(turned_F.real.sum()),
        -float((omega_F * turned_F.imag).sum()),
        -float((omega_F.square() * turned_F.real).sum()),
    )


def apply_gain(estimate: Tensor, gain: float) -> Tensor:
    """gain * estimate, in its dtype.

    A matched score is blind to level: call it "gain matched" and print the gain. Peak normalisation
    is no substitute, because it follows a single sample. Raises ValueError if the gain is not
    positive: a score after flipping the sign or muting the clip would mean nothing.
    """
    if not gain > 0:
        raise ValueError(
            "the gain is not positive: the estimate is inverted or unrelated to the reference"
        )
    return (estimate.double() * gain).to(estimate.dtype)
