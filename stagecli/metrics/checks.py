"""What may be wrong with a clip or a pair before it is scored: refusals as ValueError, doubts as text to print."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stagecli.metrics.gain import least_squares_gain

_COMMON_PEAKS = (
    1.0,
    0.99,
    0.95,
    0.9,
    0.5,
)  # what tools normalise to; 10^(-1/20) and 10^(-3/20) are added below
_PEAK_TOLERANCE = 2e-4  # relative; PCM of 16 bit at half scale rounds by 3e-5
_FLAT_RUN = 3  # samples of one value at the peak
_FLAT_STEP = (
    2e-3  # share of the peak by which a clipped top falls off at its edge; a rounded one falls less
)
_NEAR_SILENCE_DB = -80.0
_GAIN_DOUBT_DB = 0.5


def checked_pair(reference: Tensor, estimate: Tensor) -> tuple[Tensor, Tensor]:
    """Both signals [N] or [B, N] as float64; ValueError for whatever would give a number that means nothing."""
    if reference.shape != estimate.shape:
        shapes = f"{tuple(reference.shape)} and {tuple(estimate.shape)}"
        raise ValueError(
            f"reference and estimate have different shapes: {shapes}; align and trim them first"
        )
    if reference.ndim not in (1, 2):
        raise ValueError(f"audio must be [N] or [B, N], got {tuple(reference.shape)}")
    if reference.numel() == 0:
        raise ValueError("the audio is empty")
    for name, audio in (("reference", reference), ("estimate", estimate)):
        if not audio.is_floating_point():
            raise ValueError(
                f"the {name} is {audio.dtype}; floors assume floating point in [-1, 1]"
            )
        if not bool(torch.isfinite(audio).all()):
            raise ValueError(f"the {name} contains NaN or infinite samples")
    return reference.double(), estimate.double()


@dataclass(frozen=True)
class ClipStatistics:
    """What `clip_statistics` found in a clip.

    samples; non_finite: NaN or infinite samples (the rest is measured without them); peak: largest magnitude;
    rms_db: level in dB re full scale (-inf for silence); offset: mean; over: samples beyond full scale;
    clipped: samples in flat tops; normalised_to: the usual target that the peak equals, or None.
    """

    samples: int
    non_finite: int
    peak: float
    rms_db: float
    offset: float
    over: int
    clipped: int
    normalised_to: float | None

    @property
    def silent(self) -> bool:
        """Every sample is exactly zero."""
        return self.peak == 0

    def warnings(self) -> tuple[str, ...]:
        """One short phrase per thing that a reader of the score should know, most serious first."""
        found = [
            (self.non_finite > 0, f"{self.non_finite} NaN or infinite samples"),
            (self.silent, "silent: every sample is zero"),
            (
                not self.silent and self.rms_db < _NEAR_SILENCE_DB,
                f"nearly silent, {self.rms_db:.0f} dB",
            ),
            (
                self.over > 0,
                f"{self.over} samples beyond full scale, largest {self.peak:.3g}: PCM would clip them",
            ),
            (self.clipped > 0, f"{self.clipped} samples in flat tops at {self.peak:.3g}: clipped"),
            (self.normalised_to is not None, f"peak {self.peak:.4g}: perhaps peak-normalised"),
            (abs(self.offset) > 0.01, f"offset {self.offset:+.3f}"),
        ]
        return tuple(text for holds, text in found if holds)


def _flat_tops(audio_N: Tensor, peak: float) -> int:
    """Samples in runs of three or more of exactly the peak's value (either sign) with a steep edge."""
    total = 0
    for level in (peak, -peak):
        at_N = torch.cat(
            [torch.zeros(1, dtype=torch.bool), audio_N == level, torch.zeros(1, dtype=torch.bool)]
        )
        edge = at_N[1:].int() - at_N[:-1].int()
        starts = (edge == 1).nonzero()[:, 0]
        ends = (edge == -1).nonzero()[:, 0]
        wide_N = torch.nn.functional.pad(audio_N, (1, 1), value=level)
        drop = torch.maximum((level - wide_N[starts]).abs(), (level - wide_N[ends + 1]).abs())
        length = ends - starts
        total += int(length[(length >= _FLAT_RUN) & (drop > _FLAT_STEP * peak)].sum())
    return total


