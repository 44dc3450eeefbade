"""Checks of a clip or a pair before it is scored: errors as ValueError, warnings as text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stagecli.metrics.gain import PairGain

# Peaks that tools normalise to: full scale, round numbers, -1 dB and -3 dB.
_COMMON_PEAKS = (1.0, 0.99, 0.95, 0.9, 0.5, 10 ** (-1 / 20), 10 ** (-3 / 20))
_PEAK_TOLERANCE = 2e-4  # relative; PCM of 16 bit at half scale rounds by 3e-5
_FLAT_RUN = 3  # equal samples at the peak
# Share of the peak by which a clipped top falls at its edge; a rounded one falls by less.
_FLAT_STEP = 2e-3
_FLAT_QUANTA = 4  # steps of quantisation by which the edge of a rounded top may fall
_FULL_SCALE = 0.99  # below it, fewer than _FLAT_RUNS flat tops are chance
_FLAT_RUNS = 3
_NEAR_SILENCE_DB = -80.0
_OFFSET = 0.01
_GAIN_WARNING_DB = 0.5
MAX_TAIL = 0.02  # seconds by which two clips of a pair may differ in length


def checked_pair(reference: Tensor, estimate: Tensor) -> tuple[Tensor, Tensor]:
    """Both signals [N] or [B, N] as float64; ValueError if a score would be meaningless."""
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


@dataclass(frozen=True, kw_only=True)
class ClipStatistics:
    """Level, clipping and normalisation of a clip.

    num_samples; non_finite: NaN or infinite samples, which the other values ignore; peak: largest
    magnitude; rms_db: level in dB relative to full scale (-inf for silence); offset: mean; over:
    samples beyond full scale; clipped: samples in flat tops; normalised_to: the common
    normalisation target that the peak equals, or None.
    """

    num_samples: int
    non_finite: int
    peak: float
    rms_db: float
    offset: float
    over: int
    clipped: int
    normalised_to: float | None

    @property
    def silent(self) -> bool:
        """Whether every sample is exactly zero."""
        return self.peak == 0

    def warnings(self) -> tuple[str, ...]:
        """One phrase for each thing that makes a score doubtful, most serious first."""
        lines = []
        if self.non_finite:
            lines.append(f"NaN or infinite samples: {self.non_finite}")
        if self.silent:
            lines.append("silent: every sample is zero")
        elif self.rms_db < _NEAR_SILENCE_DB:
            lines.append(f"nearly silent, {self.rms_db:.0f} dB")
        if self.over:
            lines.append(
                f"samples beyond full scale: {self.over}, largest {self.peak:.2f}; PCM would clip "
                "them"
            )
        if self.clipped:
            doubt = "" if self.peak >= _FULL_SCALE else "perhaps "
            lines.append(f"samples in flat tops at {self.peak:.2f}: {self.clipped}, {doubt}clipped")
        if self.normalised_to is not None:
            lines.append(f"peak {self.peak:.4g}: perhaps peak-normalised")
        if abs(self.offset) > _OFFSET:
            lines.append(f"offset {self.offset:+.3f}")
        return tuple(lines)


def _flat_tops(audio_N: Tensor, peak: float) -> int:
    """Samples in runs of at least three of exactly the peak's magnitude, with a steep edge.

    0 for one or two such runs below full scale.
    """
    levels = audio_N.abs().unique()
    quantum = float(levels.diff().min()) if len(levels) > 1 else 0.0
    steep = max(_FLAT_STEP * peak, _FLAT_QUANTA * quantum)
    total = 0
    runs = 0
    outside = torch.zeros(1, dtype=torch.bool)
    for level in (peak, -peak):
        # Where runs at this level begin and end.
        at_level = torch.cat([outside, audio_N == level, outside])
        edge = at_level[1:].int() - at_level[:-1].int()
        starts = (edge == 1).nonzero()[:, 0]
        ends = (edge == -1).nonzero()[:, 0]

        # How far the samples beside a run fall off.
        padded_N = torch.nn.functional.pad(audio_N, (1, 1), value=level)
        before = (level - padded_N[starts]).abs()
        after = (level - padded_N[ends + 1]).abs()
        drop = torch.maximum(before, after)
        length = ends - starts
        flat = length[(length >= _FLAT_RUN) & (drop > steep)]
        total += int(flat.sum())
        runs += len(flat)
    return total if peak >= _FULL_SCALE or runs >= _FLAT_RUNS else 0


def clip_statistics(audio_N: Tensor) -> ClipStatistics:
    """Level, clipping and normalisation of one clip [N], floating point in [-1, 1].

    Clipping: runs of at least 3 equal samples at the largest magnitude that fall off by more than
    0.2 % of it and 4 steps of quantisation on one side, so that quantised waves do not count; below
    full scale, at least 3 such runs. Soft clipping, and clipping
    followed by a filter or a lossy codec, is not detected. Normalisation: the peak is within 0.02 %
    of 1, 0.99, 0.95, 0.9, 0.5, -1 dB or -3 dB. For one clip this is a hint; `shared_peak` looks at
    a set. NaN does not raise.
    Raises ValueError: not [N], empty, integer samples.
    """
    if audio_N.ndim != 1 or audio_N.numel() == 0 or not audio_N.is_floating_point():
        raise ValueError(
            "audio must be floating point [N], not empty, got "
            f"{audio_N.dtype} {tuple(audio_N.shape)}"
        )
    finite = torch.isfinite(audio_N)
    audio_N = audio_N.detach().cpu().double().masked_fill(~finite.cpu(), 0.0)
    peak = float(audio_N.abs().max())
    power = float(audio_N.square().mean())
    targets = (t for t in _COMMON_PEAKS if abs(peak / t - 1) < _PEAK_TOLERANCE)
    return ClipStatistics(
        num_samples=audio_N.numel(),
        non_finite=int((~finite).sum()),
        peak=peak,
        rms_db=10 * math.log10(power) if power > 0 else -math.inf,
        offset=float(audio_N.mean()),
        over=int((audio_N.abs() > 1).sum()),
        clipped=_flat_tops(audio_N, peak) if peak > 0 else 0,
        normalised_to=next(targets, None),
    )


def shared_peak(peaks: Sequence[float], tolerance: float = 0.01) -> float | None:
    """The peak that all clips of a set share within a relative tolerance: a sign of normalisation.

    peaks: largest magnitudes, one per clip. None if they differ, or for fewer than 3 clips.
    """
    if len(peaks) < 3 or min(peaks) <= 0:
        return None
    middle = sorted(peaks)[len(peaks) // 2]
    if max(peaks) > middle * (1 + tolerance) or min(peaks) < middle * (1 - tolerance):
        return None
    return middle


def check_pair(
    reference_N: Tensor,
    estimate_N: Tensor,
    sample_rate: int,
    least_seconds: float = 0.05,
    *,
    same_length: bool = True,
) -> None:
    """Raise ValueError, with the reason, unless both clips [N] can be scored as a pair.

    Refused: different lengths unless `same_length` is False (nothing is cut silently), empty,
    integer or non-finite samples, shorter than `least_seconds` at `sample_rate` Hz, a silent
    reference (ratios to it mean nothing), more than one channel.
    """
    if sample_rate <= 0:
        raise ValueError(f"sample_rate must be positive, got {sample_rate}")
    for name, audio in (("reference", reference_N), ("estimate", estimate_N)):
        if audio.ndim != 1:
            raise ValueError(f"the {name} must be one channel [N], got {tuple(audio.shape)}")
    n = reference_N.shape[0]
    m = estimate_N.shape[0]
    if n != m and same_length:
        raise ValueError(_lengths_text(n, m, sample_rate))
    shorter = min(n, m)
    checked_pair(reference_N[:shorter], estimate_N[:shorter])
    if n != m and not all(bool(torch.isfinite(z).all()) for z in (reference_N, estimate_N)):
        raise ValueError("the tail of the longer clip contains NaN or infinite samples")
    if shorter < least_seconds * sample_rate:
        raise ValueError(
            f"too short: {shorter / sample_rate:.3f} s, at least {least_seconds:g} s are needed"
        )
    if not bool(reference_N.any()):
        raise ValueError("the reference is silent: every sample is zero")


def trim_tails(reference_N: Tensor, estimate_N: Tensor, sample_rate: int) -> tuple[Tensor, Tensor]:
    """Both clips [N] without the tail of the longer one, which is at most 20 ms.

    Resamplers and codecs round lengths in their own ways. Raises ValueError for a longer tail.
    """
    n = reference_N.shape[0]
    m = estimate_N.shape[0]
    if abs(n - m) > MAX_TAIL * sample_rate:
        raise ValueError(_lengths_text(n, m, sample_rate))
    return reference_N[:m], estimate_N[:n]


def _lengths_text(n: int, m: int, sample_rate: int) -> str:
    seconds = f"{n / sample_rate:.3f} s and {m / sample_rate:.3f} s"
    return f"different lengths: reference {n} samples, estimate {m} ({seconds}); trim them first"


def pair_warnings(reference_N: Tensor, estimate_N: Tensor, gain: PairGain) -> tuple[str, ...]:
    """Warnings to print beside the score of a pair [N] that `check_pair` accepts.

    Those of either clip, and a gain of the kept band more than 0.5 dB from 1 with its own
    contribution to LSD. gain: of the pair. A common normalisation peak is mentioned for the
    estimate only, if the reference's peak is a different one.
    """
    reference = clip_statistics(reference_N)
    estimate = clip_statistics(estimate_N)
    same_peak = reference.normalised_to == estimate.normalised_to
    lines = [f"reference: {w}" for w in reference.warnings() if "normalised" not in w]
    lines += [
        f"estimate: {w}" for w in estimate.warnings() if "normalised" not in w or not same_peak
    ]
    if estimate.silent or reference.silent:
        return tuple(lines)
    if gain.kept <= 0:
        lines.append(
            "the estimate is inverted or unrelated to the reference (least-squares gain not "
            "positive)"
        )
    elif abs(20 * math.log10(gain.kept)) > _GAIN_WARNING_DB:
        lines.append(_level_warning(gain))
    return tuple(lines)


def _level_warning(gain: PairGain) -> str:
    whole = f"{-20 * math.log10(gain.whole):+.1f} dB" if gain.whole > 0 else "no positive gain"
    return (
        f"level: the estimate is off by about {-20 * math.log10(gain.kept):+.1f} dB in the kept "
        f"band (sample by sample over the whole band: {whole}), "
        f"{2 * abs(math.log10(gain.kept)):.2f} of LSD by itself"
    )