def clip_statistics(audio_N: Tensor) -> ClipStatistics:
    """Level, clipping and normalisation of one clip [N], floating point in [-1, 1].

    Clipping: runs of at least 3 equal samples at the largest magnitude that fall off by more than 0.2 % of it
    on a side, so quantised slow waves are not taken for it; soft clipping and clipping followed by a filter or
    a lossy codec are not seen. Normalisation: the peak is 1, 0.99, 0.95, 0.9, 0.5, -1 dB or -3 dB within 0.02 %;
    a hint for one clip, and `shared_peak` says it for a set. NaN does not raise here.
    Raises ValueError: not [N], empty, integer samples.
    """
    if audio_N.ndim != 1 or audio_N.numel() == 0 or not audio_N.is_floating_point():
        raise ValueError(
            f"audio must be floating point [N], not empty, got {audio_N.dtype} {tuple(audio_N.shape)}"
        )
    finite = torch.isfinite(audio_N)
    audio_N = audio_N.detach().cpu().double().masked_fill(~finite.cpu(), 0.0)
    peak = float(audio_N.abs().max())
    power = float(audio_N.square().mean())
    targets = [*_COMMON_PEAKS, 10 ** (-1 / 20), 10 ** (-3 / 20)]
    return ClipStatistics(
        samples=audio_N.numel(),
        non_finite=int((~finite).sum()),
        peak=peak,
        rms_db=10 * math.log10(power) if power > 0 else -math.inf,
        offset=float(audio_N.mean()),
        over=int((audio_N.abs() > 1).sum()),
        clipped=_flat_tops(audio_N, peak) if peak > 0 else 0,
        normalised_to=next((t for t in targets if abs(peak / t - 1) < _PEAK_TOLERANCE), None),
    )


def shared_peak(peaks: Sequence[float], tolerance: float = 0.01) -> float | None:
    """The peak that all clips of a set share, within `tolerance` relative: the sign of peak normalisation.

    peaks: largest magnitudes, one per clip; None where they differ, or for fewer than 3 clips.
    """
    if len(peaks) < 3 or min(peaks) <= 0:
        return None
    middle = sorted(peaks)[len(peaks) // 2]
    return (
        middle
        if max(peaks) <= middle * (1 + tolerance) and min(peaks) >= middle * (1 - tolerance)
        else None
    )


def check_pair(
    reference_N: Tensor, estimate_N: Tensor, sample_rate: int, least_seconds: float = 0.05
) -> None:
    """Raise ValueError, with the reason, unless both clips [N] at `sample_rate` Hz can be scored as a pair.

    Refused: different lengths (nothing is cut silently), empty, integer or non-finite samples, shorter than
    `least_seconds`, a silent reference (ratios to it mean nothing), more than one channel.
    """
    if sample_rate <= 0:
        raise ValueError(f"sample_rate must be positive, got {sample_rate}")
    for name, audio in (("reference", reference_N), ("estimate", estimate_N)):
        if audio.ndim != 1:
            raise ValueError(f"the {name} must be one channel [N], got {tuple(audio.shape)}")
    n = reference_N.shape[0]
    m = estimate_N.shape[0]
    if n != m:
        seconds = f"{n / sample_rate:.3f} s and {m / sample_rate:.3f} s"
        raise ValueError(
            f"different lengths: reference {n} samples, estimate {m} ({seconds}); trim them first"
        )
    checked_pair(reference_N, estimate_N)
    if n < least_seconds * sample_rate:
        raise ValueError(
            f"too short: {n / sample_rate:.3f} s, at least {least_seconds:g} s are needed"
        )
    if not bool(reference_N.any()):
        raise ValueError("the reference is silent: every sample is zero")


def pair_warnings(reference_N: Tensor, estimate_N: Tensor) -> tuple[str, ...]:
    """What to print beside the score of a pair [N] that `check_pair` accepts; empty where nothing is odd.

    The doubts of either clip, and a least-squares gain more than 0.5 dB from 1 with what it alone adds to LSD.
    A peak at a usual target is told of the estimate only where the reference's peak is another.
    """
    facts = {"reference": clip_statistics(reference_N), "estimate": clip_statistics(estimate_N)}
    same_peak = facts["reference"].normalised_to == facts["estimate"].normalised_to
    found = [
        f"{name}: {doubt}"
        for name, fact in facts.items()
        for doubt in fact.warnings()
        if "normalised" not in doubt or (name == "estimate" and not same_peak)
    ]
    if not facts["estimate"].silent and not facts["reference"].silent:
        gain = float(least_squares_gain(reference_N, estimate_N))
        if gain <= 0:
            found.append(
                "the estimate is inverted or unrelated to the reference (least-squares gain not positive)"
            )
        elif abs(20 * math.log10(gain)) > _GAIN_DOUBT_DB:
            decibel = -20 * math.log10(gain)
            added = 2 * abs(math.log10(gain))
            found.append(
                f"level: the estimate is off by about {decibel:+.1f} dB, {added:.2f} of LSD by itself"
            )
    return tuple(found)
